"""What MLflow finds by itself where this package is installed: tags of runs, and an evaluator."""

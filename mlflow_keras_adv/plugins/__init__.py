"""MLflow plugins: tags of runs, and an evaluator. MLflow finds them by their entry points."""

"""How a model is saved, and loaded again where its own code is not. Knows no MLflow."""

"""Scores and costs of models, by the losses and metrics of Keras. Knows no MLflow."""

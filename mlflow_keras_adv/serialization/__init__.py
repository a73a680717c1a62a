"""Saves models, and loads them where their own code is not importable. Knows no MLflow."""

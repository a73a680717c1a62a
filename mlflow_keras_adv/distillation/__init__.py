"""A small model learns from a large one. Knows no MLflow."""

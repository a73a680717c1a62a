"""Runs a `.tflite` file, and measures its weights, size, FLOPs and scores. Knows no MLflow."""

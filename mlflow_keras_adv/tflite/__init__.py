"""A `.tflite` file: how it runs, its weights, its size, its FLOPs, its scores. Knows no MLflow."""

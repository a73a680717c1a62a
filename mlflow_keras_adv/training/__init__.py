"""Measuring and training loops: uses Keras and TensorFlow, never MLflow."""

"""What is measured and done inside training: knows Keras and TensorFlow, never MLflow."""

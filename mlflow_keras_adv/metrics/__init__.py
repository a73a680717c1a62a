"""What a model scores: by the losses and metrics of Keras, for any task. Knows no MLflow."""

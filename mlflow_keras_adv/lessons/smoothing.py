"""Label smoothing that can change while a model is trained."""

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="mlflow_keras_adv")
class SmoothedCrossentropy(keras.losses.Loss):
    """Cross-entropy with label smoothing, whose amount is a variable.

    Szegedy et al. 2015, arXiv:1512.00567. A Python number, such as Keras' own `label_smoothing`,
    becomes a constant of the graph when a step is traced; a variable is read at every step.

    Args:
        smoothing: Share of the label that is spread over all classes, from 0 to below 1.
        **arguments: Arguments of every loss: name, reduction, dtype.

    Attributes:
        smoothing: A `keras.Variable`, which can be assigned to.
    """

    def __init__(self, smoothing: float = 0.0, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.smoothing = keras.Variable(smoothing, trainable=False, name="smoothing")

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Labels of shape [n] or [n, 1] and logits of shape [n, classes] -> losses [n]."""
        log_p = keras.ops.log_softmax(y_pred)
        labels = keras.ops.one_hot(keras.ops.reshape(y_true, (-1,)), log_p.shape[-1])
        own = keras.ops.sum(labels * log_p, axis=-1)
        return -(1 - self.smoothing) * own - self.smoothing * keras.ops.mean(log_p, axis=-1)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_config, (self.get_config(),)  # a variable is not pickled

    def get_config(self) -> dict[str, Any]:
        """The arguments, with the current smoothing, from which a checkpoint resumes."""
        return {**super().get_config(), "smoothing": float(self.smoothing)}

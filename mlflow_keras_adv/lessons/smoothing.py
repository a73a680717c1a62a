"""Label smoothing that may change while a model is trained."""

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="mlflow_keras_adv")
class SmoothedCrossentropy(keras.losses.Loss):
    """Cross-entropy to labels of which a part, `smoothing`, is spread over all classes.

    Szegedy et al. 2015, arXiv:1512.00567. A Python number, as Keras' own `label_smoothing`, is
    baked into the graph when a step is traced; here it is a variable, which the step reads.

    Args:
        smoothing: The part, from 0 to below 1.
        **arguments: Those of every loss: name, reduction, dtype.

    Attributes:
        smoothing: A `keras.Variable`, to be assigned to.
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
        """With the smoothing of now: a checkpoint goes on with it."""
        return {**super().get_config(), "smoothing": float(self.smoothing)}

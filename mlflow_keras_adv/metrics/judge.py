"""Judge: computes Keras 3's losses and metrics of outputs, whichever model gave them.

A judge is compiled like a model, and computes with tensors only: Keras' own code matches labels,
sample weights and masks with outputs, and names the logs. So the outputs of a `.tflite` file or of
a tf_keras model are scored like those of the model that it was made from.
"""

from collections.abc import Collection, Mapping
from typing import Any

import keras
import tensorflow as tf

from mlflow_keras_adv.compat.keras import compiled_by, left_out_of_config
from mlflow_keras_adv.errors import UserError, in_short

CONFIGURED = ("loss", "loss_weights", "metrics", "weighted_metrics")


def compiled_with(model: keras.Model, given: Collection[str] = ()) -> dict[str, Any]:
    """The compile arguments of a model, with new metrics of the same kind.

    Args:
        model: A model of Keras 3; one that was not compiled gives nothing.
        given: Left out, as they are given anew.

    Returns:
        Those of `CONFIGURED` that the model has.

    Raises:
        UserError: A metric cannot be made anew.
    """
    config = compiled_by(model) or {"loss": getattr(model, "loss", None)}
    found = {key: config[key] for key in CONFIGURED if config.get(key) is not None}
    return renewed({key: value for key, value in found.items() if key not in given})


def renewed(configured: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `compile`, with new metrics of the same kind.

    Raises:
        UserError: A metric cannot be made anew.
    """
    found = dict(configured)
    for key in found.keys() & {"metrics", "weighted_metrics"}:
        found[key] = keras.tree.map_structure(_renewed, found[key])
    return found


def _renewed(metric: Any) -> Any:
    if not isinstance(metric, keras.metrics.Metric):
        return metric
    try:
        return type(metric).from_config(metric.get_config() | left_out_of_config(metric))
    except Exception as error:  # what a class of the user raises has no end
        raise UserError(
            f"the metric {metric.name!r} ({type(metric).__name__}) of the compiled model cannot be "
            f"made anew from its get_config(): {error}. Give metrics=… and weighted_metrics=…, or "
            "say there all that it takes."
        ) from error


class Judge:
    """Computes Keras 3's loss and metrics of a model's outputs.

    Args:
        model: Whose answers are judged: its name and the names of its outputs.
        configured: Arguments of `compile`, of `CONFIGURED`.
    """

    def __init__(self, model: Any, configured: Mapping[str, Any]) -> None:
        self.name = model.name
        self._model = _Answers(list(getattr(model, "output_names", None) or ()) or None)
        self._model.compile("sgd", jit_compile=False, **configured)
        (self._mean_loss,) = (each for each in self._model.metrics if each.name == "loss")

    def try_on(self, answers: Any, labels: Any, sample_weight: Any) -> None:
        """Judges a few answers, so that what does not fit is known before the training.

        Raises:
            UserError: Labels, losses, metrics or weights do not fit each other or the outputs.
        """
        try:
            self.loss(labels, answers, sample_weight, ())
            self.results(labels, answers, sample_weight)
        except Exception as error:  # what losses and metrics raise has no end
            raise UserError(
                f"model {self.name!r} cannot be trained on, as in Keras' fit: its loss, metrics or "
                f"weights do not fit its outputs and the labels. {in_short(error)}"
            ) from error
        self.reset()

    def loss(self, labels: Any, answers: Any, sample_weight: Any, own_losses: Any) -> Any:
        """The loss of a batch, with that of the model's weights; it is added to the mean."""
        loss = self._model.compute_loss(None, labels, answers, sample_weight)
        loss = loss + sum(own_losses)
        rows = tf.shape(keras.tree.flatten(answers)[0])[0]
        self._mean_loss.update_state(loss, sample_weight=rows)
        return loss

    def results(self, labels: Any, answers: Any, sample_weight: Any) -> dict[str, Any]:
        """All metrics by name, with this batch."""
        return dict(self._model.compute_metrics(None, labels, answers, sample_weight))

    def so_far(self) -> dict[str, Any]:
        """All metrics by name."""
        return dict(self._model.get_metrics_result())

    @property
    def metrics(self) -> list[Any]:
        """Keras 3's metrics, the mean loss among them."""
        return list(self._model.metrics)

    def reset(self) -> None:
        """Resets the metrics, as at the beginning of an epoch."""
        for metric in self._model.metrics:
            metric.reset_state()


class _Answers(keras.Model):
    """Stands for a model whose answers come from elsewhere."""

    def __init__(self, output_names: list[str] | None) -> None:
        super().__init__()
        if output_names is not None:
            self.output_names = output_names

    def call(self, inputs: Any) -> Any:
        return inputs

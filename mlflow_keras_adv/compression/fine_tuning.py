"""The training in which a compressed model finds its way back, in Keras 3 or in tf_keras."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

from mlflow_keras_adv.compression.layer_translation import TO_TF_KERAS, translate
from mlflow_keras_adv.compression.training_data import read_training_data
from mlflow_keras_adv.errors import UserError

_NOT_OURS = {
    "initial_epoch": "compression starts a training of its own",
    "validation_split": "split the data yourself and give validation_data",
    "x": "give the data as the second argument",
    "y": "give the labels with the data, as (x, y)",
}


class FineTuning:
    """What a training needs, known before it starts; the model comes last.

    Args:
        model: The Keras 3 model to compress; of its `compile`, the loss is used.
        train: As `training_data.EXPECTED` says.
        loss: As of `compile`; None: the model's own.
        optimizer: A Keras 3 optimizer, of which a fresh one of the same settings is made; None:
            Adam.
        learning_rate: Of that Adam.
        metrics: Names, as of `compile`.
        fit: Further arguments of `fit`.

    Attributes:
        sample: A few of the model's inputs.
        total_steps: Batches of the whole training.

    Raises:
        TypeError: `train` is something else.
        ValueError: An argument of `fit` that would make the schedule wrong.
        UserError: No data, an endless dataset, no loss, or an optimizer that averages weights.
    """

    def __init__(
        self,
        model: keras.Model,
        train: Any,
        *,
        loss: Any,
        optimizer: keras.optimizers.Optimizer | None,
        learning_rate: float,
        metrics: Sequence[str],
        fit: Mapping[str, Any],
    ) -> None:
        for name in fit:
            if name in _NOT_OURS:
                raise ValueError(f"{name} cannot be chosen here: {_NOT_OURS[name]}")
        settings = dict(fit)
        self._callbacks = list(settings.pop("callbacks", None) or [])
        self._loss = loss if loss is not None else getattr(model, "loss", None)
        if self._loss is None:
            raise UserError(
                f"model {model.name!r} is not compiled with a loss to train on; pass loss=…, as "
                "keras.losses.SparseCategoricalCrossentropy(from_logits=True)"
            )
        self._optimizer = optimizer or keras.optimizers.Adam(learning_rate)
        if getattr(self._optimizer, "use_ema", False):
            raise UserError(
                "the optimizer has use_ema=True: at the end it would replace the compressed weights"
                " by averages of older ones. Use the same optimizer without it."
            )
        self._metrics = list(metrics)
        self._data = read_training_data(train, settings)
        self.sample = self._data.sample
        self.total_steps = self._data.steps_per_epoch * self._data.fit["epochs"]

    def for_tf_keras(self) -> dict[str, Any]:
        """The arguments of tf_keras' `compile`.

        Raises:
            UserError: tf_keras has no such loss, optimizer or callback.
        """
        for callback in self._callbacks:
            # Keras 3 asks its callbacks nothing; tf_keras asks each which hooks it has.
            if not hasattr(callback, "_implements_train_batch_hooks"):
                raise UserError(
                    f"the callback {type(callback).__name__} is one of Keras 3, but this training "
                    "runs in tf_keras; use the class of that name in tf_keras.callbacks"
                )
        return {
            "optimizer": translate(self._optimizer, "optimizers", TO_TF_KERAS, "the optimizer"),
            "loss": keras.tree.map_structure(_tf_keras_loss, self._loss),
            "metrics": list(self._metrics),
        }

    def for_keras(self) -> dict[str, Any]:
        """The arguments of Keras 3's `compile`."""
        optimizer = self._optimizer
        return {
            "optimizer": type(optimizer).from_config(optimizer.get_config()),
            "loss": self._loss,
            "metrics": list(self._metrics),
        }

    def fit(self, model: Any, callbacks: Sequence[Any]) -> None:
        """Trains a compiled model of either library, with callbacks before the caller's own."""
        callbacks = [*callbacks, *self._callbacks]
        model.fit(*self._data.arguments, callbacks=callbacks, **self._data.fit)

    def calibration(self) -> Iterator[Any]:
        """Batches of the model's inputs, some hundred samples from all over the data."""
        return self._data.calibration()


def _tf_keras_loss(loss: Any) -> Any:
    if isinstance(loss, keras.losses.Loss):
        return translate(loss, "losses", TO_TF_KERAS, f"the loss {type(loss).__name__}")
    return loss  # a name, or a function of TensorFlow's tensors


def is_plain(model: keras.Model) -> bool:
    """Whether the model trains as `keras.Model` does, with no step or loss of its own."""
    names = ("train_step", "compute_loss", "compute_metrics", "fit", "compile")
    return all(getattr(type(model), name) is getattr(keras.Model, name) for name in names)

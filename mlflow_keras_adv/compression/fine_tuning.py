"""Fine-tuning of a compressed model, in Keras 3 or in tf_keras."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

from mlflow_keras_adv.compat.tf_keras import is_callback
from mlflow_keras_adv.compression.judged import judged
from mlflow_keras_adv.compression.layer_translation import TO_TF_KERAS, translate
from mlflow_keras_adv.compression.training_data import read_training_data
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.extras import extra
from mlflow_keras_adv.metrics.judge import CONFIGURED, Judge, compiled_with

with extra("compression"):
    import tf_keras

_NOT_OURS = {
    "initial_epoch": "compression starts a training of its own",
    "validation_split": "split the data yourself and give validation_data",
    "x": "give the data as the second argument",
    "y": "give the labels with the data, as (x, y)",
}


class FineTuning:
    """The arguments of a training, checked before it starts; the model is given last.

    Args:
        model: The Keras 3 model to compress. What it was compiled with is used, but for the
            optimizer.
        train: As `training_data.EXPECTED` says.
        loss: As in `compile`, like the next three. None: the model's own.
        loss_weights: Weights of several outputs.
        metrics: Metrics; [] for none.
        weighted_metrics: Metrics with sample weights; [] for none.
        optimizer: A Keras 3 optimizer, of which a fresh one of the same settings is made; None:
            Adam.
        learning_rate: Learning rate of that Adam.
        fit: Further arguments of `fit`.

    Attributes:
        sample: A few of the model's inputs.
        total_steps: Batches of the whole training.

    Raises:
        TypeError: `train` is something else.
        ValueError: An argument of `fit` that would make the schedule wrong.
        UserError: No data, an endless dataset, no loss, an optimizer that averages weights, or a
            loss, metrics or labels that do not fit the model's outputs.
    """

    def __init__(
        self,
        model: keras.Model,
        train: Any,
        *,
        loss: Any,
        loss_weights: Any,
        metrics: Any,
        weighted_metrics: Any,
        optimizer: keras.optimizers.Optimizer | None,
        learning_rate: float,
        fit: Mapping[str, Any],
    ) -> None:
        for name in fit:
            if name in _NOT_OURS:
                raise ValueError(f"{name} cannot be chosen here: {_NOT_OURS[name]}")
        settings = dict(fit)
        self._callbacks = list(settings.pop("callbacks", None) or [])
        given = (loss, loss_weights, metrics, weighted_metrics)
        own = {key: v for key, v in zip(CONFIGURED, given, strict=True) if v is not None}
        self._configured = {**compiled_with(model, own), **own}
        if "loss" not in self._configured:
            raise UserError(
                f"model {model.name!r} is not compiled with a loss to train on; pass loss=…, "
                "such as keras.losses.SparseCategoricalCrossentropy(from_logits=True)"
            )
        self._optimizer = optimizer or keras.optimizers.Adam(learning_rate)
        if getattr(self._optimizer, "use_ema", False):
            raise UserError(
                "the optimizer has use_ema=True: at the end it would replace the compressed weights"
                " by averages of older ones. Use the same optimizer without it."
            )
        self._model = model
        self._data = read_training_data(train, settings)
        self.sample, *expected = self._data.sample
        self.total_steps = self._data.steps_per_epoch * self._data.fit["epochs"]
        if self._data.fit.get("class_weight") is not None and expected[1] is not None:
            raise ValueError("give class_weight or sample weights, not both, as in Keras' fit")
        self._judge = Judge(model, self._configured)
        if is_plain(model):
            self._judge.try_on(model(self.sample, training=False), *expected)

    def for_tf_keras(self) -> dict[str, Any]:
        """The compile arguments of the training in tf_keras.

        Raises:
            UserError: tf_keras has no such optimizer or callback.
        """
        for callback in self._callbacks:
            # Keras 3 asks its callbacks nothing; tf_keras asks each which hooks it has.
            if not is_callback(callback):
                raise UserError(
                    f"the callback {type(callback).__name__} is one of Keras 3, but this training "
                    "runs in tf_keras; use the class of that name in tf_keras.callbacks"
                )
        return {
            "optimizer": translate(self._optimizer, "optimizers", TO_TF_KERAS, "the optimizer"),
            "run_eagerly": bool(getattr(self._model, "run_eagerly", False)),
        }

    def in_tf_keras(self, model: tf_keras.Model, compiled: Mapping[str, Any]) -> tf_keras.Model:
        """The same layers as a compiled model, which trains as Keras 3 would.

        Args:
            model: Made of what `to_tf_keras` has made of the Keras 3 model.
            compiled: From `for_tf_keras`.
        """
        trained = judged(model, self._judge, self._model)
        trained.compile(**compiled)
        return trained

    def for_keras(self) -> dict[str, Any]:
        """The arguments of Keras 3's `compile`."""
        optimizer = self._optimizer
        return {
            "optimizer": type(optimizer).from_config(optimizer.get_config()),
            **self._configured,
        }

    def fit(self, model: Any, callbacks: Sequence[Any]) -> Any:
        """Trains a compiled model of either library, with callbacks before the caller's own."""
        callbacks = [*callbacks, *self._callbacks]
        return model.fit(*self._data.arguments, callbacks=callbacks, **self._data.fit)

    def calibration(self) -> Iterator[Any]:
        """Batches of the model's inputs, some hundred samples from all over the data."""
        return self._data.calibration()


def is_plain(model: keras.Model) -> bool:
    """Whether the model trains as `keras.Model` does, with no step or loss of its own."""
    names = ("train_step", "compute_loss", "compute_metrics", "fit", "compile")
    return all(getattr(type(model), name) is getattr(keras.Model, name) for name in names)

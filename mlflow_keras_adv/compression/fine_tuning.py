"""The training in which a compressed model finds its way back, in Keras 3 or in tf_keras."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mlflow_keras_adv.compression.judged import judged
from mlflow_keras_adv.compression.layer_translation import TO_TF_KERAS, translate
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.extras import extra
from mlflow_keras_adv.metrics.judge import CONFIGURED, Judge, compiled_with

with extra("compression"):
    import tf_keras

_SAMPLES = 8  # on which models are proved equal
_NOT_OURS = {
    "steps_per_epoch": "the schedule is laid on all batches; shorten a dataset with .take(n)",
    "initial_epoch": "compression starts a training of its own",
    "validation_split": "split the data yourself and give validation_data",
    "x": "give the data as the second argument",
    "y": "give the labels with the data, as (x, y)",
}


class FineTuning:
    """What a training needs, known before it starts; the model comes last.

    Args:
        model: The Keras 3 model to compress. What it was compiled with is used, but for the
            optimizer.
        train: `(x, y)` or `(x, y, sample_weight)` of arrays, or a finite `tf.data.Dataset` of
            batches.
        loss: As of `compile`; None: the model's own. So are the next three.
        loss_weights: Of several outputs.
        metrics: An empty list: none.
        weighted_metrics: An empty list: none.
        optimizer: A Keras 3 optimizer, of which a fresh one of the same settings is made; None:
            Adam.
        learning_rate: Of that Adam.
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
        self._fit = {"epochs": 1, **fit}
        self._callbacks = list(self._fit.pop("callbacks", None) or [])
        given = (loss, loss_weights, metrics, weighted_metrics)
        own = {key: v for key, v in zip(CONFIGURED, given, strict=True) if v is not None}
        self._configured = {**compiled_with(model), **own}
        if "loss" not in self._configured:
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
        self._model = model
        self._data, (self.sample, *expected), steps_per_epoch = self._read(train)
        if self._fit["epochs"] < 1:
            raise ValueError(f"epochs is {self._fit['epochs']!r}; expected 1 or more")
        self.total_steps = steps_per_epoch * self._fit["epochs"]
        if self._fit.get("class_weight") is not None and expected[1] is not None:
            raise ValueError("give class_weight or sample weights, not both, as in Keras' fit")
        self._judge = Judge(model, self._configured)
        if is_plain(model):
            self._judge.try_on(model(self.sample, training=False), *expected)

    def for_tf_keras(self) -> dict[str, Any]:
        """What the training in tf_keras needs of tf_keras.

        Raises:
            UserError: tf_keras has no such optimizer or callback.
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
        return model.fit(*self._data, callbacks=[*callbacks, *self._callbacks], **self._fit)

    def _read(self, train: Any) -> tuple[tuple[Any, ...], list[Any], int]:
        """What `fit` takes by position, a few samples (x, y, weights), and batches of an epoch."""
        if isinstance(train, tf.data.Dataset):
            if "batch_size" in self._fit:
                raise ValueError("batch_size is the dataset's own; leave it out")
            self._fit["shuffle"] = False  # its own matter; Keras warns of the default
            return (train,), *_measure(train)
        if not isinstance(train, tuple) or not 2 <= len(train) <= 3:
            raise TypeError(
                f"train is a {type(train).__name__}; expected (x, y), (x, y, sample_weight) or a "
                "tf.data.Dataset of batches"
            )
        if len(train) == 3:
            self._fit["sample_weight"] = train[2]
        counts = {len(array) for array in keras.tree.flatten(train) if array is not None}
        if len(counts) != 1 or 0 in counts:
            raise UserError(
                f"train holds arrays of {sorted(counts)} samples; expected the same number in each,"
                " and at least one"
            )
        size = self._fit.setdefault("batch_size", 32)
        return train[:2], _few(train), math.ceil(counts.pop() / size)


def _few(data: tuple[Any, ...]) -> list[Any]:
    """A few samples of (x, y) or (x, y, weights), as three."""
    parts = [keras.tree.map_structure(_head, part) for part in data]
    return [*parts, None][:3]


def _head(array: Any) -> Any:
    return None if array is None else np.asarray(array[:_SAMPLES])


def _measure(dataset: tf.data.Dataset) -> tuple[list[Any], int]:
    """A few samples of a dataset of batches, and how many batches there are."""
    batches = int(dataset.cardinality())
    if batches == tf.data.INFINITE_CARDINALITY:
        raise UserError("train is an endless dataset; say how much of it an epoch is: .take(n)")
    if batches == tf.data.UNKNOWN_CARDINALITY:
        batches = sum(1 for _ in dataset)
    if batches == 0:
        raise UserError("train is an empty dataset; give at least one batch")
    first = next(iter(dataset))
    if not isinstance(first, tuple):
        raise UserError("train is a dataset without labels; expected batches of (x, y)")
    return _few(first), batches


def is_plain(model: keras.Model) -> bool:
    """Whether the model trains as `keras.Model` does, with no step or loss of its own."""
    names = ("train_step", "compute_loss", "compute_metrics", "fit", "compile")
    return all(getattr(type(model), name) is getattr(keras.Model, name) for name in names)

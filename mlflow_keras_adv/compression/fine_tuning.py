"""The training in which a compressed model finds its way back, in Keras 3 or in tf_keras."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mlflow_keras_adv.compression.layer_translation import TO_TF_KERAS, translate
from mlflow_keras_adv.errors import UserError

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
        model: The Keras 3 model to compress; of its `compile`, the loss is used.
        train: `(x, y)` or `(x, y, sample_weight)` of arrays, or a finite `tf.data.Dataset` of
            batches.
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
        self._fit = {"epochs": 1, **fit}
        self._callbacks = list(self._fit.pop("callbacks", None) or [])
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
        self._data, self.sample, steps_per_epoch = self._read(train)
        if self._fit["epochs"] < 1:
            raise ValueError(f"epochs is {self._fit['epochs']!r}; expected 1 or more")
        self.total_steps = steps_per_epoch * self._fit["epochs"]

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
        model.fit(*self._data, callbacks=[*callbacks, *self._callbacks], **self._fit)

    def _read(self, train: Any) -> tuple[tuple[Any, ...], Any, int]:
        """What `fit` takes by position, some inputs, and the batches of an epoch."""
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
        sample = keras.tree.map_structure(lambda array: np.asarray(array[:_SAMPLES]), train[0])
        return train[:2], sample, math.ceil(counts.pop() / size)


def _measure(dataset: tf.data.Dataset) -> tuple[Any, int]:
    """Some inputs of a dataset of batches, and how many batches there are."""
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
    sample = keras.tree.map_structure(lambda tensor: tensor[:_SAMPLES].numpy(), first[0])
    return sample, batches


def _tf_keras_loss(loss: Any) -> Any:
    if isinstance(loss, keras.losses.Loss):
        return translate(loss, "losses", TO_TF_KERAS, f"the loss {type(loss).__name__}")
    return loss  # a name, or a function of TensorFlow's tensors


def is_plain(model: keras.Model) -> bool:
    """Whether the model trains as `keras.Model` does, with no step or loss of its own."""
    names = ("train_step", "compute_loss", "compute_metrics", "fit", "compile")
    return all(getattr(type(model), name) is getattr(keras.Model, name) for name in names)

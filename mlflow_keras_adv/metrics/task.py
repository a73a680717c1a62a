"""Tasks: what kind of answer a model gives, told by its loss and shapes, never guessed."""

from typing import Any, Literal, get_args

import keras
import numpy as np

Task = Literal["classification", "binary", "multi-label", "regression"]
TASKS = get_args(Task)

_SPARSE = ("SparseCategoricalCrossentropy", "sparse_categorical_crossentropy")
_ONE_HOT = (
    *("CategoricalCrossentropy", "CategoricalFocalCrossentropy", "CategoricalHinge"),
    *("categorical_crossentropy", "categorical_focal_crossentropy", "categorical_hinge"),
)
_BINARY = (
    *("BinaryCrossentropy", "BinaryFocalCrossentropy", "Hinge", "SquaredHinge"),
    *("binary_crossentropy", "binary_focal_crossentropy", "hinge", "squared_hinge"),
)
_REAL = (
    *("MeanSquaredError", "MeanAbsoluteError", "MeanAbsolutePercentageError", "Huber", "LogCosh"),
    *("MeanSquaredLogarithmicError", "Poisson", "mse", "mae", "mape", "msle", "huber", "poisson"),
    *("mean_squared_error", "mean_absolute_error", "mean_absolute_percentage_error", "log_cosh"),
    "mean_squared_logarithmic_error",
)


def task_of(loss: Any, answers: Any) -> Task | None:
    """The task of one output.

    Args:
        loss: Its loss, as `compile` was given it: an object, a function or a name.
        answers: What the model answers, of shape [samples, …].

    Returns:
        None where it is open: a loss of the user's own, or none at all.
    """
    names = {each.__name__ for each in type(loss).__mro__}
    names.add(loss if isinstance(loss, str) else getattr(loss, "__name__", ""))
    shape = np.shape(answers)
    if names & {*_SPARSE, *_ONE_HOT}:
        return "classification"
    if names & {*_BINARY}:
        return "multi-label" if len(shape) == 2 and shape[-1] > 1 else "binary"
    return "regression" if names & {*_REAL} else None


def is_logits(loss: Any) -> bool | None:
    """Whether a loss takes logits; None where it does not say."""
    if isinstance(loss, str):
        return False
    if not isinstance(loss, keras.losses.Loss):
        return None
    return bool(loss.get_config().get("from_logits", False))


def classes_of(labels: Any, answers: Any) -> np.ndarray:
    """Labels of classes as integers, of the shape of the answers without their last axis.

    Args:
        labels: Integers of that shape, or with a last axis of 1; or one-hot, of the answers' shape.
        answers: Scores of shape [samples, …, classes].

    Raises:
        ValueError: Labels of another shape, or numbers that are no classes.
    """
    labels, shape = np.asarray(labels), np.shape(answers)
    if labels.shape == shape and shape[-1] > 1:
        return labels.argmax(axis=-1)
    if labels.shape == (*shape[:-1], 1):
        labels = labels[..., 0]
    if labels.shape != shape[:-1]:
        raise ValueError(
            f"Received labels of shape {labels.shape} for answers of shape {shape}; expected "
            f"integers of shape {shape[:-1]}, or one-hot labels of shape {shape}."
        )
    if labels.dtype.kind not in "iub" and not np.array_equal(labels, np.floor(labels)):
        raise ValueError("Received labels that are no whole numbers; expected classes, from 0.")
    return labels.astype(np.int64)

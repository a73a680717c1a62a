"""Tasks: the kind of a model's outputs, by its loss and shapes, never guessed.

A `Task` says what a single number of an output means, and so how it is scored. A `Kind` is the
common name of the whole task, and decides on figures and tables: overlays for the classes of
pixels, a table of tags for those of words.
"""

from typing import Any, Literal, get_args

import keras
import numpy as np

from mlflow_keras_adv.errors import UserError

Task = Literal["classification", "binary", "multi-label", "regression"]
TASKS = get_args(Task)

Kind = Literal[
    "classification",
    "binary",
    "multi-label",
    "regression",
    "segmentation",
    "tagging",
    "forecast",
    "reconstruction",
]
KINDS = get_args(Kind)

# What the numbers of a binary answer are: of a margin, as that of a hinge loss, the sign counts.
Scale = Literal["probabilities", "logits", "margins"]

_SPARSE = ("SparseCategoricalCrossentropy", "sparse_categorical_crossentropy")
_ONE_HOT = (
    *("CategoricalCrossentropy", "CategoricalFocalCrossentropy", "CategoricalHinge"),
    *("categorical_crossentropy", "categorical_focal_crossentropy", "categorical_hinge"),
)
_HINGE = ("Hinge", "SquaredHinge", "hinge", "squared_hinge")
_BINARY = (
    *("BinaryCrossentropy", "BinaryFocalCrossentropy"),
    *("binary_crossentropy", "binary_focal_crossentropy", *_HINGE),
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
    names, shape = _names_of(loss), np.shape(answers)
    if names & {*_SPARSE, *_ONE_HOT}:
        return "classification"
    if names & {*_BINARY}:
        return "multi-label" if len(shape) == 2 and shape[-1] > 1 else "binary"
    return "regression" if names & {*_REAL} else None


def kind_of(
    labels: Any,
    answers: Any,
    *,
    loss: Any = None,
    inputs: Any = None,
    ending: str | None = None,
    hint: Task | Literal["classes"] | None = None,
) -> Kind:
    """The kind of one output; each of `forecast` only where the user says so.

    Args:
        labels: What was asked for.
        answers: What the model answers, of shape [samples, …].
        loss: Its loss, as `compile` was given it; None if that is not known.
        inputs: What the model was given: where labels are these, it reconstructs.
        ending: "softmax" or "sigmoid", if it is known that the output ends in it.
        hint: What else says "regression", or that these are "classes" of some kind.

    Raises:
        UserError: It is open, or labels and answers do not fit each other.
    """
    labels, answers = np.asarray(labels), np.asarray(answers)
    if _are_the_inputs(labels, answers, inputs):
        return "reconstruction"
    task = task_of(loss, answers) or _task_of_values(labels, answers, ending, hint)
    axes = answers.ndim
    if task == "classification":
        if axes < 3:
            return "classification"
        return "tagging" if axes == 3 else "segmentation"
    if task == "regression" or not _are_yes_and_no(labels):
        return "regression"
    if axes > 3:
        return "segmentation"
    return "tagging" if axes == 3 and answers.shape[-1] == 1 else task


def scale_of(answers: Any, *, loss: Any = None, ending: str | None = None) -> Scale:
    """Tells whether binary or multi-label outputs are probabilities, logits or margins.

    Args:
        answers: Answers of any shape.
        loss: Their loss; None if that is not known.
        ending: "sigmoid", if it is known that the output ends in it.
    """
    if _names_of(loss) & {*_HINGE}:
        return "margins"
    logits = is_logits(loss) if ending is None else False
    if logits is None:
        known = np.asarray(answers)[np.isfinite(answers)]
        logits = bool(((known < 0) | (known > 1)).any())
    return "logits" if logits else "probabilities"


def ignored_by(loss: Any) -> int | None:
    """The label that stands for none, by the loss; None without."""
    ignored = _config_of(loss).get("ignore_class")
    return None if ignored is None else int(ignored)


def is_logits(loss: Any) -> bool | None:
    """Whether a loss takes logits; None where it does not say."""
    if isinstance(loss, str):
        return False
    if not _config_of(loss):
        return None
    return bool(_config_of(loss).get("from_logits", False))


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


def _names_of(loss: Any) -> set[str]:
    """The name of a loss, and the names of its base classes."""
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)  # of "mse" the function
        except ValueError:
            return {loss}
    return {each.__name__ for each in type(loss).__mro__} | {getattr(loss, "__name__", "")}


def _config_of(loss: Any) -> dict[str, Any]:
    """The configuration of a loss; empty for a function, and for a loss that does not tell it."""
    if isinstance(loss, str | type) or not hasattr(loss, "get_config"):
        return {}
    try:
        return dict(loss.get_config())
    except NotImplementedError:
        return {}


def _are_the_inputs(labels: np.ndarray, answers: np.ndarray, inputs: Any) -> bool:
    given = keras.tree.flatten(inputs)
    if len(given) != 1 or labels.ndim < 2 or np.size(labels) != np.size(answers):
        return False
    return np.shape(given[0]) == labels.shape and bool(np.all(labels == np.asarray(given[0])))


def _are_yes_and_no(labels: np.ndarray) -> bool:
    """Whether they are 0 and 1, or as those of a hinge loss -1 and 1."""
    return bool(np.isin(labels, (0, 1)).all() or np.isin(labels, (-1, 1)).all())


def _task_of_values(
    labels: np.ndarray, answers: np.ndarray, ending: str | None, hint: str | None
) -> Task:
    """The task by labels and outputs alone, if no loss is known.

    Raises:
        UserError: They leave it open, or do not fit each other.
    """
    shape = answers.shape
    several = answers.ndim > 1 and shape[-1] > 1
    if hint in TASKS:
        return hint  # type: ignore[return-value]
    if several and labels.shape in (shape[:-1], (*shape[:-1], 1)):
        if _are_whole(labels):
            return "classification"
    elif labels.shape in (shape, shape[:-1], (*shape, 1)):
        if not _are_yes_and_no(labels):
            return "regression"
        one_hot = several and bool((labels.sum(axis=-1) == 1).all())
        if one_hot and (ending == "softmax" or (ending is None and _are_distributions(answers))):
            return "classification"
        if ending == "sigmoid" or (hint == "classes" and not one_hot):
            return "multi-label" if several and len(shape) == 2 else "binary"
        raise UserError(
            f"Labels that are 0 or 1, for answers of shape {shape}: nothing says whether these are "
            "classes, decisions or numbers. Compile the model with its loss, or say "
            'task="classification", "binary", "multi-label" or "regression".'
        )
    raise UserError(
        f"Received labels of shape {labels.shape} and dtype {labels.dtype} for answers of shape "
        f"{shape}; expected classes, whole numbers of shape {shape[:-1]}, or labels of the shape "
        "of the answers."
    )


def _are_whole(labels: np.ndarray) -> bool:
    if labels.dtype.kind in "iub":
        return True
    return labels.dtype.kind == "f" and bool(np.array_equal(labels, np.floor(labels)))


def _are_distributions(answers: np.ndarray) -> bool:
    return bool((answers >= 0).all()) and bool(np.allclose(answers.sum(axis=-1), 1, atol=1e-2))

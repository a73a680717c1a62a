"""Views: numbers, tables and figures of the predictions on one output."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mlflow_keras_adv.metrics.directions import Mode
from mlflow_keras_adv.metrics.task import Scale

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Output:
    """Predictions on one output of a model, and their labels.

    Attributes:
        labels: Labels of the answers' shape, or without their last axis.
        answers: Answers of shape [samples, …].
        weights: [samples] or [samples, …]: how much each counts; 0 where it is masked.
        inputs: What the model was given; drawn if it is an array.
        names: Names of the classes, labels, tags or targets.
        scale: What the numbers of a decision are.
        bins: Number of bins of the calibration error.
        from_logits: Whether scores of classes are logits; None: if they do not look like shares.
    """

    labels: Array
    answers: Array
    weights: Array | None = None
    inputs: Any = None
    names: Sequence[Any] | None = None
    scale: Scale = "probabilities"
    bins: int = 15
    from_logits: bool | None = None

    def names_of(self, count: int) -> list[Any]:
        """The names, or numbers.

        Raises:
            ValueError: There are names, but not that many different ones.
        """
        if self.names is None:
            return list(range(count))
        names = list(self.names)
        if len(names) != count or len(set(names)) != count:
            raise ValueError(f"Received the names {names}; expected {count} different ones.")
        return names


@dataclass(frozen=True, eq=False)
class View:
    """The numbers, tables and figures of one output.

    Attributes:
        numbers: By name; of two kinds of task the same name is the same thing.
        directions: Which way each is better that has one, "min" or "max".
        rows: A row for each sample that counts, the worst first; `index` says which it is.
        tables: By name.
        figures: By name, drawn when called.
        unseen: Sentences: what cannot be shown of these answers, and why.
    """

    numbers: Mapping[str, float]
    directions: Mapping[str, Mode]
    rows: pd.DataFrame
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    figures: Mapping[str, Callable[[], Figure]] = field(default_factory=dict)
    unseen: Sequence[str] = ()


def like_answers(labels: Array, answers: Array) -> Array:
    """Labels in the shape of the answers, from which they may differ by axes of size 1.

    Raises:
        ValueError: They differ by more.
    """
    labels, answers = np.asarray(labels), np.asarray(answers)
    if len(labels) != len(answers) or _wide(labels) != _wide(answers):
        raise ValueError(
            f"Received labels of shape {labels.shape} for answers of shape {answers.shape}; "
            "expected the same shape."
        )
    return labels.reshape(answers.shape)


def spread(weights: Array | None, places: tuple[int, ...]) -> Array:
    """Weights of samples, or of parts of them, as float64 for each place of an answer.

    Args:
        weights: Shape [samples], or with more of the axes; None: 1 each.
        places: The answers' shape without what belongs to one place.

    Raises:
        ValueError: They do not fit.
    """
    if weights is None:
        return np.ones(places)
    given = np.asarray(weights, np.float64)
    while given.ndim > len(places) and given.shape[-1] == 1:
        given = given[..., 0]
    fits = given.ndim <= len(places) and all(
        size in (1, place) for size, place in zip(given.shape, places, strict=False)
    )
    if not fits or given.shape[:1] != places[:1]:
        raise ValueError(
            f"Received weights of shape {np.shape(weights)} for answers at {places} places; "
            "expected one for each sample, or for each place."
        )
    return np.broadcast_to(given.reshape(given.shape + (1,) * (len(places) - given.ndim)), places)


def per_sample(values: Array, weights: Array) -> Array:
    """Weighted mean of each sample, over all that it has; NaN where nothing counts."""
    values, weights = values.reshape(len(values), -1), weights.reshape(len(values), -1)
    total = weights.sum(axis=1)
    sums = (values * np.where(weights > 0, weights, 0)).sum(axis=1, where=weights > 0)
    return np.divide(sums, total, out=np.full(len(values), np.nan), where=total > 0)


def worst_first(columns: Mapping[str, Any], badness: Array, counted: Array) -> pd.DataFrame:
    """Rows of samples, ordered.

    Args:
        columns: Columns of all samples.
        badness: What is shown first has most; what is NaN before all else.
        counted: Whether a sample counts; else it has no row.
    """
    order = np.argsort(-np.nan_to_num(badness, nan=np.inf, posinf=np.inf), kind="stable")
    order = order[counted[order]]
    table = pd.DataFrame({"index": np.arange(len(badness)), **columns})
    return table.iloc[order].reset_index(drop=True)


def counted_at_all(counted: Array) -> Array:
    """Whether anything of a sample counts, shape [samples]."""
    return np.asarray(counted.reshape(len(counted), -1).any(axis=1))


def are_images(inputs: Any) -> bool:
    """Whether this is an array of shape [n, height, width] or [n, height, width, 1 or 3]."""
    shape = tuple(getattr(inputs, "shape", ()))
    return len(shape) == 3 or (len(shape) == 4 and shape[-1] in (1, 3))


def _wide(array: Array) -> tuple[int, ...]:
    return tuple(size for size in array.shape[1:] if size != 1)

"""Segmentation: a class, or a binary decision for each class, at every pixel."""

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mlflow_keras_adv.metrics.views.classes import Decided, yes_shares
from mlflow_keras_adv.metrics.views.pictures import (
    MAX_PAIRS,
    bars_figure,
    columns_figure,
    confusion_figure,
    in_unit_range,
)
from mlflow_keras_adv.metrics.views.view import (
    Array,
    Output,
    View,
    like_answers,
    spread,
    worst_first,
)


def segmentation(output: Output) -> View:
    """Shows a class for each pixel: scores of shape [samples, …, classes].

    One score, [samples, …, 1] or [samples, …], is that of a yes; of several that are decided each
    for itself, labels are of the scores' shape and not one-hot.
    """
    answers = np.asarray(output.answers, np.float64)
    labels = np.asarray(output.labels)
    if answers.ndim == 3 and labels.shape in (answers.shape, (*answers.shape, 1)):
        answers = answers[..., None]
    several = answers.shape[-1] > 1 and labels.shape == answers.shape
    if several and not (labels.sum(axis=-1) == 1).all():
        return _each_for_itself(output, answers)
    decided = Decided.of(Output(**{**vars(output), "answers": answers}))
    classes, names = len(decided.names), decided.names
    counts = decided.counts()
    weights = decided.weights
    found, asked = _sets(decided.chosen, classes), _sets(decided.labels, classes)
    rows = _rows(asked, found, weights, decided.labels == decided.chosen)
    # Where there is no answer the label is missed all the same.
    table = _table(names, asked, found, weights)
    right = np.average(decided.labels == decided.chosen, weights=weights)
    numbers = {"accuracy": float(right), "mean_iou": float(table["iou"].mean())}
    return View(
        numbers,
        {"accuracy": "max", "mean_iou": "max"},
        rows,
        {
            "per_class": table,
            "confusion_counts": pd.DataFrame(counts, columns=names).assign(label=names),
        },
        {
            "iou": lambda: _iou_figure(table),
            "confusion_matrix": lambda: confusion_figure(counts, names),
            **_overlays(output.inputs, decided.labels, decided.chosen, rows),
        },
    )


def _each_for_itself(output: Output, answers: Array) -> View:
    labels = like_answers(output.labels, answers) > 0
    shares = yes_shares(answers, output.scale)
    found = shares > 0.5
    weights = spread(output.weights, answers.shape[:-1])
    names = output.names_of(answers.shape[-1])
    if not (weights > 0).any():
        raise ValueError("All samples are masked, or have the weight 0.")
    table = _table(names, labels, found, weights)
    right = (labels == found) & ~np.isnan(answers)
    numbers = {
        "binary_accuracy": float(np.average(right.mean(axis=-1), weights=weights)),
        "mean_iou": float(table["iou"].mean()),
    }
    rows = _rows(labels, found, weights, right.mean(axis=-1))
    return View(
        numbers,
        {"binary_accuracy": "max", "mean_iou": "max"},
        rows,
        {"per_class": table},
        {
            "iou": lambda: _iou_figure(table),
            # A colour for each pixel: of several classes there the last one.
            **_overlays(output.inputs, _last(labels), _last(found), rows),
        },
    )


def _sets(classes: Array, count: int) -> Array:
    """For each class whether it is there, along a new last axis."""
    return np.asarray(classes)[..., None] == np.arange(count)


def _table(names: list[Any], asked: Array, found: Array, weights: Array) -> pd.DataFrame:
    """A row for each class: `iou` is NaN of one that nobody asked for and nobody found."""
    axes = tuple(range(weights.ndim))
    each = weights[..., None]
    both, either = ((asked & found) * each).sum(axes), ((asked | found) * each).sum(axes)
    wanted, given = (asked * each).sum(axes), (found * each).sum(axes)
    with np.errstate(invalid="ignore"):
        return pd.DataFrame(
            {
                "class": names,
                "pixels": wanted,
                "predicted": given,
                "iou": both / either,
                "precision": both / given,
                "recall": both / wanted,
            }
        )


def _rows(asked: Array, found: Array, weights: Array, right: Array) -> pd.DataFrame:
    """A row for each sample: the share of its pixels that is right, and its mean IoU."""
    axes = tuple(range(1, weights.ndim))
    each = weights[..., None]
    both, either = ((asked & found) * each).sum(axes), ((asked | found) * each).sum(axes)
    known = either > 0
    ratio = np.divide(both, either, out=np.zeros(both.shape), where=known)
    counted = weights.reshape(len(weights), -1).sum(axis=1)
    iou = ratio.sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    sums = (right * weights).reshape(len(weights), -1).sum(axis=1)
    accuracy = np.divide(sums, counted, out=np.zeros(len(sums)), where=counted > 0)
    return worst_first({"accuracy": accuracy, "mean_iou": iou}, 1 - iou, counted > 0)


def _last(sets: Array) -> Array:
    """The last class of each pixel, from 1; 0 for none."""
    return (sets * np.arange(1, sets.shape[-1] + 1)).max(axis=-1)


def _iou_figure(table: pd.DataFrame) -> Figure:
    mean = table["iou"].mean()
    title = f"mean IoU {mean:.3f}"
    return bars_figure(table["class"].tolist(), table["iou"].to_numpy(), what="IoU", title=title)


def _overlays(inputs: Any, labels: Array, chosen: Array, rows: pd.DataFrame) -> dict[str, Any]:
    """Pictures, for images and not for volumes: all classes but the first, in colour, over them."""
    if labels.ndim != 3:
        return {}

    def overlays() -> Figure:
        places = np.linspace(0, len(rows) - 1, min(MAX_PAIRS, len(rows))).round().astype(int)
        shown = rows.iloc[places]
        index = shown["index"].to_numpy()
        captions = [f"IoU {value:.2f}" for value in shown["mean_iou"]]
        base = _grey(inputs, index, labels.shape)
        columns = {} if base is None else {"given": base}
        for title, classes in (("label", labels), ("predicted", chosen)):
            columns[title] = _coloured(classes[index], base)
        return columns_figure(columns, captions)

    return {"overlays": overlays}


def _grey(inputs: Any, index: Array, shape: tuple[int, ...]) -> Array | None:
    """The pictures that were given, if they are of the labels' size."""
    given = tuple(getattr(inputs, "shape", ()))
    if given[:3] != shape or given[3:] not in ((), (1,), (3,)):
        return None
    images = in_unit_range(np.asarray(inputs)[index])[0].reshape(len(index), *shape[1:], -1)
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def _coloured(classes: Array, base: Array | None) -> Array:
    colours = matplotlib.colormaps["tab10"]((classes - 1) % 10)[..., :3]
    under = np.full((*classes.shape, 3), 0.0) if base is None else base
    mixed = 0.5 * colours + 0.5 * under
    return np.where((classes > 0)[..., None], mixed, under)

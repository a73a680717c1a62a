"""Pictures that several tasks have in common: confusion, samples, bars, reliability, pairs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MAX_TILES = 25
# Of more classes neither names nor counts can be read.
MAX_WRITTEN_CLASSES = 20
MAX_PAIRS = 8
MAX_BARS = 50

Array = np.ndarray[Any, Any]


def confusion_figure(counts: Array, names: Sequence[Any]) -> Figure:
    """A confusion matrix, coloured by the share of each label's samples.

    Args:
        counts: An array `[classes, classes]`: rows are labels, columns predictions: integers, or
            sums of weights.
        names: Names of the classes.
    """
    classes = len(counts)
    side = 3 + 0.3 * min(classes, MAX_WRITTEN_CLASSES)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    tiny = np.finfo(np.float64).tiny
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), tiny)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    correct = np.trace(counts) / max(counts.sum(), tiny)
    title = f"{correct:.1%} of {counts.sum():.6g} correct"
    axes.set(xlabel="predicted", ylabel="label", title=title)
    if classes <= MAX_WRITTEN_CLASSES:
        axes.set_xticks(range(classes), names, rotation=90)
        axes.set_yticks(range(classes), names)
        for row, column in np.argwhere(counts):
            shade = "white" if shares[row, column] > 0.5 else "black"
            text = f"{counts[row, column]:.6g}"
            axes.text(column, row, text, color=shade, ha="center", va="center", fontsize="small")
    return figure


def samples_figure(images: Array, captions: Sequence[str], correct: Array) -> Figure:
    """A grid of the first samples, the captions of wrong ones in red.

    Args:
        images: Shape `[n, height, width]` or `[n, height, width, 1 or 3]`, of any range.
        captions: One for each image.
        correct: Bools of shape `[n]`.
    """
    images = np.asarray(images[:MAX_TILES], np.float64)
    images = images.reshape(*images.shape[:3], -1)
    lowest, highest = images.min(), images.max()
    count, height, width, channels = images.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = int(np.ceil(count / columns))
    # One picture of all: an axes for each would take most of a second to draw.
    room = max(height, width) // 4 + 1  # above each image, for its caption
    gap = width // 12 + 1
    picture = np.ones((rows * (height + room), columns * (width + gap), channels))
    figure = Figure(figsize=(1.3 * columns, 1.6 * rows), layout="tight")
    axes = figure.subplots()
    axes.set_axis_off()
    for place, image in enumerate(images):
        top, left = place // columns * (height + room) + room, place % columns * (width + gap)
        shown = (image - lowest) / (highest - lowest or 1)
        picture[top : top + height, left : left + width] = shown
        color = "black" if correct[place] else "red"
        middle, above = left + width / 2, top - 0.5 - room / 6
        axes.text(middle, above, captions[place], color=color, ha="center", va="bottom", size=9)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
    return figure


def reliability_figure(table: pd.DataFrame, error: float) -> Figure:
    """Accuracy by confidence, with the count of samples below.

    Args:
        table: From `classes.calibration_table`.
        error: The expected calibration error, for the title.
    """
    figure = Figure(figsize=(5, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = table["up_to"] - table["above"]
    bars = {"x": table["above"], "width": width, "align": "edge", "edgecolor": "white"}
    above.bar(height=table["accuracy"].fillna(0), color="C0", **bars)
    above.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
    above.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    above.set_title(f"expected calibration error {error:.3f}, {len(table)} bins")
    below.bar(height=table["samples"], color="0.6", **bars)
    below.set(xlabel="confidence", ylabel="samples")
    return figure


def bars_figure(names: Sequence[Any], values: Array, *, what: str, title: str) -> Figure:
    """A bar for each class or label, the first fifty.

    Args:
        names: One for each value.
        values: From 0 to 1; NaN has no bar.
        what: What they are, for the axis.
        title: Above it.
    """
    shown = list(names)[:MAX_BARS]
    figure = Figure(figsize=(5, 1.2 + 0.25 * len(shown)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(shown)), np.nan_to_num(np.asarray(values[: len(shown)], np.float64)))
    axes.set_yticks(range(len(shown)), shown)
    axes.invert_yaxis()
    axes.set(xlabel=what, xlim=(0, 1), title=title)
    return figure


def columns_figure(columns: dict[str, Array], captions: Sequence[str]) -> Figure:
    """Images side by side, a row for each sample.

    Args:
        columns: By title, of shape `[n, height, width]` or with 1 or 3 channels; from 0 to 1.
        captions: One for each row.
    """
    rows = len(captions)
    figure = Figure(figsize=(1.7 * len(columns), 1.5 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, len(columns), squeeze=False)
    for place, (title, images) in enumerate(columns.items()):
        for row in range(rows):
            panel, image = panels[row, place], np.asarray(images[row], np.float64)
            image = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
            panel.imshow(np.clip(np.nan_to_num(image), 0, 1), cmap="gray", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
            if row == 0:
                panel.set_title(title, fontsize="small")
            if place == 0:
                panel.set_ylabel(captions[row], fontsize="x-small")
    return figure


def in_unit_range(*images: Array) -> list[Array]:
    """Arrays brought to 0 … 1, all by the range of the first."""
    first = np.asarray(images[0], np.float64)
    known = first[np.isfinite(first)]
    lowest, highest = (known.min(), known.max()) if known.size else (0.0, 1.0)
    return [(np.asarray(each, np.float64) - lowest) / (highest - lowest or 1) for each in images]


def pixels(figure: Figure) -> Array:
    """The figure drawn: uint8 of shape `[height, width, 3]`."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

"""Pictures of what a classifier predicts: its confusion matrix, and the samples themselves."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MAX_TILES = 25
# Of more classes neither names nor counts can be read.
MAX_WRITTEN_CLASSES = 20

Array = np.ndarray[Any, Any]


def confusion_figure(counts: Array, names: Sequence[Any]) -> Figure:
    """A confusion matrix, coloured by the share of each label's samples.

    Args:
        counts: Integers of shape `[classes, classes]`, rows are labels, columns predictions.
        names: Names of the classes.
    """
    classes = len(counts)
    side = 3 + 0.3 * min(classes, MAX_WRITTEN_CLASSES)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    correct = np.trace(counts) / max(counts.sum(), 1)
    axes.set(xlabel="predicted", ylabel="label", title=f"{correct:.1%} of {counts.sum()} correct")
    if classes <= MAX_WRITTEN_CLASSES:
        axes.set_xticks(range(classes), names, rotation=90)
        axes.set_yticks(range(classes), names)
        for row, column in np.argwhere(counts):
            shade = "white" if shares[row, column] > 0.5 else "black"
            text = str(counts[row, column])
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


def pixels(figure: Figure) -> Array:
    """The figure drawn: uint8 of shape `[height, width, 3]`."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

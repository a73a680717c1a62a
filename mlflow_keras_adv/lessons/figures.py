"""Figures of lessons: points of an embedding, predictions, pictures side by side."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import PredictionErrorDisplay


def embeddings_figure(points: Mapping[str, np.ndarray], labels: np.ndarray) -> Figure:
    """Draws a panel for each embedding, with a dot for each sample, coloured by its label.

    Args:
        points: Shape [n, dimensions], 2 dimensions or more, by the title of the panel. Of more than
            two dimensions, the two directions of largest variance are shown.
        labels: Integers, shape [n].
    """
    figure = Figure(figsize=(5 * len(points), 4.5), layout="constrained")
    panels = figure.subplots(1, len(points), squeeze=False)[0]
    for panel, (title, each) in zip(panels, points.items(), strict=True):
        if each.shape[1] > 2:
            centred = each - each.mean(axis=0)
            each = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
        dots = panel.scatter(*each.T, c=labels, cmap="tab10", s=8)
        panel.set(title=title, xticks=[], yticks=[])
    figure.colorbar(dots, label="class")
    return figure


def tiles(images: Any, columns: int, *, enlarged: int = 4) -> np.ndarray:
    """Joins images to one image, with a white line between them.

    Args:
        images: Shape [n, height, width, channels], from 0 to 1; n is a multiple of `columns`.
        columns: Number of images in a row.
        enlarged: Factor by which height and width are enlarged.

    Returns:
        Shape [rows * (height + 1) * enlarged, columns * (width + 1) * enlarged, channels].
    """
    framed = np.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=1)
    rows = framed.reshape(-1, columns, *framed.shape[1:])
    picture = np.concatenate(np.concatenate(rows, axis=1), axis=1)
    return picture.repeat(enlarged, axis=0).repeat(enlarged, axis=1)


def predictions_figure(models: Mapping[str, Any], x: np.ndarray, y: np.ndarray) -> Figure:
    """Draws a panel for each regressor, with its predictions against the true values.

    Args:
        models: Functions from `x` to predictions [n] or [n, 1], by the title of the panel.
        x: Samples.
        y: True values, shape [n].
    """
    figure = Figure(figsize=(4 * len(models), 4), layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for panel, (name, model) in zip(panels, models.items(), strict=True):
        PredictionErrorDisplay.from_predictions(
            y, np.ravel(model(x)), kind="actual_vs_predicted", ax=panel
        )
        panel.set_title(name)
    return figure


def pictures_figure(rows: Mapping[str, np.ndarray]) -> Figure:
    """Draws rows of pictures, a row for each kind.

    Args:
        rows: Pictures of values from 0 (black) to 1 (white), shape [n, height, width], by the label
            of the row.
    """
    count = len(next(iter(rows.values())))
    figure = Figure(figsize=(2 * count, 2 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), count, squeeze=False)
    for axes, (name, pictures) in zip(grid, rows.items(), strict=True):
        axes[0].set_ylabel(name)
        for panel, picture in zip(axes, pictures, strict=True):
            panel.imshow(picture, cmap="gray", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
    return figure

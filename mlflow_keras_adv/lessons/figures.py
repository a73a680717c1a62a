"""Pictures of what a net has made: points of an embedding, drawn images side by side."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure


def embeddings_figure(points: Mapping[str, np.ndarray], labels: np.ndarray) -> Figure:
    """One panel for each embedding, with a dot for each sample, coloured by its label.

    Args:
        points: Shape [n, dimensions], 2 dimensions or more, by the title of the panel; of more than
            two the two directions of largest variance are shown.
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
    """Images side by side, with a white line between them, as one image.

    Args:
        images: Shape [n, height, width, channels], from 0 to 1; n is a multiple of `columns`.
        columns: How many stand in a row.
        enlarged: How many pixels a pixel becomes, each way.

    Returns:
        Shape [rows * (height + 1) * enlarged, columns * (width + 1) * enlarged, channels].
    """
    framed = np.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=1)
    rows = framed.reshape(-1, columns, *framed.shape[1:])
    picture = np.concatenate(np.concatenate(rows, axis=1), axis=1)
    return picture.repeat(enlarged, axis=0).repeat(enlarged, axis=1)

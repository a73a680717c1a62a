"""Canvases: noisy pictures with small images on them, and the pixels where a stroke is."""

import numpy as np

INK = 0.3  # brightness from which a pixel of an image is a stroke


def canvases(
    x: np.ndarray, count: int, *, noise: float, images: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lays images on canvases of about two and a half times their height and width.

    Args:
        x: Images to choose from, light on dark, shape [n, height, width, channels], from 0 to 1.
        count: Number of canvases.
        noise: Standard deviation of the noise that is added to each pixel.
        images: Number of images on each canvas; they may overlap.
        seed: Seed of the choice, the places and the noise.

    Returns:
        The canvases, float32 [count, rows, columns, channels] from 0 to 1, and int32
        [count, rows, columns], 1 where a stroke is. Rows and columns are multiples of 8.
    """
    rng = np.random.default_rng(seed)
    height, width, channels = x.shape[1:]
    size = [-(-5 * side // 16) * 8 for side in (height, width)]  # a U-Net halves it three times
    drawn = np.zeros((count, *size, channels), np.float32)
    for canvas in drawn:
        for image in x[rng.integers(len(x), size=images)]:
            top, left = rng.integers(np.subtract(size, (height, width)) + 1)
            part = canvas[top : top + height, left : left + width]
            np.maximum(part, image, out=part)
    strokes = (drawn.max(axis=-1) > INK).astype(np.int32)
    drawn += np.asarray(rng.normal(0, noise, drawn.shape), np.float32)
    return drawn.clip(0, 1), strokes

"""Canvases, by what they hold."""

import numpy as np

from mlflow_keras_adv.lessons.canvases import INK, canvases


def test_strokes_are_where_the_digits_are() -> None:
    digit = np.zeros((1, 8, 8, 1), np.float32)
    digit[0, 2:5, 3] = 0.8
    digit[0, 7, 7] = INK / 2  # too faint for a stroke
    drawn, strokes = canvases(digit, count=20, noise=0.0, images=1, seed=0)

    assert drawn.shape == (20, 24, 24, 1)
    np.testing.assert_array_equal(strokes, drawn[..., 0] == np.float32(0.8))
    assert (strokes.sum(axis=(1, 2)) == 3).all()
    assert len({canvas.tobytes() for canvas in drawn}) > 10  # they lie elsewhere


def test_noise_moves_no_stroke_and_leaves_brightness_in_its_bounds() -> None:
    digits = np.random.default_rng(0).random((5, 8, 8, 1), np.float32)
    clean, strokes = canvases(digits, count=4, noise=0.0, images=2, seed=3)
    noisy, same = canvases(digits, count=4, noise=0.5, images=2, seed=3)

    assert not np.array_equal(clean, noisy)
    assert (noisy.min(), noisy.max()) == (0, 1)
    assert (strokes.shape, strokes.dtype) == ((4, 24, 24), np.int32)
    assert same.sum() > 0

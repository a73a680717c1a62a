"""Pictures, by what they hold."""

import numpy as np
import pytest

from mlflow_keras_adv.lessons.figures import embeddings_figure, tiles


def test_two_dimensions_are_drawn_as_they_are_and_more_by_the_two_widest() -> None:
    flat = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 7.0]])
    wide = np.array([[9, 1, 0], [-9, 1, 0], [0, 1, 3], [0, 1, -3.0]])[[0, 2, 3]]

    figure = embeddings_figure({"flat": flat, "wide": wide}, np.array([0, 1, 2]))

    first, second, _ = figure.axes  # and the scale of the colours
    assert [first.get_title(), second.get_title()] == ["flat", "wide"]
    np.testing.assert_array_equal(first.collections[0].get_offsets(), flat)
    shown = np.asarray(second.collections[0].get_offsets())
    # Three points lie in a plane: their distances are kept.
    distances = [np.linalg.norm(each[:, None] - each[None], axis=-1) for each in (shown, wide)]
    np.testing.assert_allclose(*distances, atol=1e-12)


def test_tiles_stand_in_rows_with_white_between() -> None:
    images = np.arange(6.0).reshape(6, 1, 1, 1) / 10

    shown = tiles(images, columns=3, enlarged=1)

    assert shown.shape == (4, 6, 1)
    assert shown[::2, ::2, 0].tolist() == pytest.approx(np.array([[0, 0.1, 0.2], [0.3, 0.4, 0.5]]))
    assert (shown[1::2] == 1).all()
    assert (shown[:, 1::2] == 1).all()
    assert tiles(images, columns=3).shape == (16, 24, 1)

"""The U-Net; the trainings are in test_catalogue."""

import keras
import numpy as np
import pytest

from mlflow_keras_adv.lessons.canvases import canvases
from projects.segmentation import net


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (5, 12, 3)])
def test_images_of_any_size_and_colour_fit(shape: tuple[int, int, int]) -> None:
    drawn, strokes = canvases(np.ones((2, *shape), np.float32), 1, noise=0.0, images=1, seed=0)
    answers = net(drawn.shape[1:], True, 2)(drawn)

    assert answers.shape == (*strokes.shape, 2)


def test_without_skips_nothing_passes_the_narrow_middle() -> None:
    handed = {
        skips: sum(
            isinstance(layer, keras.layers.Concatenate)
            for layer in net((24, 24, 1), skips, 2).layers
        )
        for skips in (True, False)
    }

    assert handed == {True: 3, False: 0}

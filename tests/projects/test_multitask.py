"""What the tasks are made of; the trainings are in test_catalogue."""

import numpy as np
import pytest
import tensorflow as tf

from projects.multitask import cosine, turned

ULP = float(np.spacing(np.float32(1)))


def test_the_cosine_is_that_of_all_parts_together() -> None:
    first = [tf.constant([[1.0, 0.0]]), tf.constant([2.0])]
    second = [tf.constant([[0.0, 3.0]]), tf.constant([4.0])]

    assert float(cosine(first, first)) == pytest.approx(1, abs=4 * ULP)
    assert float(cosine(first, second)) == pytest.approx(8 / (5**0.5 * 5), abs=4 * ULP)
    assert float(cosine(first, [tf.zeros((1, 2)), tf.zeros(1)])) == 0


def test_the_angles_are_those_by_which_the_images_are_turned() -> None:
    image = np.zeros((1, 9, 9, 1), np.float32)
    image[0, 4, 4:] = 1  # a hand of a clock that points to the right

    (moved,), ((angle,),) = turned(image, 40.0, seed=0)

    rows, columns = np.mgrid[-4:5, -4:5]
    shown = moved[..., 0]
    found = np.degrees(np.arctan2((shown * -rows).sum(), (shown * columns).sum()))
    assert abs(angle) > 5
    assert found == pytest.approx(angle, abs=5)  # nine pixels wide

"""What the tasks are made of; the trainings are in test_catalogue."""

import numpy as np
import pytest

from projects.multitask import turned


def test_the_angles_are_those_by_which_the_images_are_turned() -> None:
    image = np.zeros((1, 9, 9, 1), np.float32)
    image[0, 4, 4:] = 1  # a hand of a clock that points to the right

    (moved,), ((angle,),) = turned(image, 40.0, seed=0)

    rows, columns = np.mgrid[-4:5, -4:5]
    shown = moved[..., 0]
    found = np.degrees(np.arctan2((shown * -rows).sum(), (shown * columns).sum()))
    assert abs(angle) > 5
    assert found == pytest.approx(angle, abs=5)  # nine pixels wide

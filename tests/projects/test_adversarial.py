"""The attacks, against a net whose gradient is known; the trainings are in test_catalogue."""

import keras
import numpy as np
import pytest

from mlflow_keras_adv.lessons.training import crossentropy
from projects.adversarial import attack

EPSILON = 0.2
ULP = float(np.spacing(np.float32(1)))


def linear() -> keras.Model:
    """Two logits of two pixels: the first pixel speaks for class 0, the second for class 1."""
    head = keras.layers.Dense(2, use_bias=False)
    model = keras.Sequential([keras.Input((1, 2, 1)), keras.layers.Flatten(), head])
    head.set_weights([np.eye(2, dtype=np.float32)])
    return model


X = np.array([[0.5, 0.5], [0.9, 0.1], [0.05, 0.95]], np.float32).reshape(3, 1, 2, 1)
Y = np.array([0, 0, 1], np.int32)


def test_fgsm_moves_each_pixel_by_epsilon_against_the_label_and_stays_an_image() -> None:
    moved = np.asarray(attack(linear(), X, Y, EPSILON, 1)).reshape(3, 2)

    expected = [[0.3, 0.7], [0.7, 0.3], [0.25, 0.75]]
    np.testing.assert_allclose(moved, expected, rtol=0, atol=ULP)


@pytest.mark.parametrize("steps", [1, 5])
def test_an_attack_stays_in_its_box_and_raises_the_loss(steps: int) -> None:
    model = linear()
    moved = np.asarray(attack(model, X, Y, EPSILON, steps))

    assert np.abs(moved - X).max() <= EPSILON + ULP
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert crossentropy(Y, model(moved)) > crossentropy(Y, model(X))


def test_without_a_step_the_images_are_as_they_were() -> None:
    np.testing.assert_array_equal(attack(linear(), X, Y, EPSILON, 0), X)

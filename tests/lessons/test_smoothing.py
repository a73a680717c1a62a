"""The smoothed loss, beside Keras' own and while it changes under a compiled step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from mlflow_keras_adv.lessons.smoothing import SmoothedCrossentropy

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(6, 4)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 0, 1])
EPS = float(np.finfo(np.float32).eps)


def expected(smoothing: float) -> float:
    keras_own = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
    return float(keras_own(np.eye(4, dtype=np.float32)[LABELS], LOGITS))


def test_it_is_that_of_keras_and_changes_without_another_trace() -> None:
    loss = SmoothedCrossentropy(0.3)
    traced = []

    @tf.function
    def step() -> tf.Tensor:
        traced.append(1)
        return loss(LABELS[:, None], LOGITS)

    assert float(step()) == pytest.approx(expected(0.3), rel=20 * EPS)
    loss.smoothing.assign(0.0)
    assert float(step()) == pytest.approx(expected(0.0), rel=20 * EPS)
    assert len(traced) == 1


def test_its_config_has_the_smoothing_of_now() -> None:
    loss = SmoothedCrossentropy(0.3)
    loss.smoothing.assign(0.125)

    again = SmoothedCrossentropy.from_config(loss.get_config())

    assert float(again.smoothing) == 0.125

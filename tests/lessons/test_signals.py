"""Signals of a chain of layers, beside their formulas in NumPy."""

import keras
import numpy as np
import pytest

from mlflow_keras_adv.lessons.signals import signals

EPS = float(np.finfo(np.float32).eps)


def test_the_signals_are_those_of_the_chain_rule() -> None:
    random = np.random.default_rng(0)
    x, y = (random.normal(size=(5, 3)).astype(np.float32) for _ in range(2))
    first, second = (random.normal(size=(3, 3)).astype(np.float32) for _ in range(2))
    layers = [keras.layers.Dense(3, use_bias=False, name=name) for name in ("first", "second")]
    model = keras.Sequential([keras.Input((3,)), layers[0], keras.layers.Flatten(), layers[1]])
    model.set_weights([first, second])

    found = signals(model, x, y, lambda y, output: keras.ops.sum(y * output))

    # The loss is linear in the output: its gradient by the last output is y, by the first y Wᵀ.
    assert [each.layer for each in found] == ["first", "second"]
    outputs, gradients = [x @ first, x @ first @ second], [y @ second.T, y]
    for each, output, gradient in zip(found, outputs, gradients, strict=True):
        assert each.activation == pytest.approx(np.sqrt(np.mean(output**2)), rel=100 * EPS)
        assert each.gradient == pytest.approx(np.linalg.norm(gradient), rel=100 * EPS)

"""The regularizer and the layer; the trainings are in test_catalogue."""

import keras
import numpy as np
import pytest

from projects.self_regularization import Orthogonal, SparseActivations

EPS = float(np.finfo(np.float32).eps)


def test_an_orthonormal_kernel_costs_nothing_and_a_stretched_one_does() -> None:
    kernel = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 3)))[0].astype(np.float32)

    assert float(Orthogonal(2.0)(kernel)) == pytest.approx(0, abs=100 * EPS)
    # WᵀW = 4 I, so three times (4 - 1)².
    assert float(Orthogonal(2.0)(2 * kernel)) == pytest.approx(2 * 3 * 9, rel=100 * EPS)


def test_the_layer_adds_its_divergence_and_passes_the_activations_on() -> None:
    layer = SparseActivations(target=0.1, weight=3.0)
    activations = np.array([[0.1, 0.4], [0.1, 0.6]], np.float32)  # means 0.1 and 0.5

    np.testing.assert_array_equal(layer(activations), activations)
    (term,) = layer.losses
    expected = 3 * (0.1 * np.log(0.1 / 0.5) + 0.9 * np.log(0.9 / 0.5))
    assert float(term) == pytest.approx(expected, rel=100 * EPS)


def test_a_saved_net_keeps_both(tmp_path) -> None:
    dense = keras.layers.Dense(3, "sigmoid", kernel_regularizer=Orthogonal(0.5))
    model = keras.Sequential([keras.Input((4,)), dense, SparseActivations(0.1, 0.2)])
    model.save(tmp_path / "model.keras")

    known = {"Orthogonal": Orthogonal, "SparseActivations": SparseActivations}
    loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects=known)

    assert loaded.layers[0].kernel_regularizer.weight == 0.5
    assert (loaded.layers[1].target, loaded.layers[1].weight) == (0.1, 0.2)

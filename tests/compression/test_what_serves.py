"""What is reported as reached is in the weights that serve; what cannot be done is refused."""

from collections.abc import Callable
from typing import Any

import keras
import mlflow
import numpy as np
import pytest

import mlflow_keras_adv as mka
from mlflow_keras_adv import compression
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.tflite.runtime import LiteRTModel
from mlflow_keras_adv.tflite.weights import file_weights

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 8)).astype("float32")
Y = X[:, :1]


class Named(keras.Model):
    """Its layers have the names that Keras gives them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.first = keras.layers.Dense(16, activation="relu")
        self.second = keras.layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.second(self.first(x))


def with_lora() -> keras.Model:
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(1)])
    model.layers[0].enable_lora(2)
    model.compile("adam", "mse")
    return model


def test_a_subclassed_model_is_pruned_whatever_its_layers_are_called() -> None:
    model = Named()
    model.compile("adam", "mse")
    model.fit(X, Y, verbose=0)
    pruned = compression.prune(model, (X, Y), sparsity=0.5, verbose=0)
    assert [row.name for row in pruned.layers] == [model.first.name, model.second.name]
    for layer in (pruned.model.first, pruned.model.second):
        assert np.mean(np.asarray(layer.kernel) == 0) == 0.5


@pytest.mark.parametrize(
    "compress",
    [
        lambda model: compression.prune(model, (X, Y), verbose=0),
        lambda model: compression.cluster(model, (X, Y), clusters=4, verbose=0),
        lambda model: compression.quantize_aware(model, (X, Y), verbose=0),
        lambda model: compression.prune_channels(model, (X, Y), channels=0.5, verbose=0),
    ],
)
def test_zeros_beside_a_frozen_kernel_are_none(compress: Callable[[Any], Any]) -> None:
    with pytest.raises(UserError, match="has LoRA: its own kernel is frozen"):
        compress(with_lora())


def test_a_file_of_a_model_with_lora_has_the_sum() -> None:
    model = with_lora()
    model.fit(X, Y, epochs=3, verbose=0)
    artifact = compression.quantize(model, compression.float16, X)
    assert artifact.difference < 1e-3


@pytest.mark.parametrize("scheme", [compression.float16, compression.dynamic_int8])
def test_a_scheme_that_changes_no_weight_is_refused(scheme: Any) -> None:
    layers = [keras.layers.Embedding(20, 16), keras.layers.GlobalAveragePooling1D()]
    model = keras.Sequential([keras.Input((5,), dtype="int32"), *layers])
    words = RNG.integers(0, 20, size=(64, 5)).astype("int32")
    with pytest.raises(UserError, match="changed no weight: they are float32 as before"):
        compression.quantize(model, scheme, words)
    artifact = compression.quantize(model, compression.int8, words)
    assert {weight.dtype for weight in file_weights(artifact.content)} == {"int8"}


def test_series_of_free_length_take_a_fixed_number_of_samples_a_call() -> None:
    recurrent = [keras.layers.GRU(4, return_sequences=True), keras.layers.GRU(4)]
    model = keras.Sequential([keras.Input((None, 3)), *recurrent, keras.layers.Dense(1)])
    series = RNG.normal(size=(8, 6, 3)).astype("float32")
    artifact = compression.convert(model, series)
    answers = LiteRTModel(artifact.content).predict(series)
    np.testing.assert_allclose(answers, np.asarray(model(series)), atol=1e-5)


def test_a_model_that_is_rounded_when_it_is_saved_needs_a_tolerance(experiment: str) -> None:
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(1)])
    model.layers[0].quantize("int8")
    model.layers[0].enable_lora(2)
    model.compile(keras.optimizers.Adam(0.1), "mse")
    model.fit(X, Y, verbose=0)
    with pytest.raises(UserError, match="differently .* tolerance=0.05"):
        mka.log_model(model, name="net", input_example=X[:2], tolerance=1e-9)
    info = mka.log_model(model, name="net", input_example=X[:2], tolerance=0.2)
    answers = mlflow.pyfunc.load_model(info.model_uri).predict(X)
    expected = np.asarray(model(X))
    assert np.abs(answers - expected).max() < 0.2 * np.abs(expected).max()


def with_padding() -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """A mask that passes a shared layer twice, and an operation of keras.ops, which ends it."""
    keras.utils.set_random_seed(0)
    rows = np.random.default_rng(0).normal(size=(64, 6, 4)).astype("float32")
    rows[:, 4:] = 0
    inputs = keras.Input((6, 4))
    shared = keras.layers.Dense(4, bias_initializer="ones", name="shared")
    hidden = shared(shared(keras.layers.Masking()(inputs)))
    pooled = keras.layers.GlobalAveragePooling1D()(hidden)
    counted = keras.layers.GlobalMaxPooling1D()(keras.ops.relu(hidden) * 0.5)
    outputs = keras.layers.Dense(2, name="head")(keras.layers.Concatenate()([pooled, counted]))
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss)
    return model, rows, (rows[:, 0, 0] > 0).astype(int)


@pytest.mark.slow
def test_masks_pass_the_wrappers_of_each_way_to_compress() -> None:
    model, rows, labels = with_padding()
    pruned = compression.prune(model, (rows, labels), sparsity=0.5, epochs=1, verbose=0)
    assert {row.name for row in pruned.layers} == {"shared", "head"}
    clustered = compression.cluster(model, (rows, labels), clusters=4, epochs=1, verbose=0)
    assert all(row.distinct <= 4 for row in clustered.layers)
    # Nothing is learned: a file in which the padding counted would answer otherwise.
    artifact = compression.quantize_aware(model, (rows, labels), epochs=1, verbose=0)
    assert artifact.difference_max < 16 / 256

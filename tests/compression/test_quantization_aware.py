"""Quantization-aware training: what the file holds, what stays in float, what is kept."""

import keras
import numpy as np
import pytest

from mlflow_keras_adv.compression.file_weights import file_weights
from mlflow_keras_adv.compression.quantization_aware import quantize_aware
from mlflow_keras_adv.compression.runtime import LiteRTModel
from mlflow_keras_adv.errors import UserError

RANDOM = np.random.default_rng(0)
X = RANDOM.random((64, 6, 6, 1), dtype=np.float32)
Y = (X.mean(axis=(1, 2, 3)) > 0.5).astype("int32")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
STILL = keras.optimizers.SGD(0.0)


def classifier() -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 1), name="image")
    hidden = keras.layers.Conv2D(4, 3, use_bias=False)(image)
    hidden = keras.layers.ReLU()(keras.layers.BatchNormalization()(hidden))
    return keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(hidden)))


def kernels(content: bytes) -> list[np.ndarray]:
    return [each.values for each in file_weights(content) if each.values.ndim >= 2]


@pytest.mark.slow
def test_the_file_is_int8_and_the_model_stays_as_it_is() -> None:
    model = classifier()
    before = model.get_weights()
    artifact = quantize_aware(model, (X, Y), loss=LOSS, epochs=2, verbose=0)
    assert (artifact.scheme, artifact.float_layers) == ("qat", ())
    assert {values.dtype.name for values in kernels(artifact.content)} == {"int8"}
    runner = LiteRTModel(artifact.content)
    assert runner.inputs[0].dtype == runner.outputs[0].dtype == np.float32
    answers, expected = runner.predict(X), np.asarray(model(X, training=False))
    apart = np.abs(answers - expected).max() / np.abs(expected).max()
    assert artifact.difference == pytest.approx(apart, rel=1e-4)
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", [True, False])
@pytest.mark.parametrize("clusters", [True, False])
def test_zeros_and_clusters_are_kept_on_request(sparsity: bool, clusters: bool) -> None:
    model = classifier()
    # 0.25 and 0, both in every channel: else tfmot clusters each channel by itself, or none.
    model.set_weights(
        [
            0.25 * (np.arange(weight.size).reshape(weight.shape) % 3 == 0)
            if weight.ndim >= 2
            else weight
            for weight in model.get_weights()
        ]
    )
    adam = keras.optimizers.Adam(0.01)
    artifact = quantize_aware(
        model,
        (X, Y),
        loss=LOSS,
        optimizer=adam,
        epochs=3,
        verbose=0,
        preserve_sparsity=sparsity,
        preserve_clusters=clusters,
    )
    assert artifact.scheme == "p" * sparsity + "c" * clusters + "qat"
    dense = max(kernels(artifact.content), key=np.size)
    zeros = np.mean(dense == 0)
    distinct = max(len(np.unique(channel)) for channel in dense)
    if sparsity:
        assert zeros >= 0.66
    if clusters:
        assert distinct <= 2
    if not sparsity and not clusters:  # else the test would not tell
        assert zeros < 0.66
        assert distinct > 2


@pytest.mark.slow
def test_what_tfmot_cannot_quantize_stays_in_float_and_is_named() -> None:
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 1), name="image")
    hidden = keras.layers.Flatten()(keras.layers.Rescaling(2.0, name="scale")(image))
    hidden = keras.layers.Dense(8, activation="elu", name="elu")(hidden)
    hidden = keras.layers.LayerNormalization(name="norm")(hidden)
    outputs = [keras.layers.Dense(2, name="b")(hidden), keras.layers.Dense(3, name="a")(hidden)]
    model = keras.Model(image, outputs)
    artifact = quantize_aware(
        model, (X, (Y, Y)), loss=[LOSS, LOSS], optimizer=STILL, epochs=1, verbose=0
    )
    assert artifact.float_layers == ("elu", "norm", "scale")
    # Nothing was learned, so two Dense layers are off by their rounding alone: outputs are told
    # apart although tf_keras names them otherwise.
    assert artifact.difference < 16 / 256
    assert artifact.agreement is None


@pytest.mark.slow
def test_a_recurrent_model_is_refused_with_what_to_do() -> None:
    model = keras.Sequential(
        [keras.Input((5, 3)), keras.layers.LSTM(4), keras.layers.Dense(2, name="head")]
    )
    x = RANDOM.normal(size=(32, 5, 3)).astype("float32")
    with pytest.raises(UserError, match="quantize it after training"):
        quantize_aware(model, (x, Y[:32]), loss=LOSS, verbose=0)


def test_what_cannot_be_trained_quantized_is_refused() -> None:
    model = classifier()
    with pytest.raises(UserError, match="not compiled with a loss"):
        quantize_aware(model, (X, Y))
    with pytest.raises(UserError, match="0 samples|at least one"):
        quantize_aware(model, (X[:0], Y[:0]), loss=LOSS)
    only = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Flatten()])
    with pytest.raises(UserError, match="no layer that can be trained quantized"):
        quantize_aware(only, (X, Y), loss=LOSS, verbose=0)

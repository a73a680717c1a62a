"""Quantization-aware training: what the file holds, what stays in float, what is kept."""

from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

from mlflow_keras_adv.compat.tfmot import tfmot
from mlflow_keras_adv.compression.bridge import to_tf_keras
from mlflow_keras_adv.compression.fake_quantizers import calibrate
from mlflow_keras_adv.compression.preserving import Preserving, PreservingScheme
from mlflow_keras_adv.compression.quantization_aware import quantize_aware
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.tflite.runtime import LiteRTModel
from mlflow_keras_adv.tflite.weights import file_weights

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
    assert artifact.difference_max == pytest.approx(apart, rel=1e-4)
    for weight, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


@pytest.mark.slow
def test_masks_go_past_the_rounding_and_are_not_counted() -> None:
    keras.utils.set_random_seed(0)
    words = RANDOM.integers(1, 9, size=(64, 7)).astype("int32")
    words[:, 5:] = 0
    inputs = keras.Input((7,), dtype="int32")
    hidden = keras.layers.Embedding(9, 4, mask_zero=True)(inputs)
    hidden = keras.layers.Dense(6, bias_initializer="ones", name="hidden")(hidden)
    pooled = keras.layers.GlobalAveragePooling1D()(hidden)
    model = keras.Model(inputs, keras.layers.Dense(2)(pooled))
    artifact = quantize_aware(
        model, (words, words[:, 0] % 2), loss=LOSS, optimizer=STILL, epochs=1, verbose=0
    )
    # Nothing was learned: the answers are the model's, in which the padding does not count.
    assert artifact.difference_max < 16 / 256


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
    hidden = keras.layers.LayerNormalization(name="norm")(hidden) * 0.5  # an operation, no layer
    outputs = [keras.layers.Dense(2, name="b")(hidden), keras.layers.Dense(3, name="a")(hidden)]
    model = keras.Model(image, outputs)
    artifact = quantize_aware(
        model, (X, (Y, Y)), loss=[LOSS, LOSS], optimizer=STILL, epochs=1, verbose=0
    )
    named = [name for name in artifact.float_layers if not name.startswith("multiply")]
    assert named == ["elu", "norm", "scale"]
    dtypes = {each.values.shape: each.dtype for each in file_weights(artifact.content)}
    assert dtypes[2, 8] == dtypes[3, 8] == "int8"  # though what they take comes in float
    # Nothing was learned, so two Dense layers are off by their rounding alone: outputs are told
    # apart although tf_keras names them otherwise.
    assert artifact.difference_max < 16 / 256
    assert artifact.agreement is None


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", [True, False])
def test_the_file_is_the_model_that_was_trained_with_biases_of_emptied_channels(
    sparsity: bool,
) -> None:
    keras.utils.set_random_seed(0)
    emptied = keras.layers.Conv2D(4, 3, activation="relu")
    folded = keras.layers.Conv2D(4, 3, use_bias=False)
    beta = keras.layers.BatchNormalization(momentum=1.0)
    head = keras.layers.Dense(2, bias_initializer="ones", name="head")
    layers = [emptied, folded, beta, keras.layers.ReLU(), keras.layers.Flatten(), head]
    model = keras.Sequential([keras.Input((6, 6, 1)), *layers])
    emptied.set_weights([emptied.get_weights()[0] * [0, 0, 1e-9, 1], np.array([1.0, 0, -0.5, 1])])
    folded.set_weights([folded.get_weights()[0] * [1, 0, 0, 1]])
    beta.beta.assign([1.0, 1.0, 0.5, 0.9])
    artifact = quantize_aware(
        model, (X, Y), loss=LOSS, optimizer=STILL, preserve_sparsity=sparsity, verbose=0
    )
    assert artifact.trained_difference is not None
    assert artifact.trained_difference < 2 / 256
    assert artifact.difference_max < 16 / 256


@pytest.mark.slow
def test_zeros_are_kept_in_every_layer_that_has_some_and_missed_in_none() -> None:
    keras.utils.set_random_seed(0)
    frozen = keras.layers.Conv2D(4, 3, name="frozen")
    pruned = keras.layers.Conv2D(8, 1, name="pruned")
    rows = keras.layers.Conv1D(4, 2, name="rows")
    head = keras.layers.Dense(2, name="head")
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Normalization(mean=0.5, variance=0.1, name="normalization"),
            frozen,
            keras.layers.DepthwiseConv2D(2, name="depthwise"),
            pruned,
            keras.layers.Reshape((9, 8)),
            rows,
            keras.layers.Flatten(),
            head,
        ]
    )
    frozen.trainable = False
    for layer in (pruned, rows, head):
        kernel, bias = layer.get_weights()
        layer.set_weights([kernel * (np.arange(kernel.size).reshape(kernel.shape) % 3 == 0), bias])
    artifact = quantize_aware(
        model,
        (X, Y),
        loss=LOSS,
        optimizer=keras.optimizers.Adam(0.01),
        preserve_sparsity=True,
        verbose=0,
    )
    assert artifact.float_layers == ("normalization", "rows")
    stored = {each.values.shape: each for each in file_weights(artifact.content)}
    for kernel in (pruned.kernel, rows.kernel, head.kernel):
        zeros = np.moveaxis(np.asarray(kernel) == 0, -1, 0)
        [found] = [
            w
            for shape, w in stored.items()
            if shape[0] == len(zeros) and w.zeros > 1 and np.prod(shape) == zeros.size
        ]
        assert (found.values.reshape(zeros.shape)[zeros] == 0).all()
        assert found.dtype == "int8"


@pytest.mark.slow
def test_clusters_are_trained_and_no_warning_says_otherwise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    keras.utils.set_random_seed(0)
    hidden, last = keras.layers.Dense(12, activation="relu"), keras.layers.Dense(2)
    model = keras.Sequential([keras.Input((36,)), hidden, last])
    # Values 0, 1, 2; and without zeros, which must not end the keeping of those in the other.
    last.set_weights([1.0 + np.arange(24).reshape(12, 2) % 2, np.zeros(2)])
    hidden.set_weights([np.arange(432).reshape(36, 12) % 3 / 10, np.zeros(12)])
    carried = to_tf_keras(model, X[:2].reshape(2, 36))
    scheme = PreservingScheme(sparsity=True, clusters=True)
    quantized = tfmot.quantization.keras.quantize_apply(
        tfmot.quantization.keras.quantize_annotate_model(carried), scheme
    )
    preserving = Preserving(quantized, sparsity=True, clusters=True)
    calibrate(quantized, [X.reshape(-1, 36)])
    quantized.compile(tf_keras.optimizers.Adam(0.01), tf_keras.losses.MeanSquaredError())
    with preserving.without_warning():
        quantized.fit(X.reshape(-1, 36), Y, epochs=2, callbacks=[preserving], verbose=0)
    assert "Gradients do not exist" not in caplog.text
    preserving.check()
    for layer, before in zip(quantized.layers[-2:], (hidden, last), strict=True):
        [(kernel, _, _)] = layer._weight_vars
        old, new = np.asarray(before.kernel), kernel.numpy()
        assert len(np.unique(new)) == len(np.unique(old))
        np.testing.assert_array_equal(new == 0, old == 0)
        assert (new[old != 0] != old[old != 0]).all()


@pytest.mark.slow
@pytest.mark.parametrize(("chosen", "io"), [(["wide", "head"], "uint8"), (["wide"], "float32")])
def test_layers_and_what_the_file_takes_and_gives_can_be_chosen(chosen: list[str], io: str) -> None:
    keras.utils.set_random_seed(0)
    shapes = {"wide": (8, 36), "inner.deep": (5, 8), "head": (2, 5)}
    inner = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5, name="deep")], name="inner")
    flat = keras.layers.Flatten()(image := keras.Input((6, 6, 1), name="image"))
    hidden = inner(keras.layers.Dense(8, activation="relu", name="wide")(flat))
    outputs = keras.layers.Dense(2, name="head")(keras.layers.ReLU()(hidden))
    model = keras.Model(image, outputs)
    artifact = quantize_aware(
        model, (X, Y), loss=LOSS, optimizer=STILL, layers=chosen, io=io, verbose=0
    )
    dtypes = {each.values.shape: each.dtype for each in file_weights(artifact.content)}
    for name, shape in shapes.items():
        # What stands between two rounded layers the converter rounds too.
        assert dtypes[shape] == ("float32" if chosen == ["wide"] and name != "wide" else "int8")
        assert (name in artifact.float_layers) == (name not in chosen)
    runner = LiteRTModel(artifact.content)
    assert {each.dtype.name for each in (*runner.inputs, *runner.outputs)} == {io}
    assert artifact.scheme == ("qat" if io == "float32" else f"qat_{io}_io")
    assert artifact.difference_max < 16 / 256


def test_a_choice_that_cannot_be_met_is_refused() -> None:
    model = classifier()
    with pytest.raises(ValueError, match="names 'nowhere', which is no layer with kernels"):
        quantize_aware(model, (X, Y), loss=LOSS, layers=["nowhere"])
    with pytest.raises(ValueError, match="io is 'int4'"):
        quantize_aware(model, (X, Y), loss=LOSS, io="int4")
    rows = keras.layers.Conv1D(4, 2, name="rows")
    rest = [rows, keras.layers.Flatten(), keras.layers.Dense(2, name="head")]
    model = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Reshape((6, 6)), *rest])
    with pytest.raises(ValueError, match="names rows, which cannot be trained quantized"):
        quantize_aware(model, (X, Y), loss=LOSS, layers=["rows", "head"])


@pytest.mark.slow
def test_a_recurrent_model_is_refused_with_what_to_do() -> None:
    model = keras.Sequential(
        [keras.Input((5, 3)), keras.layers.LSTM(4), keras.layers.Dense(2, name="head")]
    )
    x = RANDOM.normal(size=(32, 5, 3)).astype("float32")
    began: list[Any] = []
    training = tf_keras.callbacks.LambdaCallback(on_train_begin=began.append)
    with pytest.raises(UserError, match="quantize it after training"):
        quantize_aware(model, (x, Y[:32]), loss=LOSS, verbose=0, callbacks=[training])
    assert not began


def test_what_cannot_be_trained_quantized_is_refused() -> None:
    model = classifier()
    with pytest.raises(UserError, match="not compiled with a loss"):
        quantize_aware(model, (X, Y))
    with pytest.raises(UserError, match="0 samples|at least one"):
        quantize_aware(model, (X[:0], Y[:0]), loss=LOSS)
    only = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Flatten()])
    with pytest.raises(UserError, match="no layer that can be trained quantized"):
        quantize_aware(only, (X, Y), loss=LOSS, verbose=0)

"""Conversion and quantization after training: what comes out is what LiteRT runs and was asked."""

import math
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import pytest
from packaging.version import Version

from mlflow_keras_adv.compression import quantization
from mlflow_keras_adv.compression.conversion import TOLERANCE, Artifact, compare, convert
from mlflow_keras_adv.compression.quantization import SCHEMES, quantize
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.tflite.runtime import LiteRTModel
from mlflow_keras_adv.tflite.weights import file_weights

RANDOM = np.random.default_rng(0)
X = RANDOM.random((60, 6, 6, 1), dtype=np.float32)


@pytest.fixture(scope="module")
def classifier() -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 1), name="image")
    hidden = keras.layers.Conv2D(8, 3, use_bias=False)(image)
    hidden = keras.layers.ReLU()(keras.layers.BatchNormalization()(hidden))
    hidden = keras.layers.Dense(16, activation="relu")(keras.layers.Flatten()(hidden))
    model = keras.Model(image, keras.layers.Dense(3)(hidden))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.fixture(scope="module")
def converted(classifier: keras.Model) -> Artifact:
    return convert(classifier, X)


def kernel_dtypes(content: bytes) -> set[str]:
    return {weight.dtype for weight in file_weights(content) if weight.values.ndim >= 2}


def test_the_float_file_is_what_keras_computes(
    classifier: keras.Model, converted: Artifact
) -> None:
    answers = LiteRTModel(converted.content).predict(X)
    expected = np.asarray(classifier(X, training=False))
    apart = float(np.abs(answers - expected).max() / np.abs(expected).max())
    # Keras multiplies another number of samples at a time than the comparison did.
    assert converted.difference_max == pytest.approx(apart, abs=TOLERANCE / 10)
    assert converted.difference_max < TOLERANCE
    assert (converted.scheme, converted.agreement) == ("float32", 1.0)
    assert kernel_dtypes(converted.content) == {"float32"}


# The dtype of kernels in the file; what callers send; steps between the largest weight and 0.
EXPECTED = {
    "float16": ("float16", "float32", 2**11),
    "int16x8": ("int8", "float32", 127),
    "weight_only_int8": ("int8", "float32", 127),
    "dynamic_int8": ("int8", "float32", 127),
    "int8": ("int8", "float32", 127),
    "int8_io": ("int8", "int8", 127),
    "weight_only_int4": ("int4", "float32", 7),
    "dynamic_int4": ("int4", "float32", 7),
}


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.__name__)
def test_each_scheme_stores_what_it_says(converted: Artifact, scheme: quantization.Scheme) -> None:
    dtype, border, steps = EXPECTED[scheme.__name__]
    artifact = quantize(converted, scheme)
    assert artifact.scheme == scheme.__name__
    assert kernel_dtypes(artifact.content) == {dtype}
    runner = LiteRTModel(artifact.content)
    assert {each.dtype.name for each in (*runner.inputs, *runner.outputs)} == {border}
    assert len(artifact.content) < len(converted.content)
    # Each weight is off by up to half a step of its channel; three layers and the activations
    # between them add up.
    assert 0 < artifact.difference_max < 8 / steps
    answers, expected = runner.predict(X), converted.expected["output_0"]
    assert artifact.difference_max == np.abs(answers - expected).max() / np.abs(expected).max()
    same = np.mean(answers.argmax(axis=-1) == expected.argmax(axis=-1))
    assert artifact.agreement == same


def test_all_schemes_are_expected() -> None:
    assert [scheme.__name__ for scheme in SCHEMES] == list(EXPECTED)


def test_the_widest_sample_sets_the_range() -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    x = RANDOM.normal(size=(50, 4)).astype("float32")
    x[7] *= 10  # one sample far out: a mean of the samples' ranges would cut it off
    artifact = quantize(model, quantization.int8, x)
    assert artifact.difference_max < 4 / 256  # inputs, weights and outputs in 256 steps each


def test_samples_may_be_of_another_dtype(classifier: keras.Model, converted: Artifact) -> None:
    doubles = quantize(classifier, quantization.int8, X.astype("float64"))
    assert doubles.content == quantize(converted, quantization.int8).content


def test_zeros_stay_zeros(classifier: keras.Model) -> None:
    pruned = keras.models.clone_model(classifier)
    for source, target in zip(classifier.layers, pruned.layers, strict=True):
        target.set_weights([_pruned(weight) for weight in source.get_weights()])
    artifact = quantize(pruned, quantization.int8, X)
    kernels = [weight for weight in file_weights(artifact.content) if weight.values.ndim >= 2]
    assert len(kernels) == 3
    for kernel in kernels:
        assert kernel.zeros / kernel.values.size >= 0.75


def _pruned(weight: np.ndarray) -> np.ndarray:
    """Three of four to zero, if a kernel."""
    if weight.ndim < 2:
        return weight
    return np.where(np.arange(weight.size).reshape(weight.shape) % 4 == 0, weight, 0)


def test_int4_is_unpacked_as_litert_does() -> None:
    kernel = np.array([[7, -7], [-3, 1], [0, 5]], "float32")  # 3 inputs, 2 units
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False)])
    model.set_weights([kernel])
    x = np.concatenate([np.eye(3), -np.eye(3)]).astype("float32")
    content = quantize(model, quantization.weight_only_int4, x).content
    [stored] = [weight for weight in file_weights(content) if weight.dtype == "int4"]
    np.testing.assert_array_equal(stored.values, kernel.T)  # the largest of a unit is 7 steps
    assert (stored.zeros, stored.size_bytes) == (1, 3)


@pytest.mark.parametrize("left", [0, 1e-8])
@pytest.mark.parametrize("scheme", [quantization.int8, quantization.int8_io, quantization.int16x8])
def test_a_channel_without_weights_keeps_its_bias(scheme: quantization.Scheme, left: float) -> None:
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(4, activation="relu")
    model = keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(3)])
    kernel, _ = hidden.get_weights()
    kernel[:, :2] *= left
    hidden.set_weights([kernel, np.array([1.0, 0.0, 0.5, -0.5])])
    x = RANDOM.normal(size=(50, 4)).astype("float32")
    artifact = quantize(model, scheme, x)
    assert artifact.difference_max < 8 / 127


def test_a_large_file_is_mended_and_read_like_a_small_one() -> None:
    # From 256 kB the quantizer puts large weights behind the flatbuffer.
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(600, activation="relu", bias_initializer="ones")
    last = keras.layers.Dense(3, bias_initializer="ones")
    model = keras.Sequential([keras.Input((600,)), hidden, last])
    kernel, bias = hidden.get_weights()
    kernel[:, :300] = 0
    hidden.set_weights([kernel, bias])
    x = RANDOM.normal(size=(20, 600)).astype("float32")
    artifact = quantize(model, quantization.int8, x)
    assert artifact.difference_max < 8 / 127
    stored = {each.values.shape: each for each in file_weights(artifact.content)}
    assert set(stored) == {(600, 600), (600,), (3, 600), (3,)}
    assert stored[600, 600].dtype == "int8"
    assert stored[600, 600].zeros >= 300 * 600
    np.testing.assert_array_equal(stored[600, 600].values[:300], 0)


# Other kinds of models.


def test_a_recurrent_model_gets_a_fixed_number_of_samples_a_call() -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5, 3)), keras.layers.LSTM(4), keras.layers.Dense(2)])
    x = RANDOM.normal(size=(9, 5, 3)).astype("float32")
    artifact = convert(model, x)
    runner = LiteRTModel(artifact.content)
    # Before Keras 3.13 the file is converted without its help, and takes any number.
    assert runner.rows == (1 if Version(keras.__version__) >= Version("3.13") else -1)
    expected = np.asarray(model(x))
    apart = np.abs(runner.predict(x) - expected).max()
    assert apart < TOLERANCE * np.abs(expected).max()
    assert quantize(artifact, quantization.dynamic_int8, min_agreement=1).agreement == 1
    with pytest.raises(UserError, match="int8 cannot quantize this model"):
        quantize(artifact, quantization.int8)


def test_several_inputs_and_outputs_are_told_apart() -> None:
    keras.utils.set_random_seed(0)
    right, left = keras.Input((3,), name="right"), keras.Input((3,), name="left")  # equal shapes
    outputs = [keras.layers.Dense(2)(right), keras.layers.Dense(2)(left)]
    model = keras.Model([right, left], outputs)
    x = [RANDOM.normal(size=(8, 3)).astype("float32") for _ in range(2)]
    artifact = quantize(model, quantization.int8, x)
    assert artifact.agreement is None
    assert set(artifact.feeds) == {"left", "right"}
    np.testing.assert_array_equal(artifact.feeds["right"], x[0])
    assert artifact.difference_max < 4 / 256


def test_a_scheme_is_any_function(converted: Artifact) -> None:
    def mine(content: bytes, samples: Sequence[Mapping[str, np.ndarray]]) -> bytes:
        assert [sample["image"].shape for sample in samples] == [(1, 6, 6, 1)] * 60
        return quantization.float16(content, samples)

    assert quantize(converted, mine).scheme == "mine"


# What a file is held against is a matter of what its source is for.


def wide(outputs: int, loss: object, activation: str | None = None) -> keras.Model:
    """Its kernel has an outlier, so that the steps of its scale are coarse."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(outputs, activation)])
    kernel = RANDOM.normal(size=(8, outputs))
    kernel[0] = 25
    model.layers[0].set_weights([kernel, np.zeros(outputs)])
    model.compile(loss=loss)
    return model


FLAT = np.concatenate([np.zeros((60, 1)), RANDOM.normal(size=(60, 7))], axis=1).astype("float32")


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_regressor_is_held_to_its_numbers_and_has_no_agreement(outputs: int) -> None:
    model = wide(outputs, "mse")
    with pytest.raises(UserError, match="outputs differ .* expected at most 0.1"):
        quantize(model, quantization.weight_only_int4, FLAT)
    artifact = quantize(model, quantization.weight_only_int4, FLAT, max_difference=math.inf)
    answers = np.asarray(LiteRTModel(artifact.content).predict(FLAT))
    expected = np.asarray(model(FLAT))
    apart = np.sqrt(np.mean((answers - expected) ** 2) / np.mean(expected**2))
    assert artifact.difference == pytest.approx(apart, rel=1e-3)
    assert artifact.difference > 0.1
    assert artifact.agreement is None
    assert quantize(model, quantization.float16, FLAT).difference < 1e-3


@pytest.mark.parametrize("outputs", [1, 4])
@pytest.mark.parametrize("from_logits", [True, False])
def test_yes_and_no_are_decided_at_the_threshold_of_the_loss(
    outputs: int, from_logits: bool
) -> None:
    loss = keras.losses.BinaryCrossentropy(from_logits=from_logits)
    model = wide(outputs, loss, None if from_logits else "sigmoid")
    artifact = quantize(model, quantization.weight_only_int4, FLAT, min_agreement=0)
    threshold = 0.0 if from_logits else 0.5
    answers = np.asarray(LiteRTModel(artifact.content).predict(FLAT)) > threshold
    assert artifact.agreement == np.mean(answers == (np.asarray(model(FLAT)) > threshold))
    with pytest.raises(UserError, match="decides as its source on"):
        quantize(model, quantization.weight_only_int4, FLAT, min_agreement=1)


def test_of_several_outputs_each_is_held_to_what_it_is_for() -> None:
    inputs = keras.Input((8,))
    outputs = {
        "kind": keras.layers.Dense(3, name="kind")(inputs),
        "price": keras.layers.Dense(1, name="price")(inputs),
    }
    model = keras.Model(inputs, outputs)
    classes = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss={"kind": classes, "price": "mse"})
    artifact = quantize(model, quantization.weight_only_int8, FLAT)
    answers, expected = LiteRTModel(artifact.content).predict(FLAT), model(FLAT)
    same = np.mean(answers["kind"].argmax(1) == np.asarray(expected["kind"]).argmax(1))
    assert artifact.agreement == same


def test_what_was_not_compiled_is_known_by_probabilities_alone() -> None:
    scores = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    assert quantize(scores, quantization.float16, FLAT).agreement is None
    assert quantize(scores, quantization.float16, FLAT, min_agreement=0.5).agreement == 1
    shares = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, "softmax")])
    assert quantize(shares, quantization.float16, FLAT).agreement == 1
    single = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="min_agreement is for outputs that decide"):
        quantize(single, quantization.float16, FLAT, min_agreement=0.5)


# What is refused.


def test_what_does_not_run_or_is_of_no_use_is_never_handed_out(converted: Artifact) -> None:
    with pytest.raises(UserError, match="changed nothing"):
        quantize(converted, lambda content, samples: content)
    with pytest.raises(UserError, match="does not run"):
        quantize(converted, lambda content, samples: content[:500])
    with pytest.raises(UserError, match="decides as its source on .* expected at least 101.0%"):
        quantize(converted, quantization.dynamic_int4, min_agreement=1.01)
    other = {name: values + 1 for name, values in converted.expected.items()}
    with pytest.raises(UserError, match="answers differently from Keras"):
        compare(converted.content, "float32", converted.feeds, other, tolerance=TOLERANCE)
    quantized = quantize(converted, quantization.float16)
    with pytest.raises(ValueError, match="quantized already"):
        quantize(quantized, quantization.int8)
    with pytest.raises(ValueError, match="has its samples"):
        quantize(converted, quantization.int8, X)


@pytest.mark.parametrize(
    ("x", "complaint"),
    [(X[:0], "no samples"), (X[:, :5], "takes the shape"), ({"a": X, "b": X}, "holds 2 arrays")],
    ids=["empty", "shape", "number"],
)
def test_samples_that_do_not_fit_are_refused(
    classifier: keras.Model, x: np.ndarray, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        quantize(classifier, quantization.int8, x)


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`")  # Keras' own
def test_models_that_cannot_be_quantized_are_refused() -> None:
    x = RANDOM.normal(size=(8, 4)).astype("float32")
    unbuilt = keras.Sequential([keras.layers.Dense(2)])
    with pytest.raises(UserError, match="has not been built"):
        quantize(unbuilt, quantization.int8, x)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.layers[0].kernel.assign(np.full((4, 2), np.nan))
    with pytest.raises(UserError, match="NaN"):
        quantize(model, quantization.int8, x)
    huge = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), keras.layers.Dense(2)])
    huge.set_weights([np.full_like(weight, 1e30) for weight in huge.get_weights()])
    with pytest.raises(UserError, match="answers NaN or infinity"):
        quantize(huge, quantization.int8, x)
    done = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    done.quantize("int8")
    with pytest.raises(UserError, match="quantized already"):
        quantize(done, quantization.int8, x)
    sound = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        convert(sound, x, batch_size=0)


# A choice of layers.


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.__name__)
def test_a_choice_of_layers_leaves_the_others_in_float(scheme: quantization.Scheme) -> None:
    keras.utils.set_random_seed(0)
    inner = keras.Sequential([keras.Input((8,)), keras.layers.Dense(5, name="dense")], name="inner")
    image = keras.Input((6, 6, 1), name="image")
    hidden = keras.layers.ReLU()(keras.layers.Conv2D(8, 3, name="dense_1")(image))
    hidden = inner(keras.layers.GlobalAveragePooling2D()(hidden))
    model = keras.Model(image, keras.layers.Dense(3, name="dense")(hidden))
    converted = convert(model, X)
    assert list(converted.operations) == ["dense_1", "inner.dense", "dense"]
    shapes = {"dense_1": (8, 3, 3, 1), "inner.dense": (5, 8), "dense": (3, 5)}
    for chosen in (["inner.dense"], ["dense_1", "dense"]):
        artifact = quantize(converted, scheme, layers=chosen)
        assert artifact.float_layers == tuple(name for name in shapes if name not in chosen)
        dtypes = {each.values.shape: each.dtype for each in file_weights(artifact.content)}
        for name, shape in shapes.items():
            wanted = EXPECTED[scheme.__name__][0] if name in chosen else "float32"
            assert dtypes[shape] == wanted, (name, chosen)


def test_a_choice_of_what_is_not_there_is_refused(converted: Artifact) -> None:
    with pytest.raises(ValueError, match="names 'nowhere', which the file has no weights of"):
        quantize(converted, quantization.int8, layers=["nowhere"])
    with pytest.raises(ValueError, match="names no layer"):
        quantize(converted, quantization.int8, layers=[])
    with pytest.raises(ValueError, match="takes no choice of layers"):
        quantize(converted, lambda content, samples: content, layers=list(converted.operations))

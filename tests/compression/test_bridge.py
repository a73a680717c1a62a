"""The bridge between Keras 3 and tf_keras, layer by layer and on whole models."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras
from packaging.version import Version

from mlflow_keras_adv.compression.bridge import TOLERANCE, to_keras, to_tf_keras
from mlflow_keras_adv.compression.graphs import named_layers
from mlflow_keras_adv.errors import UserError

layers = keras.layers
RANDOM = np.random.default_rng(0)


def values(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=(3, *shape)).astype("float32")


def randomized(model: keras.Model, seed: int = 0) -> keras.Model:
    """The same model with weights that no initializer would give: no zeros, no ones."""
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        if "float" in str(weight.dtype):
            weight.assign(
                generator.uniform(0.05, 0.4, size=weight.shape) * generator.choice([1, 1])
            )
    return model


def answers(model: Any, batch: Any) -> list[np.ndarray]:
    outputs = keras.tree.flatten(model(batch, training=False))
    return [np.asarray(output) for output in outputs]


def largest_difference(one: Any, other: Any, batch: Any) -> float:
    """Of two models' outputs, relative to the largest one."""
    pairs = zip(answers(one, batch), answers(other, batch), strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)) for a, b in pairs)


def sequential(*parts: keras.layers.Layer, shape: tuple[int, ...], dtype: str = "float32") -> Any:
    return randomized(keras.Sequential([keras.Input(shape, dtype=dtype), *parts]))


def named(name: str, function: Callable[..., Any]) -> Any:
    return pytest.param(function, id=name)


def doubled(x: Any) -> Any:
    return keras.ops.multiply(x, 2)


SIGNAL, IMAGE, VOLUME = (6, 4), (6, 6, 4), (4, 4, 4, 2)
LAYERS: dict[str, tuple[tuple[int, ...], Callable[[], keras.layers.Layer]]] = {
    "Dense": ((4,), lambda: layers.Dense(3, activation="tanh")),
    "Dense without bias": ((4,), lambda: layers.Dense(3, use_bias=False)),
    "Dense regularized": (
        (4,),
        lambda: layers.Dense(
            3,
            kernel_regularizer=keras.regularizers.L1L2(0.1, 0.2),
            bias_regularizer="l2",
            kernel_constraint=keras.constraints.MaxNorm(3),
        ),
    ),
    "Dense hard_sigmoid": ((4,), lambda: layers.Dense(3, activation="hard_sigmoid")),
    "Dense hard_silu": ((4,), lambda: layers.Dense(3, activation="hard_silu")),
    "Dense celu": ((4,), lambda: layers.Dense(3, activation="celu")),
    "Dense log_softmax": ((4,), lambda: layers.Dense(3, activation="log_softmax")),
    "Dense with a function": ((4,), lambda: layers.Dense(3, activation=doubled)),
    "EinsumDense": (SIGNAL, lambda: layers.EinsumDense("abc,cd->abd", (None, 3), bias_axes="d")),
    "Conv1D": (SIGNAL, lambda: layers.Conv1D(3, 2, padding="causal", dilation_rate=2)),
    "Conv2D": (IMAGE, lambda: layers.Conv2D(4, 3, groups=2, strides=2, padding="same")),
    "Conv3D": (VOLUME, lambda: layers.Conv3D(3, 2)),
    "Conv1DTranspose": (SIGNAL, lambda: layers.Conv1DTranspose(3, 2, strides=2)),
    "Conv2DTranspose": (
        IMAGE,
        lambda: layers.Conv2DTranspose(3, 3, strides=2, padding="same", output_padding=1),
    ),
    "DepthwiseConv1D": (SIGNAL, lambda: layers.DepthwiseConv1D(2, depth_multiplier=2)),
    "DepthwiseConv2D": (IMAGE, lambda: layers.DepthwiseConv2D(3)),
    "SeparableConv1D": (SIGNAL, lambda: layers.SeparableConv1D(3, 2)),
    "SeparableConv2D": (IMAGE, lambda: layers.SeparableConv2D(3, 2)),
    "BatchNormalization": (IMAGE, lambda: layers.BatchNormalization(epsilon=0.01)),
    "LayerNormalization": (SIGNAL, lambda: layers.LayerNormalization()),
    "GroupNormalization": (IMAGE, lambda: layers.GroupNormalization(2)),
    "UnitNormalization": (SIGNAL, lambda: layers.UnitNormalization()),
    "Rescaling": (IMAGE, lambda: layers.Rescaling(2.0, -1.0)),
    "Resizing": (IMAGE, lambda: layers.Resizing(4, 3)),
    "CenterCrop": (IMAGE, lambda: layers.CenterCrop(4, 4)),
    "RandomFlip": (IMAGE, lambda: layers.RandomFlip(seed=1)),
    "RandomRotation": (IMAGE, lambda: layers.RandomRotation(0.1)),
    "RandomZoom": (IMAGE, lambda: layers.RandomZoom(0.1)),
    "RandomTranslation": (IMAGE, lambda: layers.RandomTranslation(0.1, 0.1)),
    "RandomContrast": (IMAGE, lambda: layers.RandomContrast(0.1)),
    "RandomBrightness": (IMAGE, lambda: layers.RandomBrightness(0.1)),
    "Dropout": ((4,), lambda: layers.Dropout(0.5, seed=3)),
    "SpatialDropout2D": (IMAGE, lambda: layers.SpatialDropout2D(0.5)),
    "GaussianNoise": ((4,), lambda: layers.GaussianNoise(0.5)),
    "AlphaDropout": ((4,), lambda: layers.AlphaDropout(0.5)),
    "MaxPooling2D": (IMAGE, lambda: layers.MaxPooling2D(2)),
    "AveragePooling1D": (SIGNAL, lambda: layers.AveragePooling1D(2, padding="same")),
    "GlobalAveragePooling2D": (IMAGE, lambda: layers.GlobalAveragePooling2D(keepdims=True)),
    "GlobalMaxPooling1D": (SIGNAL, lambda: layers.GlobalMaxPooling1D()),
    "ReLU": ((4,), lambda: layers.ReLU(1.0, 0.1, 0.2)),
    "LeakyReLU": ((4,), lambda: layers.LeakyReLU(0.2)),
    "PReLU": (IMAGE, lambda: layers.PReLU(shared_axes=[1, 2])),
    "ELU": ((4,), lambda: layers.ELU(0.5)),
    "Softmax": ((4,), lambda: layers.Softmax()),
    "Activation": ((4,), lambda: layers.Activation("silu")),
    "ZeroPadding2D": (IMAGE, lambda: layers.ZeroPadding2D(((1, 2), (0, 1)))),
    "Cropping1D": (SIGNAL, lambda: layers.Cropping1D(1)),
    "UpSampling2D": (IMAGE, lambda: layers.UpSampling2D(2, interpolation="bilinear")),
    "Reshape": (SIGNAL, lambda: layers.Reshape((3, 8))),
    "Permute": (SIGNAL, lambda: layers.Permute((2, 1))),
    "RepeatVector": ((4,), lambda: layers.RepeatVector(3)),
    "Flatten": (IMAGE, lambda: layers.Flatten()),
    "Identity": ((4,), lambda: layers.Identity()),
    "Masking": (SIGNAL, lambda: layers.Masking(0.0)),
    "Lambda": ((4,), lambda: layers.Lambda(lambda x: x * 3)),
    "LSTM": (SIGNAL, lambda: layers.LSTM(3, return_sequences=True)),
    "LSTM hard_sigmoid": (
        SIGNAL,
        lambda: layers.LSTM(3, recurrent_activation="hard_sigmoid", unroll=True),
    ),
    "GRU": (SIGNAL, lambda: layers.GRU(3)),
    "GRU reset before": (SIGNAL, lambda: layers.GRU(3, reset_after=False, go_backwards=True)),
    "SimpleRNN": (SIGNAL, lambda: layers.SimpleRNN(3)),
    "Bidirectional": (SIGNAL, lambda: layers.Bidirectional(layers.LSTM(3), merge_mode="sum")),
    "Bidirectional of two": (
        SIGNAL,
        lambda: layers.Bidirectional(
            layers.LSTM(3), backward_layer=layers.GRU(3, go_backwards=True)
        ),
    ),
    "RNN of cells": (SIGNAL, lambda: layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)])),
    "TimeDistributed": (
        SIGNAL,
        lambda: layers.TimeDistributed(layers.Dense(3, kernel_regularizer="l1")),
    ),
    "ConvLSTM2D": (VOLUME, lambda: layers.ConvLSTM2D(3, 2)),
    "CategoryEncoding": ((4,), lambda: layers.CategoryEncoding(5, output_mode="multi_hot")),
    "Discretization": ((4,), lambda: layers.Discretization([-1.0, 0.0, 1.0])),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_the_same_in_tf_keras(name: str) -> None:
    shape, layer = LAYERS[name]
    model = sequential(layer(), shape=shape)
    batch = values(*shape)
    if name == "CategoryEncoding":
        batch = np.abs(batch).astype("int32")
    carried = to_tf_keras(model, batch)
    assert isinstance(carried, tf_keras.Model)
    assert largest_difference(model, carried, batch) <= TOLERANCE
    back = to_keras(carried, batch, like=model)
    assert largest_difference(model, back, batch) <= TOLERANCE
    for weight, other in zip(model.weights, back.weights, strict=True):
        np.testing.assert_array_equal(weight, other)


HALF = {"mixed_float16": 5e-3, "bfloat16": 2e-2}


@pytest.mark.parametrize("policy", HALF)
def test_sixteen_bits_become_thirty_two(policy: str) -> None:
    model = sequential(layers.Dense(3, dtype=policy), shape=(4,))
    carried = to_tf_keras(model, values(4))
    assert {weight.dtype.name for weight in carried.weights} == {"float32"}
    assert largest_difference(model, carried, values(4)) <= HALF[policy]


def test_normalization_keeps_what_it_has_adapted_to() -> None:
    for axis in (-1, None):
        normalization = layers.Normalization(axis=axis)
        normalization.adapt(values(4) * 3 + 7)
        model = keras.Sequential([keras.Input((4,)), normalization, layers.Dense(2)])
        batch = values(4) * 3 + 7
        carried = to_tf_keras(model, batch)
        assert largest_difference(model, carried, batch) <= TOLERANCE
        assert largest_difference(model, to_keras(carried, batch, like=model), batch) <= TOLERANCE


def attention() -> tuple[keras.Model, Any]:
    query, value = keras.Input((5, 6), name="query"), keras.Input((7, 6), name="value")
    mixed = layers.MultiHeadAttention(2, 4, value_dim=3, output_shape=5)(
        query, value, use_causal_mask=True
    )
    scores = layers.Attention(use_scale=True)([mixed, mixed])
    model = keras.Model([query, value], layers.AdditiveAttention()([scores, scores]))
    return model, [values(5, 6), values(7, 6)]


def words() -> tuple[keras.Model, Any]:
    words = keras.Input((6,), dtype="int32")
    embedded = layers.Embedding(9, 4, mask_zero=True)(words)
    model = keras.Model(words, layers.SimpleRNN(3)(layers.Dropout(0.5)(embedded)))
    return model, RANDOM.integers(0, 3, size=(3, 6)).astype("int32")


def states() -> tuple[keras.Model, Any]:
    inputs = keras.Input((6, 4))
    *_, hidden, cell = layers.LSTM(3, return_sequences=True, return_state=True)(inputs)
    model = keras.Model(inputs, layers.LSTM(3)(inputs, initial_state=[hidden, cell]))
    return model, values(6, 4)


def merges() -> tuple[keras.Model, Any]:
    a, b = keras.Input((4, 4)), keras.Input((4, 4))
    merged = [
        layer()([a, b])
        for layer in (layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum)
    ]
    merged += [layers.Minimum()([a, b]), layers.Concatenate(axis=1)([a, b])]
    return keras.Model([a, b], [*merged, layers.Dot(axes=2)([a, b])]), [values(4, 4), values(4, 4)]


def operations() -> tuple[keras.Model, Any]:
    a, b = keras.Input((4,)), keras.Input((4,))
    summed = keras.ops.relu(a * 2.0 + b) - 1.0
    joined = keras.ops.concatenate([summed, a * b], axis=-1)
    return keras.Model([a, b], keras.ops.sum(joined[:, 1:7], axis=-1, keepdims=True)), [
        values(4),
        values(4),
    ]


def shared_and_nested() -> tuple[keras.Model, Any]:
    """One layer and one inner model, each used twice; dicts in and out."""
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    shared = layers.Dense(5, activation="relu", name="shared")
    inner = keras.Sequential(
        [keras.Input((5,)), layers.Dense(3, name="dense"), layers.BatchNormalization(name="norm")],
        name="inner",
    )
    deepest = keras.Input((3,))
    outer = keras.Model(deepest, layers.Dense(2, name="dense")(deepest), name="outer")
    one, two = inner(shared(left)), inner(shared(right))
    outputs = {"sum": outer(layers.Add()([one, two])), "both": [one, two]}
    model = keras.Model({"left": left, "right": right}, outputs)
    return model, {"left": values(4), "right": values(4)}


GRAPHS = (attention, words, states, merges, operations, shared_and_nested)


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_graph_computes_the_same_in_tf_keras_and_back(graph: Callable[[], Any]) -> None:
    model, batch = graph()
    randomized(model)
    carried = to_tf_keras(model, batch)
    assert largest_difference(model, carried, batch) <= TOLERANCE
    back = to_keras(carried, batch, like=model)
    assert largest_difference(model, back, batch) <= TOLERANCE
    keras.tree.assert_same_structure(model(batch), back(batch))


def test_inner_models_are_laid_out_flat_and_shared_layers_stay_shared() -> None:
    model, batch = shared_and_nested()
    carried = to_tf_keras(model, batch)
    with_weights = {layer.name for layer in carried.layers if layer.weights}
    assert with_weights == {"shared", "inner.dense", "inner.norm", "outer.dense"}
    assert with_weights <= set(named_layers(model))
    assert carried.count_params() == model.count_params()
    assert set(carried(batch)) == {"sum", "both"}


def test_names_that_would_meet_across_the_bridge_are_kept_apart() -> None:
    inner = sequential(layers.Dense(4, name="dense"), shape=(4,))
    inner.name = "head"
    inputs = keras.Input((4,))
    outer = layers.Dense(4, name="head.dense")
    model = randomized(keras.Model(inputs, outer(inner(inputs))))
    assert list(named_layers(model)) == ["head.dense", "head.dense_1"]
    back = to_keras(to_tf_keras(model, values(4)), values(4), like=model)
    assert largest_difference(model, back, values(4)) <= TOLERANCE


def test_what_tf_keras_learned_comes_back() -> None:
    model, batch = shared_and_nested()
    carried = to_tf_keras(randomized(model), batch)
    before = [np.array(weight) for weight in model.weights]
    for weight in carried.weights:
        weight.assign_add(tf_keras.backend.ones_like(weight) * 0.01)
    back = to_keras(carried, batch, like=model)
    for weight, old, new in zip(model.weights, before, back.weights, strict=True):
        np.testing.assert_array_equal(weight, old, "the given model has changed")
        np.testing.assert_allclose(new, old + 0.01, rtol=1e-6)


def test_a_model_of_tf_keras_becomes_one_of_keras() -> None:
    parts = tf_keras.layers
    inputs = tf_keras.Input((6, 6, 2))
    hidden = parts.BatchNormalization()(parts.Conv2D(4, 3, activation="swish")(inputs))
    hidden = parts.Add()([hidden, parts.LeakyReLU(0.2)(hidden)])
    inner = tf_keras.Sequential([parts.Flatten(), parts.Dense(3, name="last")], name="inner")
    model = tf_keras.Model(inputs, {"scores": inner(hidden)})
    batch = values(6, 6, 2)
    carried = to_keras(model, batch)
    assert isinstance(carried, keras.Model)
    assert largest_difference(model, carried, batch) <= TOLERANCE
    assert carried.get_layer("inner.last").units == 3


def test_frozen_layers_stay_frozen() -> None:
    model = sequential(layers.Dense(3, name="frozen"), layers.Dense(2), shape=(4,))
    model.get_layer("frozen").trainable = False
    carried = to_tf_keras(model, values(4))
    assert len(carried.trainable_weights) == 2
    back = to_keras(carried, values(4), like=model)
    assert len(back.trainable_weights) == 2


def test_neither_result_is_compiled() -> None:
    model = sequential(layers.Dense(3), shape=(4,))
    model.compile("adam", "mse")
    carried = to_tf_keras(model, values(4))
    assert carried.optimizer is None
    assert not to_keras(carried, values(4), like=model).compiled
    assert model.compiled


# What cannot be carried is refused by name.


def since_keras(version: str) -> pytest.MarkDecorator:
    old = Version(keras.__version__) < Version(version)
    return pytest.mark.skipif(old, reason=f"a layer or option that Keras has from {version} on")


class Custom(layers.Layer):
    def call(self, inputs):
        return inputs * 2


class Subclassed(keras.Model):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


@pytest.mark.parametrize(
    ("layer", "shape", "complaint"),
    [
        (lambda: Custom(name="own"), (4,), r"layer 'own' \(Custom\).*not one of keras's own"),
        pytest.param(
            lambda: layers.RMSNormalization(name="rms"),
            (4,),
            "'rms'.*has no RMSNormalization",
            marks=since_keras("3.9"),
        ),
        pytest.param(
            lambda: layers.Resizing(3, 3, antialias=True, name="small"),
            IMAGE,
            "'small'.*no option 'antialias', which is True",
            marks=since_keras("3.9"),
        ),
        (
            lambda: layers.SpectralNormalization(layers.Dense(2), name="spectral"),
            (4,),
            "'spectral'",
        ),
    ],
)
def test_a_layer_or_option_without_a_counterpart_is_refused_by_name(
    layer: Callable[[], Any], shape: tuple[int, ...], complaint: str
) -> None:
    model = keras.Sequential([keras.Input(shape), layer()])
    with pytest.raises(UserError, match=complaint):
        to_tf_keras(model, values(*shape))


def test_a_subclassed_model_is_refused() -> None:
    model = Subclassed(name="mine")
    model(values(4))
    with pytest.raises(UserError, match=r"'mine' \(Subclassed\) is neither Sequential nor"):
        to_tf_keras(model, values(4))


def test_a_model_without_weights_yet_is_refused() -> None:
    with pytest.raises(UserError, match="has not been built"):
        to_tf_keras(keras.Sequential([layers.Dense(2)]), values(4))


def test_a_quantized_model_is_refused() -> None:
    model = sequential(layers.Dense(3, name="small"), shape=(4,))
    model.get_layer("small").quantize("int8")
    with pytest.raises(UserError, match="'small'.* is quantized already"):
        to_tf_keras(model, values(4))


def test_weights_that_are_nan_are_refused() -> None:
    model = sequential(layers.Dense(3, name="broken"), shape=(4,))
    model.weights[0].assign(np.full((4, 3), np.nan))
    with pytest.raises(UserError, match="broken/kernel' holds NaN"):
        to_tf_keras(model, values(4))


def test_an_empty_batch_proves_nothing() -> None:
    with pytest.raises(UserError, match="batch is empty"):
        to_tf_keras(sequential(layers.Dense(3), shape=(4,)), values(4)[:0])


def test_a_difference_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # What hard_sigmoid was before it travelled as a function: the same name, another slope.
    from mlflow_keras_adv.compression import layer_translation

    monkeypatch.setattr(
        layer_translation, "_activation", lambda *_: tf_keras.activations.hard_sigmoid
    )
    model = sequential(layers.Dense(3, activation="hard_sigmoid"), shape=(4,))
    with pytest.raises(UserError, match="output 0 differs by"):
        to_tf_keras(model, values(4))


def test_where_the_libraries_differ_the_proof_refuses() -> None:
    # With an initial state Keras 3.15 does not apply the mask of the sequence; tf_keras does.
    words = keras.Input((6,), dtype="int32")
    state = keras.Input((3,))
    embedded = layers.Embedding(9, 4, mask_zero=True)(words)
    recurrent = layers.SimpleRNN(3)(embedded, initial_state=[state])
    model = randomized(keras.Model([words, state], recurrent))
    batch = [np.array([[1, 2, 3, 0, 0, 0]], "int32"), values(3)[:1]]
    with pytest.raises(UserError, match="differs by"):
        to_tf_keras(model, batch)


def test_a_tf_keras_model_of_another_origin_does_not_fit() -> None:
    one = sequential(layers.Dense(3, name="one"), shape=(4,))
    other = sequential(layers.Dense(3, name="other"), shape=(4,))
    with pytest.raises(UserError, match="layer 'other'.*no layer of that name"):
        to_keras(to_tf_keras(one, values(4)), values(4), like=other)


# Whole models, as people have them.

# The blocks of the others are among theirs.
APPLICATIONS = ("MobileNetV3Small", "EfficientNetB0")
LARGE = ("MobileNet", "MobileNetV2", "ResNet50", "DenseNet121")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*APPLICATIONS, *(pytest.param(name, marks=pytest.mark.soak) for name in LARGE)]
)
def test_a_model_of_keras_applications_computes_the_same(name: str) -> None:
    application = getattr(keras.applications, name)
    model = application(
        weights=None, input_shape=(32, 32, 3), classes=5, classifier_activation=None
    )
    generator = np.random.default_rng(0)
    for weight in model.weights:  # statistics and scales as after training, not 0 and 1
        if len(weight.shape) == 1:
            weight.assign(generator.uniform(0.5, 1.5, size=weight.shape))
    batch = generator.uniform(0, 255, size=(2, 32, 32, 3)).astype("float32")
    carried = to_tf_keras(model, batch)  # proves it
    assert largest_difference(model, carried, batch) <= TOLERANCE

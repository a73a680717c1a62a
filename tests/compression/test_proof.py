"""What each step of compression is held to: the same graph, the same weights, the same answers."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

from mlflow_keras_adv.compat.tfmot import tfmot
from mlflow_keras_adv.compression import quantization_aware
from mlflow_keras_adv.compression.bridge import to_tf_keras
from mlflow_keras_adv.compression.proof import prove, prove_graph, prove_outputs
from mlflow_keras_adv.errors import UserError
from tests.compression import topologies
from tests.compression.topologies import conv

layers = keras.layers
IMAGE = (6, 6, 2)
BATCH = np.random.default_rng(0).random((4, *IMAGE), dtype=np.float32)


def image_model(build: Callable[[Any], Any]) -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input(IMAGE)
    return keras.Model(image, build(image))


def quantized(model: keras.Model) -> tuple[Any, Any]:
    """The model in tf_keras, and what tfmot makes of it."""
    carried = to_tf_keras(model, BATCH)
    return carried, quantization_aware._annotated(
        carried, quantization_aware._scheme(False, False)
    )[0]


def normalized_first(image: Any) -> Any:
    return layers.Concatenate()([conv(image, 3), layers.MaxPooling2D(2, 1, "same")(image)])


def three_branches(image: Any) -> Any:
    plain = layers.Conv2D(3, 1, activation="relu")(image)
    pooled = layers.MaxPooling2D(2, 1, "same")(image)
    return layers.Concatenate()([conv(image, 3), plain, conv(image, 2), pooled])


def image_last(image: Any) -> Any:
    return layers.Concatenate()([layers.Conv2D(2, 1)(layers.Conv2D(3, 1)(image)), image])


def twice_the_same(image: Any) -> Any:
    h = conv(image, 3)
    return layers.Concatenate()([h, layers.Conv2D(2, 1)(image), h])


def difference_and_product(image: Any) -> Any:
    a, b = (layers.Flatten()(conv(image, filters)) for filters in (2, 2))
    a, b = layers.Dense(5)(a), layers.BatchNormalization()(layers.Dense(5)(b))
    return layers.Concatenate()([layers.Subtract()([b, a]), layers.Dot(1)([a, b])])


def attention_by_keyword(image: Any) -> Any:
    rows = layers.Reshape((6, 12))(image)
    query, value = layers.Dense(4)(rows), layers.Dense(6)(rows)
    attended = layers.MultiHeadAttention(2, 3)(query, key=rows, value=value)
    return layers.Attention()([attended, query])


def several_results(image: Any) -> Any:
    _, state, cell = layers.LSTM(3, return_state=True)(layers.Reshape((6, 12))(image))
    return layers.Dense(2)(layers.Concatenate()([cell, layers.Dense(3)(state)]))


def shared_and_nested(image: Any) -> Any:
    inner_image = keras.Input(IMAGE)
    inner = keras.Model(inner_image, normalized_first(inner_image))
    first = layers.Conv2D(2, 1)
    a, b = first(image), first(layers.MaxPooling2D(2, 1, "same")(image))
    return layers.Concatenate()([inner(b), inner(a), a])


GRAPHS = (
    *(normalized_first, three_branches, image_last, twice_the_same, difference_and_product),
    *(attention_by_keyword, several_results, shared_and_nested),
)


@pytest.mark.parametrize("build", GRAPHS)
def test_quantizing_keeps_what_feeds_each_layer_in_order(build: Callable[[Any], Any]) -> None:
    carried, model = quantized(image_model(build))
    prove("quantize_apply", carried, model, BATCH)


@pytest.mark.parametrize("build", [normalized_first, three_branches])
def test_tfmot_alone_is_found_out(build: Callable[[Any], Any]) -> None:
    carried = to_tf_keras(image_model(build), BATCH)
    alone = tfmot.quantization.keras.quantize_model(carried)
    with pytest.raises(UserError, match=r"layer 'concatenate.*' was fed by \['re_lu"):
        prove("quantize_apply", carried, alone, BATCH)
    with pytest.raises(UserError, match="computes something else now: output 0 differs"):
        prove_outputs("quantize_apply", carried, alone, BATCH)


@pytest.mark.parametrize("before", [0, 1, 3])
def test_layers_that_tfmot_adds_have_names_of_their_own(before: int) -> None:
    tf_keras.backend.reset_uids()  # as in a fresh process
    for _ in range(before):
        layers.Conv2D(1, 1)
        tf_keras.layers.Conv2D(1, 1)
        tf_keras.layers.DepthwiseConv2D(1)

    def build(image: Any) -> Any:
        h = layers.Conv2D(4, 1)(image)
        h = layers.SeparableConv2D(4, 3)(h)
        return layers.SeparableConv2D(4, 3)(layers.Conv2D(4, 1)(h))

    keras.backend.clear_session()
    model = image_model(build)
    assert [layer.name for layer in model.layers][1:4] == ["conv2d", "separable_conv2d", "conv2d_1"]
    carried, made = quantized(model)
    prove("quantize_apply", carried, made, BATCH)
    names = [layer.name for layer in made.layers]
    assert len(set(names)) == len(names)
    assert {"quant_separable_conv2d", "quant_separable_conv2d.depthwise_conv2d"} <= set(names)


@pytest.mark.quick
def test_frozen_layers_stay_frozen_when_they_are_quantized() -> None:
    model = image_model(lambda image: layers.Dense(2)(layers.Flatten()(conv(image, 3))))
    for layer in model.layers[:-1]:
        layer.trainable = False
    carried, made = quantized(model)
    prove("quantize_apply", carried, made, BATCH)
    assert [weight.name for weight in made.trainable_weights] == [
        weight.name for weight in carried.trainable_weights
    ]


# What the proof finds.


def two_dense(order: int = 1) -> tf_keras.Model:
    tf_keras.utils.set_random_seed(0)
    inputs = tf_keras.Input((3,))
    parts = [tf_keras.layers.Dense(3, name=name)(inputs) for name in ("one", "other")]
    merged = tf_keras.layers.Subtract(name="less")(parts[::order])
    return tf_keras.Model(inputs, tf_keras.layers.Dense(2, name="last")(merged))


def test_what_a_step_has_changed_is_named() -> None:
    model, sample = two_dense(), BATCH[:, 0, 0, :1] * np.ones(3, np.float32)
    prove("nothing", model, two_dense(), sample)
    with pytest.raises(UserError, match=r"'less' was fed by \['one', 'other'\].*by \['other', 'o"):
        prove("a step", model, two_dense(-1), sample)

    changed = two_dense()
    changed.get_layer("one").kernel.assign_add(np.full((3, 3), 1e-3))
    with pytest.raises(UserError, match=r"a weight of layer 'one', of the shape \(3, 3\)"):
        prove("a step", model, changed, sample)
    with pytest.raises(UserError, match="output 0 differs by"):
        prove_outputs("a step", model, changed, sample)

    frozen = two_dense()
    frozen.get_layer("other").trainable = False
    with pytest.raises(UserError, match="a weight of layer 'other' would be frozen"):
        prove("a step", model, frozen, sample)

    whole = two_dense()
    part = tf_keras.Model(whole.input, whole.get_layer("less").output)
    with pytest.raises(UserError, match=r"'last' was fed by \['less'\], and afterwards it is not"):
        prove_graph("a step", model, part)
    with pytest.raises(UserError, match="a layer 'last' has come into the model"):
        prove_graph("a step", part, model)


@pytest.mark.slow
def test_what_was_silently_wrong_is_right_in_a_fresh_process() -> None:
    ((_, found),) = topologies.in_a_new_process("qat", "separable", epochs=3, fine_tuned=4)
    assert "refused" not in found, found
    assert found["float"] > 0.8, found
    assert found["file"] > found["float"] - 0.05, found
    assert abs(found["file"] - found["trained"]) < 0.02, found

"""Channel pruning: what is removed, what is kept whole, and that the rest computes the same."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from mlflow_keras_adv.compression import prune_channels
from mlflow_keras_adv.compression.channel_graph import read_channels
from mlflow_keras_adv.errors import UserError

layers = keras.layers
RANDOM = np.random.default_rng(0)
X = RANDOM.random((48, 8, 8, 2), dtype=np.float32)
Y = (X.mean(axis=(1, 2, 3)) > 0.5).astype("int32")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
STILL = keras.optimizers.SGD(0.0)


def plain(image: Any) -> Any:
    hidden = layers.ReLU()(layers.BatchNormalization(momentum=1.0)(layers.Conv2D(6, 3)(image)))
    hidden = layers.DepthwiseConv2D(2, depth_multiplier=2, activation="sigmoid")(hidden)
    hidden = layers.MaxPooling2D()(layers.SeparableConv2D(5, 2, depth_multiplier=2)(hidden))
    hidden = layers.Dropout(0.1)(layers.Conv2DTranspose(4, 2, activation="tanh")(hidden))
    return layers.Dense(7, activation="relu")(layers.Flatten()(hidden))


def inception(image: Any) -> Any:
    left = layers.Conv2D(4, 1, activation="relu")(image)
    right = layers.BatchNormalization(momentum=1.0)(layers.Conv2D(6, 3, padding="same")(image))
    joined = layers.Concatenate()([right, layers.MaxPooling2D(2, 1, "same")(image), left])
    joined = layers.Conv2D(5, 3, activation="gelu")(joined)
    return layers.Dense(6)(layers.GlobalAveragePooling2D()(joined))


def fork(image: Any) -> Any:
    shared = layers.Conv2D(6, 3, activation="relu")(image)
    one, two = layers.Conv2D(4, 1)(shared), layers.Conv2D(4, 1)(shared)
    return layers.Flatten()(layers.Concatenate(axis=3)([one, two, shared]))


def build(body: Callable[[Any], Any]) -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 2))
    model = keras.Model(image, layers.Dense(2, name="head")(body(image)))
    for weight in model.weights:  # biases and statistics that would show
        if len(weight.shape) == 1 and "variance" not in weight.path:
            weight.assign(RANDOM.normal(size=weight.shape))
    model.compile("sgd", LOSS)
    return model


@pytest.mark.parametrize("body", [plain, inception, fork])
def test_a_model_whose_removed_channels_were_zero_answers_the_same(
    body: Callable[[Any], Any],
) -> None:
    model = build(body)
    expected = [layer for layer in model.layers if layer.name in read_channels(model).channels]
    for layer in expected[:-1]:
        for weight in layer.weights:
            if weight.name in ("kernel", "pointwise_kernel", "bias"):
                value = np.array(weight)
                is_transposed = isinstance(layer, layers.Conv2DTranspose) and value.ndim > 1
                np.moveaxis(value, -2 if is_transposed else -1, 0)[::2] = 0
                weight.assign(value)
    # Behind such a channel nothing may stand that makes something of nothing.
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.beta.assign(np.zeros(layer.beta.shape))
            layer.moving_mean.assign(np.zeros(layer.beta.shape))
        if isinstance(layer, layers.DepthwiseConv2D):
            layer.activation = keras.activations.relu
            layer.bias.assign(np.zeros(layer.bias.shape))
    pruned = prune_channels(model, (X, Y), channels=0.5, optimizer=STILL, verbose=0)
    before, after = np.asarray(model(X)), np.asarray(pruned.model(X))
    np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max())
    for row in pruned.layers[:-1]:
        assert row.kept_whole is None
        assert row.after == row.before - row.before // 2
    assert pruned.layers[-1].kept_whole == "they are an output of the model"
    assert pruned.parameters_after == pruned.model.count_params() < pruned.parameters_before


def test_it_trains_on_and_the_given_model_stays() -> None:
    model = build(inception)
    before = model.get_weights()
    seen: list[float] = []
    each = keras.callbacks.LambdaCallback(on_epoch_end=lambda _, logs: seen.append(logs["loss"]))
    pruned = prune_channels(
        model, (X, Y), channels=0.4, epochs=3, batch_size=16, callbacks=[each], verbose=0
    )
    assert len(seen) == 3
    assert seen[-1] < seen[0]
    assert not pruned.model.compiled
    assert pruned.latency_ms_before > 0 < pruned.latency_ms_after
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def residual(image: Any) -> Any:
    stem = layers.Conv2D(4, 3, padding="same", name="stem")(image)
    inside = layers.Conv2D(8, 3, padding="same", activation="relu", name="inside")(stem)
    back = layers.Conv2D(4, 3, padding="same", name="back")(inside)
    summed = layers.Add(name="sum")([stem, back])
    grouped = layers.Conv2D(4, 1, groups=2, name="grouped")(summed)
    normed = layers.LayerNormalization(name="norm")(layers.Conv2D(4, 1, name="mixed")(grouped))
    twice = layers.Dense(4, name="twice")
    return layers.Flatten()(twice(twice(normed)) * 2.0)


def test_what_meets_others_is_kept_whole_and_named() -> None:
    model = build(residual)
    pruned = prune_channels(model, (X, Y), channels=0.5, verbose=0)
    assert {row.name: (row.before, row.after) for row in pruned.layers} == {
        "stem": (4, 4),
        "inside": (8, 4),
        "back": (4, 4),
        "mixed": (4, 4),
        "head": (2, 2),
    }
    reasons = {row.name: row.kept_whole for row in pruned.layers}
    assert reasons["inside"] is None
    assert reasons["stem"] == reasons["back"] == "'sum' (Add) needs them all"
    assert reasons["mixed"] == "'norm' (LayerNormalization) needs them all"
    with pytest.raises(ValueError, match=r"layer 'back' cannot lose channels: 'sum' \(Add\)"):
        prune_channels(model, (X, Y), channels={"back": 0.5})
    one = prune_channels(model, (X, Y), channels={"inside": 0.9}, verbose=0)
    assert [row.after for row in one.layers] == [4, 1, 4, 4, 2]


def test_a_sequential_with_a_frozen_base_and_an_inner_model() -> None:
    keras.utils.set_random_seed(0)
    base = layers.Conv2D(4, 3, name="base")
    base.trainable = False
    inner = keras.Sequential([keras.Input((6, 6, 4)), layers.Conv2D(3, 3)], name="inner")
    hidden = [layers.Conv2D(4, 1, name="seen"), inner, layers.Flatten()]
    mixing = layers.Dense(4, activation="softmax", name="mixing")
    head = [layers.Dense(6, activation="relu", name="hidden"), layers.Dense(2, name="head")]
    model = keras.Sequential([keras.Input((8, 8, 2)), base, *hidden, mixing, *head])
    pruned = prune_channels(model, (X, Y), loss=LOSS, verbose=0)
    reasons = {row.name: row.kept_whole for row in pruned.layers}
    assert reasons["base"] == "the layer is frozen"
    assert reasons["seen"] == "'inner' (Sequential) needs them all"
    assert reasons["mixing"] == "their activation needs them all"
    assert {row.name: row.after for row in pruned.layers}["hidden"] == 3
    assert not pruned.model.get_layer("base").trainable


@pytest.mark.parametrize("channels", [0, 1, -0.5, True, "half"])
def test_another_share_is_refused(channels: Any) -> None:
    with pytest.raises(ValueError, match="expected a share above 0 and below 1"):
        prune_channels(build(plain), (X, Y), channels=channels)


def test_models_that_have_nothing_to_lose_are_refused() -> None:
    with pytest.raises(ValueError, match="names the layer 'nowhere'"):
        prune_channels(build(plain), (X, Y), channels={"nowhere": 0.5})
    linear = keras.Sequential([keras.Input((8, 8, 2)), layers.Flatten(), layers.Dense(2)])
    with pytest.raises(UserError, match="no layer that can lose channels"):
        prune_channels(linear, (X, Y), loss=LOSS)

    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.head = layers.Dense(2)

        def call(self, inputs: Any) -> Any:
            return self.head(inputs)

    own = Own()
    own(X[:, 0, 0])
    with pytest.raises(UserError, match="neither Sequential nor functional"):
        prune_channels(own, (X[:, 0, 0], Y), loss=LOSS)

"""Clustering: how many values there are, which zeros stay, what is refused."""

from typing import Any

import keras
import numpy as np
import pytest

from mlflow_keras_adv.compat.tfmot import tfmot
from mlflow_keras_adv.compression.clustering import Clustered, cluster
from mlflow_keras_adv.errors import UserError

layers = keras.layers
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(24, 6, 4)).astype("float32")
Y = np.arange(24) % 3
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def build() -> keras.Model:
    keras.utils.set_random_seed(0)
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(9, name="dense")], name="inner")
    model = keras.Sequential(
        [
            keras.Input((6, 4)),
            layers.Conv1D(8, 2, activation="relu", name="conv"),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling1D(),
            inner,
            layers.Dense(3, name="last"),
        ]
    )
    model.compile("sgd", LOSS)
    return model


def run(model: keras.Model, **arguments: Any) -> Clustered:
    return cluster(model, (X, Y), **{"batch_size": 8, "verbose": 0, **arguments})


def kernels(model: keras.Model) -> dict[str, list[np.ndarray]]:
    by_layer = {
        "conv": model.get_layer("conv"),
        "inner.dense": model.get_layer("inner").get_layer("dense"),
        "last": model.get_layer("last"),
    }
    return {
        name: [np.asarray(weight) for weight in layer.weights if len(weight.shape) > 1]
        for name, layer in by_layer.items()
    }


def test_each_kernel_has_as_few_values_as_asked_for_and_the_given_model_keeps_its_own() -> None:
    model = build()
    before = kernels(model)
    clustered = run(model, clusters=5)
    for name, values in kernels(clustered.model).items():
        assert all(len(np.unique(value)) <= 5 for value in values), name
    assert [row.name for row in clustered.layers] == list(before)
    for row in clustered.layers:
        assert row.clusters == 5
        assert row.distinct == max(len(np.unique(v)) for v in kernels(clustered.model)[row.name])
        assert row.weights == sum(value.size for value in before[row.name])
    for name, values in kernels(model).items():
        for value, old in zip(values, before[name], strict=True):
            np.testing.assert_array_equal(value, old)
    assert model.compiled
    assert not clustered.model.compiled


def test_a_choice_of_layers_leaves_the_others() -> None:
    linear = tfmot.clustering.keras.CentroidInitialization.LINEAR
    clustered = run(build(), clusters={"inner.dense": 4, "last": 3}, initialization=linear)
    rows = {row.name: row for row in clustered.layers}
    assert {name: row.clusters for name, row in rows.items()} == {
        "conv": None,
        "inner.dense": 4,
        "last": 3,
    }
    assert rows["conv"].distinct == rows["conv"].weights
    assert rows["inner.dense"].distinct <= 4


def test_the_zeros_of_a_pruned_kernel_stay() -> None:
    model = build()
    kernel, bias = model.get_layer("last").get_weights()
    kernel[np.abs(kernel) < np.median(np.abs(kernel))] = 0
    model.get_layer("last").set_weights([kernel, bias])
    clustered = run(model, clusters=4, epochs=3, optimizer=keras.optimizers.Adam(0.01))
    learned = kernels(clustered.model)["last"][0]
    assert (learned[kernel == 0] == 0).all()
    assert len(np.unique(learned)) <= 4
    assert not np.array_equal(learned, kernel)


def test_a_kernel_may_have_fewer_weights_left_than_values_are_allowed() -> None:
    model = build()
    kernel, bias = model.get_layer("last").get_weights()
    kernel[np.abs(kernel) < np.sort(np.abs(kernel), axis=None)[-5]] = 0  # five are left
    model.get_layer("last").set_weights([kernel, bias])
    clustered = run(model, clusters=16)
    learned = kernels(clustered.model)["last"][0]
    assert np.count_nonzero(learned) == 5
    rows = {row.name: row for row in clustered.layers}
    assert (rows["last"].clusters, rows["last"].distinct <= 6) == (16, True)


def test_a_layer_that_tfmot_cannot_cluster_is_left_and_shown() -> None:
    model = keras.Sequential(
        [
            keras.Input((6, 4)),
            layers.EinsumDense("abc,cd->abd", (6, 8), name="einsum"),
            layers.Flatten(),
            layers.Dense(3, name="last"),
        ]
    )
    clustered = run(model, loss=LOSS, clusters=4)
    assert [row.clusters for row in clustered.layers] == [None, 4]
    with pytest.raises(ValueError, match=r"'einsum', which cannot be clustered.*last"):
        run(model, loss=LOSS, clusters={"einsum": 4})


# What is refused.


def test_attention_and_bidirectional_layers_come_back_with_each_weight_in_its_place() -> None:
    keras.utils.set_random_seed(0)
    rows = keras.Input((6, 4))
    hidden = layers.Masking()(rows)
    hidden = layers.Bidirectional(layers.SimpleRNN(3, return_sequences=True))(hidden)
    hidden = layers.MultiHeadAttention(2, 3)(hidden, hidden)
    model = keras.Model(rows, layers.Dense(3)(layers.GlobalAveragePooling1D()(hidden)))
    model.compile("sgd", LOSS)
    clustered = run(model, clusters=5, optimizer=keras.optimizers.SGD(0.0))
    for row in clustered.layers:
        assert row.distinct <= 5
    # Not trained: biases are what they were, kernels are near.
    for before, after in zip(model.weights, clustered.model.weights, strict=True):
        apart = np.abs(np.asarray(before) - np.asarray(after)).max()
        assert apart == 0 if "bias" in before.path else apart < 0.5, before.path


@pytest.mark.parametrize("clusters", [0, 2, -3, 4.0, True])
def test_too_few_clusters_are_refused(clusters: Any) -> None:
    with pytest.raises(ValueError, match="3 or more"):
        run(build(), clusters=clusters)


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="'dense'.*conv, inner.dense, last"):
        run(build(), clusters={"dense": 4})


class Subclassed(keras.Model):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense = layers.Dense(3)

    def call(self, inputs):
        return self.dense(inputs)


def test_a_subclassed_model_is_refused() -> None:
    model = Subclassed(name="mine")
    model(X[:, 0])
    with pytest.raises(UserError, match="'mine'.*neither Sequential nor functional"):
        cluster(model, (X[:, 0], Y), loss=LOSS)


class OwnLoss(keras.Model):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs) * 2.0


def test_a_model_with_a_loss_of_its_own_is_refused() -> None:
    inputs = keras.Input((4,))
    model = OwnLoss(inputs, layers.Dense(3)(inputs), name="own")
    with pytest.raises(UserError, match="'own'.*step or loss of its own"):
        cluster(model, (X[:, 0], Y), loss=LOSS)


def test_a_quantized_model_is_refused() -> None:
    model = build()
    model.get_layer("last").quantize("int8")
    with pytest.raises(UserError, match="'last'.*is quantized already"):
        run(model)


def test_a_callback_that_tf_keras_cannot_call_is_refused() -> None:
    with pytest.raises(UserError, match=r"EarlyStopping.*tf_keras\.callbacks"):
        run(build(), callbacks=[keras.callbacks.EarlyStopping("loss")])

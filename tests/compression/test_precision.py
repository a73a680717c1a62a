"""Models of 16 bits: they compress like others, and end where they would in float32."""

from collections.abc import Iterator

import keras
import numpy as np
import pytest

from mlflow_keras_adv.compression import cluster, convert, int8, prune, quantize, quantize_aware
from mlflow_keras_adv.compression.precision import half_tolerance, in_float32
from mlflow_keras_adv.tflite.runtime import LiteRTModel

RANDOM = np.random.default_rng(0)
X = RANDOM.random((64, 6, 6, 1), dtype=np.float32)
Y = (X.mean(axis=(1, 2, 3)) > 0.5).astype("int32")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Block(keras.layers.Layer):
    """One of a project's own, with layers in it."""

    def __init__(self, units: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.inner = keras.layers.Dense(units, activation="relu", dtype=self.dtype_policy)

    def build(self, shape: tuple[int, ...]) -> None:
        self.inner.build(shape)

    def call(self, inputs: object) -> object:
        return self.inner(inputs)

    def get_config(self) -> dict[str, object]:
        return {**super().get_config(), "units": self.units}


@pytest.fixture(autouse=True)
def policy() -> Iterator[None]:
    yield
    keras.config.set_dtype_policy("float32")


def model(policy: str, *, custom: bool = False, head: str | None = None) -> keras.Model:
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    image = keras.Input((6, 6, 1), name="image")
    hidden = keras.layers.Conv2D(8, 3, activation="relu", name="conv")(image)
    inner = keras.Sequential([keras.layers.BatchNormalization(), keras.layers.Dropout(0.1)])
    hidden = keras.layers.Flatten()(inner(hidden))
    if custom:
        hidden = Block(8)(hidden)
    built = keras.Model(image, keras.layers.Dense(3, dtype=head, name="head")(hidden))
    keras.config.set_dtype_policy("float32")
    return built


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_they_convert_and_quantize(policy: str, custom: bool) -> None:
    half = model(policy, custom=custom)
    artifact = convert(half, X)
    assert artifact.expected["output_0"].dtype == "float32"
    assert artifact.difference_max < half_tolerance(half)
    exact = np.asarray(in_float32(half)(X, training=False))
    answers = LiteRTModel(artifact.content).predict(X)
    np.testing.assert_allclose(answers, exact, atol=1e-4 * np.abs(exact).max())
    assert quantize(artifact, int8).difference_max < 8 / 127 + half_tolerance(half)
    assert {layer.compute_dtype for layer in half.layers} != {"float32"}  # as it was


def test_a_float32_model_is_not_copied() -> None:
    plain = model("float32")
    assert half_tolerance(plain) == 0
    assert in_float32(plain) is plain


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_they_train_on_in_every_scheme_and_keep_their_policy(policy: str) -> None:
    half = model(policy, head="float32")
    pruned = prune(half, (X, Y), sparsity=0.5, loss=LOSS, verbose=0)
    clustered = cluster(pruned.model, (X, Y), clusters=8, loss=LOSS, verbose=0)
    for result in (pruned.model, clustered.model):
        assert result.get_layer("conv").compute_dtype == policy.removeprefix("mixed_")
        assert np.mean(np.asarray(result.get_layer("conv").kernel) == 0) >= 0.5
    artifact = quantize_aware(
        clustered.model,
        (X, Y),
        loss=LOSS,
        preserve_sparsity=True,
        preserve_clusters=True,
        verbose=0,
    )
    assert artifact.trained_difference is not None
    assert artifact.trained_difference < 4 / 256

"""The arithmetic of a `.tflite` file, against counts by hand and against the model in it."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from mlflow_keras_adv import compression
from mlflow_keras_adv.compression.conversion import convert
from mlflow_keras_adv.metrics.flops import flops
from mlflow_keras_adv.tflite.flops import file_flops


def net(shape: tuple[int | None, ...], *stacked: Any) -> keras.Model:
    """With a bias that is not 0, which TensorFlow would leave out."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(shape), *stacked])
    model.set_weights([np.random.normal(size=each.shape) for each in model.get_weights()])
    return model


def samples(model: keras.Model, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, *model.inputs[0].shape[1:])).astype("f4")


def attention() -> keras.Model:
    taken = keras.Input((5, 8))
    return keras.Model(taken, layers.MultiHeadAttention(2, 4)(taken, taken))


@pytest.mark.parametrize(
    "model",
    [
        lambda: net((7,), layers.Dense(3, "relu"), layers.Dense(2, "softmax")),
        lambda: net((7,), layers.Dense(4, "gelu"), layers.LayerNormalization()),
        lambda: net(
            (8, 8, 3),
            layers.Conv2D(4, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2DTranspose(2, 3),
            layers.DepthwiseConv2D(3, activation="relu"),
            layers.GlobalAveragePooling2D(),
        ),
        lambda: net((5, 3), layers.LSTM(4, return_sequences=True), layers.GRU(3)),
        attention,
    ],
)
def test_a_float_file_makes_what_the_model_makes(model: Any) -> None:
    made = model()
    x = samples(made)
    found = file_flops(convert(made, x).content, x)
    theirs = flops(made, x)
    biases = 4 * 5 * 8 if model is attention else 0  # of 0, which the file is without
    assert found.total == theirs.total - biases
    assert found.uncounted == {}


def test_a_normalization_that_is_folded_into_a_kernel_is_not_in_the_file() -> None:
    conv = layers.Conv2D(4, 3, use_bias=False)
    model = keras.Sequential([keras.Input((8, 8, 3)), conv, layers.BatchNormalization()])
    model.layers[1].set_weights([np.ones(4), np.ones(4), np.ones(4), np.ones(4)])
    x = samples(model)
    assert file_flops(convert(model, x).content, x).total == 6 * 6 * 4 * (2 * 9 * 3 + 1)


def test_a_quantized_file_and_a_fixed_batch() -> None:
    model = net((7,), layers.Dense(8, "relu"), layers.Dense(3))
    x = samples(model, 40)
    products = 2 * 7 * 8 + 8 + 8 + 2 * 8 * 3 + 3
    int8 = compression.quantize(model, compression.int8, x).content
    found = file_flops(int8, x)
    assert found.total == products + 2 * (7 + 3)  # what goes in and out is converted
    assert (
        file_flops(compression.quantize(model, compression.float16, x).content, x).total == products
    )
    assert file_flops(convert(model, x, batch_size=4).content, x[:1]).total == products


def test_the_length_is_that_of_the_samples() -> None:
    model = net((None, 3), layers.Dense(4), layers.GlobalMaxPooling1D())
    x = np.ones((2, 6, 3), "float32")
    content = convert(model, x).content
    for length in (6, 9):
        longer = np.ones((1, length, 3), "float32")
        assert file_flops(content, longer).total == length * 4 * (2 * 3 + 1) + (length - 1) * 4

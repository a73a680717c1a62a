"""The rounding that tfmot puts into a model: its ranges are those of the data from the start."""

import keras
import numpy as np
import pytest

from mlflow_keras_adv.compat.tfmot import tfmot
from mlflow_keras_adv.compression.bridge import to_tf_keras
from mlflow_keras_adv.compression.fake_quantizers import calibrate, watching_ranges
from mlflow_keras_adv.compression.quantization_aware import quantize_aware
from mlflow_keras_adv.tflite.runtime import LiteRTModel

RANDOM = np.random.default_rng(0)
X = RANDOM.random((96, 6, 6, 1), dtype=np.float32)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def faint() -> keras.Model:
    """A net whose activations are a hundredth of the 6 at which tfmot's ranges start."""
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 1), name="image")
    hidden = keras.layers.Conv2D(4, 3, name="first")(image)
    hidden = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=1.0)(hidden))
    hidden = keras.layers.SeparableConv2D(4, 3, activation="relu", name="second")(hidden)
    hidden = keras.layers.Dense(8, "relu", name="third")(keras.layers.Flatten()(hidden))
    model = keras.Model(image, keras.layers.Dense(3, name="head")(hidden))
    for name in ("first", "second"):
        layer = model.get_layer(name)
        layer.set_weights([weight / 10 for weight in layer.get_weights()])
    return model


def test_calibration_sees_the_float_model_and_changes_ranges_alone() -> None:
    carried = to_tf_keras(faint(), X[:2])
    quantized = tfmot.quantization.keras.quantize_model(carried)
    expected = np.asarray(carried(X, training=False))
    with watching_ranges(quantized) as watching:
        answers = np.asarray(quantized(X, training=False))
    np.testing.assert_allclose(answers, expected, atol=1e-6 * np.abs(expected).max())
    before = {w.name: w.numpy() for w in quantized.weights}
    calibrate(quantized, [X[:50], X[50:]])
    changed = {w.name for w in quantized.weights if not np.array_equal(w, before[w.name])}
    assert len(changed) == 2 * len(watching.seen) - 1  # the input's least is 0, as it was
    assert all(name.endswith(("_min:0", "_max:0")) for name in changed)
    # Of the input: what the data say, and 0, which every range holds.
    low, high = (w.numpy() for w in quantized.layers[1].weights[:2])
    assert (low, high) == (0, pytest.approx(X.max()))


@pytest.mark.slow
def test_after_one_short_epoch_the_file_is_near_the_float_model() -> None:
    model = faint()
    y = np.arange(len(X)) % 3
    artifact = quantize_aware(
        model,
        (X, y),
        loss=LOSS,
        optimizer=keras.optimizers.SGD(0.0),  # what differs is rounding
        verbose=0,
    )
    answers, expected = LiteRTModel(artifact.content).predict(X), np.asarray(model(X))
    spread = np.abs(expected - expected.mean(axis=0)).max()
    assert np.abs(answers - expected).max() < 0.2 * spread

"""Batch normalization: nets whose layers are normalized train at rates at which others diverge.

In training a layer is normalized by the mean and variance of its batch, then scaled and shifted by
learned parameters; in inference by moving averages of both, so that the prediction for an image
does not depend on the others in its batch. Ioffe, Szegedy 2015, arXiv:1502.03167.

Four nested runs with the same keys: with and without, at a low and at a high learning rate. What to
expect: a gain of some points at the low rate; at the high one only the normalized net trains.
Compare their curves `gradient/norm`. Half a minute of computing on two cores.

    mlflow run . -e batch_norm --env-manager local -P high_lr=0.5
"""

import keras
import numpy as np
from pydantic import PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.training import crossentropy, fit
from projects.data import Data, load
from projects.parameters import BatchSize, Examples, Seed, Target


def net(data: Data, normalized: bool) -> keras.Model:
    """Six narrow layers, each followed by normalization or not."""
    layers = keras.layers
    body: list[keras.layers.Layer] = data.entrance()
    for _ in range(6):
        # The shift of the normalization takes the place of the bias.
        body.append(layers.Dense(32, use_bias=not normalized))
        body += [layers.BatchNormalization(momentum=0.9)] if normalized else []
        body.append(layers.Activation("relu"))
    return keras.Sequential([*body, layers.Dense(data.classes)])


def inference_difference(model: keras.Model, x: np.ndarray) -> float:
    """Difference of the first normalization in inference from the formula in NumPy."""
    layer = next(each for each in model.layers if isinstance(each, keras.layers.BatchNormalization))
    inputs = np.random.default_rng(0).normal(size=(len(x), layer.gamma.shape[0]))
    gamma, beta, mean, variance = (np.asarray(w, np.float64) for w in layer.get_weights())
    expected = gamma * (inputs - mean) / np.sqrt(variance + layer.epsilon) + beta
    answer = keras.ops.convert_to_numpy(layer(inputs.astype(np.float32), training=False))
    return float(np.abs(answer - expected).max() / np.abs(expected).max())


def dependence_on_neighbours(model: keras.Model, x: np.ndarray) -> float:
    """Largest change of an image's logits in inference when it is alone in its batch."""
    among = keras.ops.convert_to_numpy(model(x, training=False))[:1]
    return float(np.abs(among - keras.ops.convert_to_numpy(model(x[:1], training=False))).max())


def main(
    data: Examples = "digits",
    target: Target = "",
    epochs: PositiveInt = 10,
    batch_size: BatchSize = 32,
    low_lr: PositiveFloat = 0.1,
    high_lr: PositiveFloat = 1.0,
    seed: Seed = 0,
) -> None:
    """Trains a net with and without batch normalization at two learning rates.

    Args:
        epochs: Epochs of each training.
        low_lr: Learning rate of SGD at which both nets train.
        high_lr: Learning rate at which only the normalized net trains.
    """
    params = dict(locals())
    images = load(data, target=target, seed=seed, kinds=("images", "features"))
    nets = {
        "plain_low": (False, low_lr),
        "normalized_low": (True, low_lr),
        "plain_high": (False, high_lr),
        "normalized_high": (True, high_lr),
    }

    with mka.technique("batch_norm", params, dataset=images, variants=len(nets)) as technique:
        for name, (normalized, lr) in nets.items():
            with technique.variant(name, params={"batch_norm": normalized}):
                model = net(images, normalized)
                model.compile(keras.optimizers.SGD(lr), crossentropy, metrics=["accuracy"])
                fit(model, images.train, images.validation, epochs=epochs, batch_size=batch_size)
                technique.finish(model, *images.test)

        technique.compare(curves=("gradient/norm", "train/loss", "val/accuracy"))
        accuracy = technique.final("accuracy")
        few = images.x_test[:batch_size]
        technique.conclude(
            "Test accuracy with normalization and without: at the high rate "
            f"{accuracy['normalized_high']:.1%} and {accuracy['plain_high']:.1%}, at the low rate "
            f"{accuracy['normalized_low']:.1%} and {accuracy['plain_low']:.1%}.",
            mka.Claim(
                "gain_at_high_rate",
                "accuracy on the test split with normalization minus without, at the high rate",
                accuracy["normalized_high"] - accuracy["plain_high"],
                at_least=0.3,
            ),
            mka.Claim(
                "inference_difference",
                "largest difference between a normalization in inference and the formula with its "
                "moving statistics, relative to the largest answer",
                inference_difference(model, few),
                at_most=1e-5,
            ),
            mka.Claim(
                "neighbours",
                "largest change of a logit in inference when the image is alone in its batch",
                dependence_on_neighbours(model, few),
                at_most=1e-4,
            ),
        )


if __name__ == "__main__":
    entry_point.run(main)

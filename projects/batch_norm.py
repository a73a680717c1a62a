"""Batch normalization: layers whose inputs keep their scale train at rates that others do not bear.

In training a layer is normalized with the mean and variance of its batch, then scaled and shifted
by what it learns; in inference with moving averages of both, so that an image's answer does not
depend on the images beside it. Ioffe, Szegedy 2015, arXiv:1502.03167.

Four nested runs with the same keys: with and without, at a low and at a high learning rate. What to
expect: some points at the low rate; at the high one a net that trains beside one that does not.
Compare their curves `gradient/norm`.
Half a minute of computing on two cores.

    mlflow run . -e batch_norm --env-manager local -P high_lr=0.5
"""

import keras
import numpy as np
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from projects.data import Data, load

crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


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
    """What the first normalization answers in inference, against the formula in NumPy."""
    layer = next(each for each in model.layers if isinstance(each, keras.layers.BatchNormalization))
    inputs = np.random.default_rng(0).normal(size=(len(x), layer.gamma.shape[0]))
    gamma, beta, mean, variance = (np.asarray(w, np.float64) for w in layer.get_weights())
    expected = gamma * (inputs - mean) / np.sqrt(variance + layer.epsilon) + beta
    answer = keras.ops.convert_to_numpy(layer(inputs.astype(np.float32), training=False))
    return float(np.abs(answer - expected).max() / np.abs(expected).max())


def dependence_on_neighbours(model: keras.Model, x: np.ndarray) -> float:
    """Largest change of an image's logits in inference when it is alone and not among others."""
    among = keras.ops.convert_to_numpy(model(x, training=False))[:1]
    return float(np.abs(among - keras.ops.convert_to_numpy(model(x[:1], training=False))).max())


def main(
    data: str = "digits",
    target: str = "",
    epochs: PositiveInt = 10,
    batch_size: PositiveInt = 32,
    low_lr: PositiveFloat = 0.1,
    high_lr: PositiveFloat = 1.0,
    seed: NonNegativeInt = 0,
) -> None:
    """Trains a net with and without batch normalization at two learning rates.

    Args:
        data: digits, keras:mnist (or another of keras.datasets), breast_cancer, a folder of images,
            or the path of an .npz, .csv or .parquet file.
        target: Column to tell of a .csv or .parquet file.
        epochs: Epochs of each training.
        batch_size: Examples per step.
        low_lr: Learning rate of SGD that both nets bear.
        high_lr: The one that only the normalized net does.
        seed: Seed of weights, order of examples and choice of the validation split.
    """
    params = dict(locals())
    images = load(data, target=target, seed=seed, kinds=("images", "features"))
    nets = {
        "plain_low": (False, low_lr),
        "normalized_low": (True, low_lr),
        "plain_high": (False, high_lr),
        "normalized_high": (True, high_lr),
    }

    record = {"dataset": images.dataset, "seed": seed, "variants": len(nets)}
    with mka.technique("batch_norm", params, **record) as technique:
        for name, (normalized, lr) in nets.items():
            with technique.variant(name, params={"batch_norm": normalized}):
                model = net(images, normalized)
                model.compile(keras.optimizers.SGD(lr), crossentropy, metrics=["accuracy"])
                model.fit(
                    *images.train,
                    batch_size=batch_size,
                    epochs=epochs,
                    validation_data=images.validation,
                    callbacks=[mka.MlflowLogger()],
                    verbose=0,
                )
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

"""Multi-task learning: one trunk, two heads, and weights for two losses of different units.

Each image is turned by a random angle, and one net tells both the class (crossentropy, in nats) and
the angle (mean squared error, in square degrees, hundreds of them). The angle dominates their plain
sum. Kendall, Gal, Cipolla 2018 (arXiv:1705.07115) let the net learn how uncertain each task is, s =
log variance, and weigh by it:

    exp(-s1) * crossentropy + s1 / 2  +  exp(-s2) / 2 * squared error + s2 / 2

Four nested runs with the same keys: each task alone, the plain sum, weighted by uncertainty. The
cosine of the two tasks' gradients on the trunk says whether they agree. What to expect: the plain
sum costs accuracy on the classes, learned weights restore most of it; the cosine stays near 0:
neither task helps the other. Half a minute of computing on two cores.

    mlflow run . -e multitask --env-manager local -P max_angle=90
"""

from typing import Annotated, Any

import keras
import numpy as np
import tensorflow as tf
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from scipy.ndimage import rotate

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.training import crossentropy
from mlflow_keras_adv.training.steps import gradient_cosine
from projects.data import Data, load
from projects.parameters import BatchSize, Images

squared_error = keras.losses.MeanSquaredError()


def net(data: Data) -> tuple[keras.Model, keras.Model]:
    """The whole net, with an output for each task, and the trunk that both share."""
    layers = keras.layers
    body = [layers.Conv2D(16, 3, activation="relu"), layers.Conv2D(32, 3, activation="relu")]
    body += [layers.Flatten(), layers.Dense(64, activation="relu")]
    trunk = keras.Sequential([keras.Input(data.input_shape), *body], name="trunk")
    units = {"label": data.classes, "angle": 1}
    heads = {name: layers.Dense(n, name=name)(trunk.outputs[0]) for name, n in units.items()}
    return keras.Model(trunk.inputs[0], heads, name="two_heads"), trunk


def turned(x: np.ndarray, max_angle: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Each image turned by a random angle, and the angles in degrees, [n, 1]."""
    angles = np.random.default_rng(seed).uniform(-max_angle, max_angle, len(x)).astype(np.float32)
    pairs = zip(x, angles, strict=True)
    images = [rotate(each, angle, reshape=False, order=1) for each, angle in pairs]
    return np.stack(images), angles[:, None]


def scores_of(model: keras.Model, x: Any, angles: Any, y: Any) -> dict[str, float]:
    """Accuracy of the class, and root mean square error of the angle in degrees."""
    found = model.predict(x, batch_size=256, verbose=0)
    return {
        "accuracy": float(np.mean(found["label"].argmax(axis=1) == y)),
        "angle_error_degrees": float(np.sqrt(np.mean(np.square(found["angle"] - angles)))),
    }


def main(
    data: Images = "digits",
    epochs: PositiveInt = 20,
    batch_size: BatchSize = 64,
    lr: PositiveFloat = 4e-3,
    max_angle: Annotated[float, Field(gt=0, le=180)] = 45.0,
    seed: NonNegativeInt = 0,
) -> None:
    """Trains each task alone and both together, with plain and with learned weights.

    Args:
        epochs: Epochs of each of the four trainings.
        lr: Learning rate of Adam.
        max_angle: Images are turned by up to so many degrees, either way.
        seed: Seed of weights, angles, order of examples and choice of the validation split.
    """
    params = dict(locals())
    images = load(data, seed=seed)
    x, angles = turned(images.x_train, max_angle, seed)
    examples = tf.data.Dataset.from_tensor_slices((x, images.y_train, angles))
    batches = examples.shuffle(len(x)).batch(batch_size)
    validation = turned(images.x_validation, max_angle, seed + 1)
    test = turned(images.x_test, max_angle, 0)  # the same for every seed

    def train(model: keras.Model, trunk: keras.Model, fixed: tuple[float, float] | None) -> None:
        # A variance of hundreds is far from 1, where it begins: it takes larger steps.
        optimizers = {"net": keras.optimizers.Adam(lr), "weights": keras.optimizers.Adam(0.1)}
        loop = mka.Loop(model, optimizers=optimizers, callbacks=[mka.MlflowLogger()], verbose=0)
        log_variance = keras.Variable([0.0, 0.0], name="log_variance")

        @tf.function
        def train_step(x: Any, y: Any, angles: Any) -> None:
            with tf.GradientTape(persistent=True) as tape:
                found = model(x, training=True)
                label_loss = crossentropy(y, found["label"])
                angle_loss = squared_error(angles, found["angle"])
                weights = fixed or tf.unstack(tf.exp(-log_variance) * [1.0, 0.5])
                loss = weights[0] * label_loss + weights[1] * angle_loss
                if not fixed:
                    loss += tf.reduce_sum(log_variance) / 2
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizers["net"].apply(gradients, model.trainable_variables)
            if not fixed:
                optimizers["weights"].apply(
                    [tape.gradient(loss, log_variance.value)], [log_variance]
                )
            of_label = tape.gradient(label_loss, trunk.trainable_variables)
            of_angle = tape.gradient(angle_loss, trunk.trainable_variables)
            loop.record(loss=loss, label_loss=label_loss, angle_loss=angle_loss)
            loop.record(gradient_cosine=gradient_cosine(of_label, of_angle))
            loop.record(label_weight=weights[0], angle_weight=weights[1])

        for _ in loop.epochs(epochs):
            for batch in loop.batches(batches):
                train_step(*batch)
            found = scores_of(model, *validation, images.y_validation)
            loop.log(**{f"val_{name}": value for name, value in found.items()})

    both: dict[str, Any] = {"plain_sum": (1.0, 1.0), "uncertainty": None}
    weights = {"label_only": (1.0, 0.0), "angle_only": (0.0, 1.0), **both}
    with mka.technique("multitask", params, dataset=images, variants=len(weights)) as technique:
        for name, fixed in weights.items():
            with technique.variant(name):
                model, trunk = net(images)
                train(model, trunk, fixed)
                scores = scores_of(model, *test, images.y_test)
                technique.finish(model, test[0], scores=scores)

        curves = ("val/accuracy", "val/angle_error_degrees", "train/gradient_cosine")
        technique.compare(candidates=list(both), curves=curves)
        accuracy, error = technique.final("accuracy"), technique.final("angle_error_degrees")
        gain = accuracy["uncertainty"] - accuracy["plain_sum"]
        lost = accuracy["label_only"] - accuracy["uncertainty"]
        ratio = error["uncertainty"] / error["angle_only"]
        shown = (f"{name} {accuracy[name]:.1%} and {error[name]:.1f}°" for name in accuracy)
        technique.conclude(
            f"Accuracy and error of the angle: {', '.join(shown)}.",
            mka.Claim("gain", "accuracy that learned weights add to the sum", gain, at_least=0.05),
            mka.Claim("lost", "accuracy that the second task costs", lost, at_most=0.2),
            mka.Claim("angle_ratio", "angle error over that of angles alone", ratio, at_most=1.5),
        )


if __name__ == "__main__":
    entry_point.run(main)

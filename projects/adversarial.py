"""Adversarial training: a net whose predictions withstand images that are changed to mislead it.

An attack moves every pixel by at most epsilon in the direction that raises the loss. FGSM takes one
step, along the sign of the gradient (Goodfellow, Shlens, Szegedy 2014, arXiv:1412.6572); PGD takes
several small ones from a random start and returns to the epsilon box after each (Madry et al. 2017,
arXiv:1706.06083). The defence is to train on the attacked images of each batch.

Three nested runs with the same keys: the standard net, one trained against FGSM, one against PGD.
What to expect: all have about the same accuracy on clean digits; under PGD the standard net loses
most of its accuracy and the defended ones much less. Half a minute of computing on two cores.

    mlflow run . -e adversarial --env-manager local -P epsilon=0.2
"""

from collections.abc import Mapping
from typing import Annotated, Any

import keras
import tensorflow as tf
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.training import crossentropy
from projects.data import Data, load
from projects.parameters import BatchSize, Images

TEST_STEPS = 10  # of the attack that all nets are tested with


def net(data: Data) -> keras.Model:
    """A small convolutional net that gives logits."""
    layers = keras.layers
    body = [
        layers.Conv2D(16, 3, activation="relu"),
        layers.Conv2D(32, 3, activation="relu"),
        layers.Flatten(),
        layers.Dense(64, activation="relu"),
    ]
    return keras.Sequential([keras.Input(data.input_shape), *body, layers.Dense(data.classes)])


@tf.function(reduce_retracing=True)
def attack(model: keras.Model, x: Any, y: Any, epsilon: float, steps: int) -> Any:
    """Attacks the images `x` [n, height, width, channels]: by FGSM if `steps` is 1, else by PGD."""
    lowest, highest = tf.maximum(x - epsilon, 0.0), tf.minimum(x + epsilon, 1.0)
    rate = epsilon
    if steps > 1:
        rate = 2.5 * epsilon / steps  # far enough to reach the other side of the box
        x += tf.random.uniform(tf.shape(x), -epsilon, epsilon)
    for _ in range(steps):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = crossentropy(y, model(x))
        x += rate * tf.sign(tape.gradient(loss, x))
        x = tf.clip_by_value(x, lowest, highest)
    return x


def accuracies(model: keras.Model, x: Any, y: Any, epsilon: float) -> dict[str, float]:
    """Accuracy on the images as they are, and under the two attacks."""
    steps = {"accuracy": 0, "fgsm_accuracy": 1, "pgd_accuracy": TEST_STEPS}
    metrics = {name: keras.metrics.SparseCategoricalAccuracy() for name in steps}
    for images, labels in tf.data.Dataset.from_tensor_slices((x, y)).batch(256):
        for name, metric in metrics.items():
            misleading = attack(model, images, labels, epsilon, steps[name])
            metric.update_state(labels, model(misleading))
    return {name: float(metric.result()) for name, metric in metrics.items()}


def train(model: keras.Model, images: Data, steps: int, params: Mapping[str, Any]) -> None:
    """Trains on the attacked images of each batch; with 0 steps, on the images themselves."""
    optimizer, epsilon = keras.optimizers.Adam(params["lr"]), params["epsilon"]
    loop = mka.Loop(model, optimizers=optimizer, callbacks=[mka.MlflowLogger()], verbose=0)
    batches = images.batches(params["batch_size"])

    @tf.function
    def train_step(x: Any, y: Any) -> None:
        x = attack(model, x, y, epsilon, steps)
        with tf.GradientTape() as tape:
            loss = crossentropy(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        loop.record(loss=loss)

    for _ in loop.epochs(params["epochs"]):
        for x, y in loop.batches(batches):
            train_step(x, y)
        found = accuracies(model, *images.validation, epsilon)
        loop.log(**{f"val_{name}": value for name, value in found.items()})


def main(
    data: Images = "digits",
    epochs: PositiveInt = 10,
    batch_size: BatchSize = 32,
    lr: PositiveFloat = 2e-3,
    epsilon: Annotated[float, Field(gt=0, le=1)] = 0.15,
    attack_steps: Annotated[int, Field(ge=2)] = 5,
    seed: NonNegativeInt = 0,
) -> None:
    """Trains the same net on clean images, on those of FGSM and on those of PGD.

    Args:
        epochs: Epochs of each of the three trainings.
        lr: Learning rate of Adam.
        epsilon: How far a pixel may be moved, on a scale from 0 (black) to 1 (white).
        attack_steps: Steps of PGD in training; 2 or more. The test takes 10.
        seed: Seed of weights, order of examples, attacks and choice of the validation split.
    """
    params = dict(locals())
    images = load(data, seed=seed)
    nets = {"standard": 0, "fgsm": 1, "pgd": attack_steps}
    with mka.technique("adversarial", params, dataset=images, variants=len(nets)) as technique:
        for name, steps in nets.items():
            with technique.variant(name, params={"attack_steps": steps}):
                model = net(images)
                train(model, images, steps, params)
                scores = accuracies(model, *images.test, epsilon)
                technique.finish(model, *images.test, scores=scores)

        curves = ("val/accuracy", "val/fgsm_accuracy", "val/pgd_accuracy")
        technique.compare(monitor="val/pgd_accuracy", curves=curves)
        standard, defended = (technique.finished[name].final for name in ("standard", "pgd"))
        technique.conclude(
            f"Under PGD the net trained against it reads {defended['pgd_accuracy']:.1%} of the "
            f"test images, the standard net {standard['pgd_accuracy']:.1%}; "
            f"clean ones {defended['accuracy']:.1%} and {standard['accuracy']:.1%}.",
            mka.Claim(
                "robust_gain",
                "accuracy under PGD that training against PGD adds to the standard net",
                defended["pgd_accuracy"] - standard["pgd_accuracy"],
                at_least=0.25,
            ),
            mka.Claim(
                "clean_accuracy_lost",
                "accuracy on clean images that it costs",
                standard["accuracy"] - defended["accuracy"],
                at_most=0.03,
            ),
        )


if __name__ == "__main__":
    entry_point.run(main)

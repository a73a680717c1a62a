"""Gradient control: clipping against exploding gradients, accumulation for large batches.

A recurrent net whose recurrent weights are too large multiplies the gradient at each time step, and
a single batch may throw the weights far away (Pascanu, Mikolov, Bengio 2013, arXiv:1211.5063).
Clipping limits each element of the gradient (value), each weight's gradient (norm) or all of them
by one factor (global norm), which alone keeps the direction. Accumulation adds up the gradients of
N micro-batches and makes one update, as for a batch N times as large.

Images are read row by row. Nested runs with the same keys: no clipping, the three kinds, and the
global norm again with accumulated micro-batches. What to expect: without clipping the net learns
least; the curves `gradient/norm` and `gradient/norm_clipped` show the norm before and after. One
update from N micro-batches equals that of one batch up to the rounding of float32, which grows over
the training of such a net, so that the last two runs diverge. A minute of computing on two cores.

    mlflow run . -e gradient_control --env-manager local -P gain=1.5
"""

from typing import Annotated, Any

import keras
import numpy as np
import tensorflow as tf
from pydantic import Field, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.training import crossentropy, fit
from mlflow_keras_adv.training.steps import GradientAccumulator
from projects.data import Data, load
from projects.parameters import Images, Seed


def net(data: Data, gain: float) -> keras.Model:
    """A recurrent net over the rows; ReLU does not hold back what the gain makes large."""
    height, width, channels = data.input_shape
    recurrent = keras.initializers.Orthogonal(gain)
    body = [
        keras.layers.Reshape((height, width * channels)),
        keras.layers.SimpleRNN(32, activation="relu", recurrent_initializer=recurrent),
    ]
    head = keras.layers.Dense(data.classes)
    return keras.Sequential([keras.Input(data.input_shape), *body, head])


def one_update(model: keras.Model, x: Any, y: Any, micro_batches: int) -> list[np.ndarray]:
    """All weights after an update of SGD by the mean gradient of equal parts of a batch."""
    optimizer = keras.optimizers.SGD(0.01)
    accumulator = GradientAccumulator(micro_batches)
    for part_x, part_y in zip(np.split(x, micro_batches), np.split(y, micro_batches), strict=True):
        with tf.GradientTape() as tape:
            loss = crossentropy(part_y, model(part_x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        accumulator.apply(optimizer, gradients, model.trainable_variables)
    return model.get_weights()


def main(
    data: Images = "digits",
    epochs: PositiveInt = 10,
    batch_size: PositiveInt = 32,
    micro_batches: Annotated[int, Field(ge=2)] = 4,
    lr: PositiveFloat = 0.05,
    gain: PositiveFloat = 2.0,
    clip_value: PositiveFloat = 0.05,
    clip_norm: PositiveFloat = 0.5,
    clip_global_norm: PositiveFloat = 1.0,
    seed: Seed = 0,
) -> None:
    """Trains one net with each kind of clipping, and compares one batch with its micro-batches.

    Args:
        epochs: Epochs of each training.
        batch_size: Examples per update; a multiple of micro_batches.
        micro_batches: Parts of a batch whose gradients are accumulated.
        lr: Learning rate of SGD with momentum.
        gain: Gain of the recurrent weights; above 1 their gradients explode.
        clip_value: Limit of each element of a gradient.
        clip_norm: Limit of the norm of each weight's gradient.
        clip_global_norm: Limit of the norm of all gradients together.
    """
    params = dict(locals())
    if batch_size % micro_batches:
        wanted = f"a multiple of micro_batches={micro_batches}"
        raise mka.UserError(f"batch_size: got {batch_size}, expected {wanted}")
    images = load(data, seed=seed)
    together: dict[str, Any] = {"global_clipnorm": clip_global_norm}
    controls: dict[str, Any] = {
        "unclipped": {},
        "value": {"clipvalue": clip_value},
        "norm": {"clipnorm": clip_norm},
        "global_norm": together,
        "accumulated": {**together, "gradient_accumulation_steps": micro_batches},
    }

    with mka.technique("gradient_control", params, dataset=images, variants=5) as technique:
        for name, control in controls.items():
            with technique.variant(name):
                model = net(images, gain)
                optimizer = keras.optimizers.SGD(lr, momentum=0.9, **control)
                model.compile(optimizer, crossentropy, metrics=["accuracy"])
                size = batch_size // (micro_batches if name == "accumulated" else 1)
                fit(model, images.train, images.validation, epochs=epochs, batch_size=size)
                technique.finish(model, *images.test)

        model = net(images, gain)
        batch = images.x_train[:batch_size], images.y_train[:batch_size]
        before = model.get_weights()
        whole = one_update(model, *batch, micro_batches=1)
        model.set_weights(before)
        in_parts = one_update(model, *batch, micro_batches=micro_batches)

        technique.compare(curves=("gradient/norm", "gradient/norm_clipped", "val/accuracy"))
        accuracy, runs = technique.final("accuracy"), technique.variants
        largest = mka.curve("gradient/norm", run=runs["unclipped"]).max()
        technique.conclude(
            f"Gradients of norm {largest:.0f} without clipping; test accuracy "
            f"{accuracy['unclipped']:.1%}, with the global norm clipped "
            f"{accuracy['global_norm']:.1%}.",
            mka.Claim(
                "accumulation_difference",
                "largest difference of a weight after one batch and after its micro-batches",
                mka.largest_difference(whole, in_parts),
                at_most=1e-6,
            ),
            mka.Claim(
                "norm_after_clipping",
                "largest global norm of an update of global_norm, relative to its limit",
                mka.curve("gradient/norm_clipped", run=runs["global_norm"]).max()
                / clip_global_norm,
                at_most=1 + 1e-5,
            ),
            mka.Claim(
                "accuracy_gain",
                "accuracy on the test split with global_norm minus that without clipping",
                accuracy["global_norm"] - accuracy["unclipped"],
                at_least=0.1,
            ),
        )


if __name__ == "__main__":
    entry_point.run(main)

"""Gradient control: clipping, against explosions, and accumulation, for batches that do not fit.

A recurrent net whose recurrent weights are too large multiplies the gradient at each time step, and
a single batch may throw the weights far away (Pascanu, Mikolov, Bengio 2013, arXiv:1211.5063).
Clipping limits each element of the gradient (value), each weight's gradient (norm) or all of them
by one factor (global norm), which alone keeps the direction. Accumulation adds up the gradients of
N micro-batches and makes the update of one batch N times as large.

Images are read row by row. Nested runs with the same keys: no clipping, the three kinds, and the
global norm again with accumulated micro-batches. What to expect: without clipping the net learns
least; the curves `gradient/norm` and `gradient/norm_clipped` show before and after. One update from
N micro-batches equals that of one batch up to the rounding of float32. Over a whole training of
such a net even that grows, so the last two runs part in time.
A minute of computing on two cores.

    mlflow run . -e gradient_control --env-manager local -P gain=1.5
"""

from typing import Annotated, Any

import keras
import numpy as np
import tensorflow as tf
from pydantic import Field, NonNegativeInt, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv import entry_point
from mlflow_keras_adv.training.steps import GradientAccumulator
from projects.data import Data, load

CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(data: Data, gain: float) -> keras.Model:
    """A recurrent net over the rows; ReLU does not hold back what the gain makes large."""
    height, width, channels = data.input_shape
    recurrent = keras.initializers.Orthogonal(gain)
    body = [
        keras.layers.Reshape((height, width * channels)),
        keras.layers.SimpleRNN(32, activation="relu", recurrent_initializer=recurrent),
    ]
    return keras.Sequential(
        [keras.Input(data.input_shape), *body, keras.layers.Dense(data.classes)]
    )


def one_update(model: keras.Model, x: Any, y: Any, micro_batches: int) -> np.ndarray:
    """All weights after an update of SGD by the mean gradient of equal parts of a batch."""
    optimizer = keras.optimizers.SGD(0.01)
    accumulator = GradientAccumulator(micro_batches)
    for part_x, part_y in zip(np.split(x, micro_batches), np.split(y, micro_batches), strict=True):
        with tf.GradientTape() as tape:
            loss = CROSSENTROPY(part_y, model(part_x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        accumulator.apply(optimizer, gradients, model.trainable_variables)
    return np.concatenate([weight.ravel() for weight in model.get_weights()])


def main(
    data: str = "digits",
    epochs: PositiveInt = 10,
    batch_size: PositiveInt = 32,
    micro_batches: Annotated[int, Field(ge=2)] = 4,
    lr: Annotated[float, Field(gt=0)] = 0.05,
    gain: Annotated[float, Field(gt=0)] = 2.0,
    clip_value: Annotated[float, Field(gt=0)] = 0.05,
    clip_norm: Annotated[float, Field(gt=0)] = 0.5,
    clip_global_norm: Annotated[float, Field(gt=0)] = 1.0,
    seed: NonNegativeInt = 0,
) -> None:
    """Trains one net with each kind of clipping, and compares one batch with its micro-batches.

    Args:
        data: digits, keras:mnist (or another of keras.datasets), or the path of an .npz file.
        epochs: Epochs of each training.
        batch_size: Examples per update; a multiple of micro_batches.
        micro_batches: Parts of a batch whose gradients are accumulated.
        lr: Learning rate of SGD with momentum.
        gain: Of the recurrent weights; above 1 their gradients explode.
        clip_value: Limit of each element of a gradient.
        clip_norm: Limit of the norm of each weight's gradient.
        clip_global_norm: Limit of the norm of all gradients together.
        seed: Of weights, order of examples and choice of the validation split.
    """
    params = dict(locals())
    if batch_size % micro_batches:
        raise mka.UserError(
            f"batch_size: got {batch_size}, expected a multiple of micro_batches={micro_batches}"
        )
    technique = {"technique": "gradient_control"}
    images = load(data, seed=seed)
    together = {"global_clipnorm": clip_global_norm}
    variants: dict[str, dict[str, Any]] = {
        "unclipped": {},
        "value": {"clipvalue": clip_value},
        "norm": {"clipnorm": clip_norm},
        "global_norm": together,
        "accumulated": {**together, "gradient_accumulation_steps": micro_batches},
    }

    with mka.track("gradient_control", params=params, tags=technique) as run:
        run.log_dataset(images.dataset, context="training")
        runs, finished = {}, {}
        for number, (name, control) in enumerate(variants.items(), 1):
            print(f"[{number}/{len(variants)}] {name}", flush=True)
            with run.child(name, tags=technique) as child:
                keras.utils.set_random_seed(seed)
                model = net(images, gain)
                optimizer = keras.optimizers.SGD(lr, momentum=0.9, **control)
                model.compile(optimizer, loss=CROSSENTROPY, metrics=["accuracy"])
                model.fit(
                    *images.train,
                    batch_size=batch_size // (micro_batches if name == "accumulated" else 1),
                    epochs=epochs,
                    validation_data=images.validation,
                    callbacks=[mka.MlflowLogger()],
                    verbose=0,
                )
                finished[name] = mka.log_finished_model(
                    child, model, *images.test, name=name, dataset=images.dataset
                )
            runs[name] = child

        keras.utils.set_random_seed(seed)
        model = net(images, gain)
        batch = images.x_train[:batch_size], images.y_train[:batch_size]
        before = model.get_weights()
        whole = one_update(model, *batch, micro_batches=1)
        model.set_weights(before)
        in_parts = one_update(model, *batch, micro_batches=micro_batches)

        winner = mka.log_comparison(
            run, runs, curves=("gradient/norm", "gradient/norm_clipped", "val/accuracy")
        )
        accuracy = {name: each.final["accuracy"] for name, each in finished.items()}
        claims = mka.log_claims(
            run,
            mka.Claim(
                "accumulation_difference",
                "largest difference of a weight after one batch and after its micro-batches",
                float(np.abs(whole - in_parts).max()),
                at_most=1e-6,
            ),
            mka.Claim(
                "norm_after_clipping",
                "largest global norm of an update of global_norm, in parts of its limit",
                mka.curve(runs["global_norm"], "gradient/norm_clipped").max() / clip_global_norm,
                at_most=1 + 1e-5,
            ),
            mka.Claim(
                "accuracy_gain",
                "accuracy on the test split with global_norm minus that without clipping",
                accuracy["global_norm"] - accuracy["unclipped"],
                at_least=0.1,
            ),
        )
        largest = mka.curve(runs["unclipped"], "gradient/norm").max()
        result = (
            f"Gradients of norm {largest:.0f} without clipping; test accuracy "
            f"{accuracy['unclipped']:.1%}, with the global norm clipped "
            f"{accuracy['global_norm']:.1%}. Best on validation: {winner}."
        )
        run.describe(f"{result}\n\n{claims}")
    print(f"{result}\n{claims}")


if __name__ == "__main__":
    entry_point.run(main)

"""Saving and loading: what each way keeps, and whether a training goes on as if never interrupted.

A training is made of more than weights: the optimizer's step and moments, the moving averages of
batch normalization, the state of the random numbers that dropout draws.

    .keras         architecture, weights, optimizer: one file, all but the random state
    checkpoint     the same file, kept with the run by mka.Checkpoints, back with mka.load_best
    .weights.h5    here: numbers for a net that one builds anew, and compiles with a new optimizer
    SavedModel     `export` writes a graph for serving; no Python is needed to run it, nor is there
                   anything left to train

Four nested runs with the same keys: a training that is never interrupted, and three that are, half
way, and go on from what was saved. What to expect: `.keras` and checkpoint go on exactly, to the
last bit; without the optimizer's state the predictions are kept, but the training goes another way.
So it does with dropout, which begins its random numbers anew after loading: try dropout=0.3. Half a
minute of computing on two cores.

    mlflow run . -e save_load --env-manager local -P dropout=0.3
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import keras
import numpy as np
import tensorflow as tf
from pydantic import Field, NonNegativeInt, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv import entry_point
from projects.data import Data, load


def net(data: Data, dropout: float) -> keras.Model:
    """One hidden layer with batch normalization, whose moving averages are saved too."""
    layers = keras.layers
    body = [
        layers.Flatten(),
        layers.Dense(64, activation="relu"),
        layers.BatchNormalization(),
        layers.Dropout(dropout),
    ]
    return keras.Sequential([keras.Input(data.input_shape), *body, layers.Dense(data.classes)])


def compiled(model: keras.Model, lr: float) -> keras.Model:
    """The model with an optimizer that knows nothing yet."""
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(lr), loss=crossentropy, metrics=["accuracy"])
    return model


def difference(first: list[Any], second: list[Any]) -> float:
    """Largest difference of a number in two lists of arrays of the same shapes."""
    pairs = zip(first, second, strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def main(
    data: str = "digits",
    epochs: PositiveInt = 10,
    batch_size: PositiveInt = 32,
    lr: Annotated[float, Field(gt=0)] = 2e-3,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    seed: NonNegativeInt = 0,
) -> None:
    """Interrupts a training half way, goes on from what was saved, and compares.

    Args:
        data: digits, keras:mnist (or another of keras.datasets), or the path of an .npz file.
        epochs: Epochs of each of the four trainings; they are interrupted after half of them.
        batch_size: Examples per step.
        lr: Learning rate of Adam.
        dropout: Share of the hidden units that is dropped in each step, from 0 to below 1.
        seed: Of weights, dropout and choice of the validation split.
    """
    params = dict(locals())
    technique = {"technique": "save_load"}
    images = load(data, seed=seed)
    half, x = -(-epochs // 2), images.x_test

    def begun(until: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        model = compiled(net(images, dropout), lr)
        go_on(model, 0, until)
        return model

    def go_on(model: keras.Model, begin: int, end: int) -> None:
        count = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: logs.update(epochs_done=epoch + 1)
        )
        latest = mka.Checkpoints("epochs_done", mode="max")
        model.fit(
            *images.train,
            batch_size=batch_size,
            initial_epoch=begin,
            epochs=end,
            validation_data=images.validation,
            shuffle=False,  # the order of examples is part of a training too
            callbacks=[mka.MlflowLogger(), count, latest],
            verbose=0,
        )

    with (
        mka.track("save_load", params=params, tags=technique) as run,
        tempfile.TemporaryDirectory() as temporary,
    ):
        run.log_dataset(images.dataset, context="training")
        folder = Path(temporary)

        def keras_file(model: keras.Model) -> keras.Model:
            model.save(folder / "model.keras")
            return keras.saving.load_model(folder / "model.keras")

        def checkpoint(_: keras.Model) -> keras.Model:
            return mka.load_best()  # of the run that is active here

        def weights_only(model: keras.Model) -> keras.Model:
            model.save_weights(folder / "model.weights.h5")
            fresh = net(images, dropout)
            fresh.load_weights(folder / "model.weights.h5")
            return compiled(fresh, lr)

        print("[1/4] straight", flush=True)
        with run.child("straight", tags=technique) as child:
            straight = begun(epochs)
            mka.log_finished_model(
                child, straight, *images.test, name="straight", dataset=images.dataset
            )
        straight.export(folder / "exported", verbose=False)
        served = tf.saved_model.load(folder / "exported")
        runs, predictions, optimizers, weights = {"straight": child}, {}, {}, {}
        for number, way in enumerate((keras_file, checkpoint, weights_only), start=2):
            name = way.__name__
            print(f"[{number}/4] {name}", flush=True)
            with run.child(name, tags=technique) as child:
                model = begun(half)
                loaded = way(model)
                predictions[name] = difference([model(x)], [loaded(x)])
                if loaded.optimizer.iterations > 0:
                    states = [each.optimizer.variables for each in (model, loaded)]
                    optimizers[name] = difference(*states)
                go_on(loaded, half, epochs)
                weights[name] = difference(straight.get_weights(), loaded.get_weights())
                mka.log_finished_model(
                    child,
                    loaded,
                    *images.test,
                    name=name,
                    dataset=images.dataset,
                    reference=straight,
                    scores={
                        "prediction_difference": predictions[name],
                        "weight_difference": weights[name],
                    },
                )
            runs[name] = child

        mka.log_comparison(run, runs)
        claims = mka.log_claims(
            run,
            mka.Claim(
                "predictions_kept",
                "largest difference of a prediction after loading, all ways",
                max(predictions.values()),
                at_most=0.0,
            ),
            mka.Claim(
                "predictions_served",
                "largest difference of a prediction of the SavedModel",
                difference([straight(x)], [served.serve(x)]),
                at_most=1e-4,  # logits of about 10 in float32, by another graph
            ),
            mka.Claim(
                "optimizer_kept",
                f"largest difference in the optimizer's state, by {' and '.join(optimizers)}",
                max(optimizers.values()),
                at_most=0.0,
            ),
            mka.Claim(
                "continued",
                "largest difference of a weight at the end, gone on from .keras and checkpoint",
                max(weights["keras_file"], weights["checkpoint"]),
                at_most=0.0,
            ),
            mka.Claim(
                "state_matters",
                "the same, gone on from the weights alone",
                weights["weights_only"],
                at_least=1e-3,
            ),
        )
        result = (
            f"Interrupted after {half} of {epochs} epochs: from .keras and from a checkpoint the "
            f"weights end within {max(weights['keras_file'], weights['checkpoint']):.2g} of those "
            f"of the straight training, from weights alone within {weights['weights_only']:.2g}."
        )
        run.describe(f"{result}\n\n{claims}")
    print(f"{result}\n{claims}")


if __name__ == "__main__":
    entry_point.run(main)

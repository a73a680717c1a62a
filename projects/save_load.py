"""Saving and loading: what each format keeps, and whether a training can resume exactly.

The state of a training is more than weights: the optimizer's step and moments, the moving averages
of batch normalization, the random state of dropout.

    .keras         architecture, weights, optimizer: one file, all but the random state
    checkpoint     the same file, kept with the run by mka.Checkpoints, loaded by mka.load_best
    .weights.h5    weights for a net that is built again and compiled with a new optimizer
    SavedModel     `export` writes a graph for serving, which needs no Python code and cannot be
                   trained

Four nested runs with the same keys: a training without interruption, and three that are interrupted
half way and resumed from the saved state. What to expect: from `.keras` and from the checkpoint the
training resumes bit for bit; without the optimizer's state the predictions are kept, but the
training takes another course. So it does with dropout, whose random state is not saved: try
dropout=0.3. Half a minute of computing on two cores.

    mlflow run . -e save_load --env-manager local -P dropout=0.3
"""

import tempfile
from pathlib import Path
from typing import Annotated

import keras
import tensorflow as tf
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from projects.data import Data, load
from projects.parameters import BatchSize, Examples, Target


def net(data: Data, dropout: float) -> keras.Model:
    """One hidden layer with batch normalization, whose moving averages are saved too."""
    layers = keras.layers
    body = [*data.entrance(), layers.Dense(64, activation="relu"), layers.BatchNormalization()]
    head = [layers.Dropout(dropout), layers.Dense(data.classes)]
    return keras.Sequential([*body, *head])


def compiled(model: keras.Model, lr: float) -> keras.Model:
    """Compiles the model with a new optimizer."""
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(lr), loss=crossentropy, metrics=["accuracy"])
    return model


def main(
    data: Examples = "digits",
    target: Target = "",
    epochs: PositiveInt = 10,
    batch_size: BatchSize = 32,
    lr: PositiveFloat = 2e-3,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    seed: NonNegativeInt = 0,
) -> None:
    """Interrupts a training half way, goes on from what was saved, and compares.

    Args:
        epochs: Epochs of each of the four trainings; they are interrupted after half of them.
        lr: Learning rate of Adam.
        dropout: Share of the hidden units that is dropped in each step, from 0 to below 1.
        seed: Seed of weights, dropout and choice of the validation split.
    """
    params = dict(locals())
    images = load(data, target=target, seed=seed, kinds=("images", "features"))
    half, x = -(-epochs // 2), images.x_test

    def count(epoch: int, logs: dict[str, float]) -> None:
        logs["epochs_done"] = epoch + 1

    counting = keras.callbacks.LambdaCallback(on_epoch_end=count)

    def train(model: keras.Model, begin: int, end: int) -> keras.Model:
        model.fit(
            *images.train,
            batch_size=batch_size,
            initial_epoch=begin,
            epochs=end,
            validation_data=images.validation,
            shuffle=False,  # the order of examples is part of a training too
            callbacks=[mka.MlflowLogger(), counting, mka.Checkpoints("epochs_done", mode="max")],
            verbose=0,
        )
        return model

    with (
        mka.technique("save_load", params, dataset=images, variants=4) as technique,
        tempfile.TemporaryDirectory() as temporary,
    ):
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

        with technique.variant("straight"):
            straight = train(compiled(net(images, dropout), lr), 0, epochs)
            technique.finish(straight, *images.test)
        straight.export(folder / "exported", verbose=False)
        served = tf.saved_model.load(folder / "exported")
        for way in (keras_file, checkpoint, weights_only):
            with technique.variant(way.__name__):
                model = train(compiled(net(images, dropout), lr), 0, half)
                loaded = way(model)
                scores = {"prediction_difference": mka.largest_difference(model(x), loaded(x))}
                if way is not weights_only:
                    states = (each.optimizer.variables for each in (model, loaded))
                    scores["optimizer_difference"] = mka.largest_difference(*states)
                train(loaded, half, epochs)
                ends = straight.get_weights(), loaded.get_weights()
                scores["weight_difference"] = mka.largest_difference(*ends)
                technique.finish(loaded, *images.test, reference=straight, scores=scores)

        technique.compare()
        weights = technique.final("weight_difference")
        lost = weights.pop("weights_only")
        end, kept = max(weights.values()), max(technique.final("prediction_difference").values())
        state = max(technique.final("optimizer_difference").values())
        other = mka.largest_difference(straight(x), served.serve(x))
        technique.conclude(
            f"Interrupted after {half} of {epochs} epochs: from .keras and from a checkpoint the "
            f"weights end within {end:.2g} of those of the straight training, from weights alone "
            f"within {lost:.2g}.",
            mka.Claim("continued", "difference of a weight at the end, with state", end, at_most=0),
            mka.Claim("begun_anew", "the same without the optimizer's state", lost, at_least=1e-3),
            mka.Claim("kept", "difference of a prediction after loading", kept, at_most=0),
            mka.Claim("state_kept", "difference in the optimizer after loading", state, at_most=0),
            # Logits of about 10 in float32, by another graph.
            mka.Claim("served", "difference of a logit of the SavedModel", other, at_most=1e-4),
        )


if __name__ == "__main__":
    entry_point.run(main)

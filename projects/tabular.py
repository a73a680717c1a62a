"""Tables: columns of numbers and texts, preprocessed inside the model that is served.

Each wine has twelve measurements in different units, and its colour as a word; the net predicts
which of three growers made it. A net needs inputs near 0 of similar scale. The preprocessing is
learned from the training rows (means, variances, the vocabulary) and is part of the model, as
layers Normalization and StringLookup. So the served model takes a row as the table has it, by the
names of its columns, and no other program has to repeat the preprocessing.

Two nested runs with the same keys: the numbers as they come, and normalized; the words are looked
up in both. Beside them stands scikit-learn's logistic regression, or ridge regression where the
target is a number. What to expect: unprepared, the column of large numbers dominates the others;
prepared, the net is about as good as scikit-learn, which is hard to beat on so few rows. All words
that it has never seen are treated alike. Half a minute of computing on two cores.

    mlflow run . -e tabular --env-manager local -P data=houses.csv -P target=price

Texts and integers in the target are classes, numbers with a decimal point are to be predicted.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.evaluation.fresh_process import predict_in_new_process
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.linear import linear_errors
from mlflow_keras_adv.lessons.training import fit
from projects.data import Data, load


def texts_of(data: Data) -> list[str]:
    """The columns of texts."""
    return [name for name, values in data.x_train.items() if values.dtype == object]


def net(data: Data, units: int, prepared: bool) -> keras.Model:
    """Takes columns by their names; it gives a logit for each class, or the number itself."""
    layers, texts = keras.layers, texts_of(data)
    inputs = {
        name: keras.Input((1,), name=name, dtype="string" if name in texts else "float32")
        for name in data.x_train
    }
    parts = []
    for name in texts:
        known = sorted(set(data.x_train[name].flat))
        parts.append(layers.StringLookup(vocabulary=known, output_mode="one_hot")(inputs[name]))
    if numbers := [name for name in inputs if name not in texts]:
        together = layers.Concatenate()([inputs[name] for name in numbers])
        if prepared:
            scores = layers.Normalization()
            scores.adapt(np.concatenate([data.x_train[name] for name in numbers], axis=1))
            together = scores(together)
        parts.append(together)
    hidden = layers.Dense(units, activation="relu")(layers.Concatenate()(parts))
    answer = layers.Dense(data.classes or 1)(hidden)
    if not data.classes:
        answer = layers.Rescaling(float(data.y_train.std()), float(data.y_train.mean()))(answer)
    return keras.Model(inputs, answer)


def compiled(model: keras.Model, data: Data, lr: float) -> keras.Model:
    """With the loss and the metric of what is to be told."""
    loss: keras.losses.Loss = keras.losses.MeanSquaredError()
    metric: Any = keras.metrics.MeanAbsoluteError("mae")
    if data.classes:
        loss, metric = keras.losses.SparseCategoricalCrossentropy(from_logits=True), "accuracy"
    model.compile(keras.optimizers.Adam(lr), loss, metrics=[metric])
    return model


def main(
    data: str = "wine",
    target: str = "",
    epochs: PositiveInt = 40,
    batch_size: PositiveInt = 16,
    lr: PositiveFloat = 3e-3,
    units: PositiveInt = 16,
    seed: NonNegativeInt = 0,
) -> None:
    """Trains a net on a table as it is, and one that makes it ready.

    Args:
        data: wine, breast_cancer, diabetes, or the path of a .csv or .parquet file.
        target: Column to tell of a .csv or .parquet file: a class or a number.
        epochs: Epochs of each of the two trainings.
        batch_size: Rows per step.
        lr: Learning rate of Adam.
        units: Units of the hidden layer.
        seed: Seed of weights, order of rows and choice of the validation split.
    """
    params = dict(locals())
    goals = ("classes", "numbers")
    rows = load(data, target=target, seed=seed, kinds=("columns",), goals=goals)
    validation = tf.data.Dataset.from_tensor_slices(rows.validation).batch(256)

    with mka.technique("tabular", params, dataset=rows, variants=2) as technique:
        for name in ("raw", "prepared"):
            with technique.variant(name):
                model = compiled(net(rows, units, prepared=name == "prepared"), rows, lr)
                fit(model, rows.batches(batch_size), validation, epochs=epochs, shuffle=False)
                finished = technique.finish(model, *rows.test)

        score, mode = ("accuracy", "max") if rows.classes else ("mae", "min")
        technique.compare(monitor=f"val/{score}", mode=mode)
        final = technique.final(score)
        error = {name: 1 - value if rows.classes else value for name, value in final.items()}
        error["linear"], usual = linear_errors(rows.train, rows.test, classes=rows.classes > 0)
        few = {name: values[:16] for name, values in rows.x_test.items()}
        here, there = model(few), predict_in_new_process(finished.info.model_uri, few)
        away = mka.largest_difference(here, there) / np.abs(here).max()
        claims = [
            mka.Claim(
                "gain",
                "error that preprocessing removes, relative to that of a constant prediction",
                (error["raw"] - error["prepared"]) / usual,
                at_least=0.1,
            ),
            mka.Claim(
                "linear",
                "error of the net beyond that of scikit-learn's linear model, in the same parts",
                (error["prepared"] - error["linear"]) / usual,
                at_most=0.15,
            ),
            mka.Claim(
                "elsewhere",
                "difference of an answer in a new process, which is sent texts and numbers",
                away,
                at_most=1e-5,
            ),
        ]
        for name in texts_of(rows)[:1]:
            values = few[name]
            one, other = (model({**few, name: np.full(values.shape, word)}) for word in ("?", "!?"))
            text = f"difference of answers for two words of the column {name} never seen"
            claims.append(mka.Claim("unseen", text, mka.largest_difference(one, other), at_most=0))
        goal = f"{rows.classes} classes" if rows.classes else "numbers"
        shown = ", ".join(f"{name} {value:.3g}" for name, value in error.items())
        technique.conclude(
            f"{'Wrong classes' if rows.classes else 'Mean absolute error'} on the test split "
            f"({goal}): {shown}; a constant prediction {usual:.3g}.",
            *claims,
        )


if __name__ == "__main__":
    entry_point.run(main)

"""Regression: a net that predicts a number, and a loss that is robust to a few wrong labels.

The progression of a disease after a year is predicted from ten measurements, each in its own unit.
Normalization of the inputs and Rescaling of the output are layers of the net, so that the finished
model takes the measurements and gives the number in its own unit.

One of ten training labels is ten times too large, by a misplaced decimal point. The squared error
is dominated by such labels; Huber's loss (Annals of Mathematical Statistics 35, 1964) grows only
linearly beyond `delta`. Validation and test labels are right.

Four nested runs with the same keys: scikit-learn's ridge regression as a net, fitted to the right
labels, which are unknown in practice, and to the wrong ones; the net with the squared error, and
with Huber's loss. What to expect: with the squared error, the wrong labels treble the error on the
test split, for the linear model and the net; with Huber's loss it stays near that of the right
ones. Half a minute of computing on two cores.

    mlflow run . -e regression --env-manager local -P wrong=0.2
"""

from typing import Annotated

import keras
import numpy as np
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.figures import predictions_figure
from mlflow_keras_adv.lessons.linear import ridge_net
from mlflow_keras_adv.lessons.training import fit
from projects.data import Data, load
from projects.parameters import BatchSize


def slipped(y: np.ndarray, share: float, seed: int) -> np.ndarray:
    """The labels, with a share of them ten times too large."""
    chosen = np.random.default_rng(seed).choice(len(y), round(share * len(y)), replace=False)
    wrong = y.copy()
    wrong[chosen] *= 10
    return wrong


def spread(y: np.ndarray) -> tuple[float, float]:
    """Median and half the interquartile range, which a few wrong labels hardly change."""
    low, middle, high = np.percentile(y, [25, 50, 75])
    return float(middle), max(float(high - low) / 2, float(np.finfo(np.float32).tiny))


def net(data: Data, units: int, labels: np.ndarray) -> keras.Model:
    """One hidden layer, between layers that know the units of inputs and answer."""
    middle, half = spread(labels)
    body = [keras.layers.Dense(units, activation="relu"), keras.layers.Dense(1)]
    return keras.Sequential([*data.entrance(), *body, keras.layers.Rescaling(half, middle)])


def main(
    data: str = "diabetes",
    target: str = "",
    epochs: PositiveInt = 40,
    batch_size: BatchSize = 32,
    lr: PositiveFloat = 3e-3,
    units: PositiveInt = 16,
    wrong: Annotated[float, Field(ge=0, lt=0.5)] = 0.1,
    delta: PositiveFloat = 0.5,
    seed: NonNegativeInt = 0,
) -> None:
    """Fits a ridge regression and a net to labels of which some are wrong.

    Args:
        data: diabetes, the path of a .csv or .parquet file of numbers, or of an .npz file with
            features [n, k] and numbers to predict.
        target: Column to predict of a .csv or .parquet file.
        epochs: Epochs of each of the two trainings.
        lr: Learning rate of Adam.
        units: Units of the hidden layer.
        wrong: Share of the training labels that are ten times too large.
        delta: Error beyond which Huber's loss is linear, relative to half the interquartile range
            of the labels.
        seed: Seed of weights, wrong labels, order of examples and choice of the validation split.
    """
    params = dict(locals())
    rows = load(data, target=target, seed=seed, kinds=("features",), goals=("numbers",))
    labels = slipped(rows.y_train, wrong, seed)
    train = rows.x_train, labels
    huber = keras.losses.Huber(delta * spread(labels)[1])
    losses = {"squared": keras.losses.MeanSquaredError(), "huber": huber}

    def compiled(model: keras.Model, loss: keras.losses.Loss) -> keras.Model:
        metrics = [keras.metrics.MeanAbsoluteError("mae"), keras.metrics.R2Score(name="r2")]
        model.compile(keras.optimizers.Adam(lr), loss, metrics=metrics)
        return model

    models = {}
    with mka.technique("regression", params, dataset=rows, variants=4) as technique:
        for name, given in (("ridge_right", rows.y_train), ("ridge", labels)):
            with technique.variant(name) as run:
                model = models[name] = compiled(ridge_net(rows.x_train, given), losses["squared"])
                found = model.evaluate(*rows.validation, verbose=0, return_dict=True)
                run.log_metrics({f"val/{key}": value for key, value in found.items()}, step=0)
                technique.finish(model, *rows.test)

        for name, loss in losses.items():
            with technique.variant(name):
                model = models[name] = compiled(net(rows, units, labels), loss)
                fit(model, train, rows.validation, epochs=epochs, batch_size=batch_size)
                technique.finish(model, *rows.test)

        technique.compare(
            candidates=list(losses), monitor="val/mae", mode="min", curves=("val/mae", "val/r2")
        )
        technique.run.log_figure(predictions_figure(models, *rows.test), "answers.png")
        mae = technique.final("mae")
        shown = ", ".join(f"{name} {value:.3g}" for name, value in mae.items())
        median = np.abs(rows.y_test - np.median(rows.y_train)).mean()
        technique.conclude(
            f"Mean absolute error on the test split: {shown}; always predicting the median of the "
            f"training labels, {median:.3g}.",
            mka.Claim(
                "huber_squared",
                "mean absolute error under Huber's loss relative to that under the squared error",
                mae["huber"] / mae["squared"],
                at_most=0.6,
            ),
            mka.Claim(
                "huber_right",
                "the same relative to that of a ridge regression on the right labels",
                mae["huber"] / mae["ridge_right"],
                at_most=1.25,
            ),
            mka.Claim(
                "ridge_wrong",
                "error of the ridge regression on the wrong labels, relative to that on the right",
                mae["ridge"] / mae["ridge_right"],
                at_least=2.0,
            ),
        )


if __name__ == "__main__":
    entry_point.run(main)

"""Regression: a net that predicts a number, and a loss that a few wrong labels do not lead astray.

How far a disease has come a year later is to be told from ten measurements, each in its own unit.
Normalization of the inputs and Rescaling of the answer are layers of the net, so that whoever asks
the finished model sends what was measured and gets the number itself.

In one of ten training labels the decimal point has slipped: it is ten times too large. The squared
error follows such labels, for their errors count squared; Huber's loss (Annals of Mathematical
Statistics 35, 1964) counts an error beyond `delta` no more than in proportion. Validation and test
labels are right.

Four nested runs with the same keys: scikit-learn's ridge regression as a net, fitted to the right
labels, which nobody has, and to the wrong ones; the net under the squared error, and under Huber's.
What to expect: the wrong labels treble the error on the test split under the squared error, whether
the model is linear or not; under Huber's it stays near that of the right ones. Half a minute of
computing on two cores.

    mlflow run . -e regression --env-manager local -P wrong=0.2
"""

from typing import Annotated

import keras
import numpy as np
from matplotlib.figure import Figure
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from sklearn.linear_model import RidgeCV
from sklearn.metrics import PredictionErrorDisplay
from sklearn.preprocessing import StandardScaler

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from projects.data import Data, load


def slipped(y: np.ndarray, share: float, seed: int) -> np.ndarray:
    """The labels, of which a share is ten times too large."""
    chosen = np.random.default_rng(seed).choice(len(y), round(share * len(y)), replace=False)
    wrong = y.copy()
    wrong[chosen] *= 10
    return wrong


def spread(y: np.ndarray) -> tuple[float, float]:
    """Median and half the distance of the quartiles, which a few wrong labels hardly move."""
    low, middle, high = np.percentile(y, [25, 50, 75])
    return float(middle), max(float(high - low) / 2, float(np.finfo(np.float32).tiny))


def net(data: Data, units: int, labels: np.ndarray) -> keras.Model:
    """One hidden layer, between layers that know the units of inputs and answer."""
    middle, half = spread(labels)
    body = [keras.layers.Dense(units, activation="relu"), keras.layers.Dense(1)]
    return keras.Sequential([*data.entrance(), *body, keras.layers.Rescaling(half, middle)])


def ridge(data: Data, labels: np.ndarray) -> keras.Model:
    """scikit-learn's ridge regression, its penalty found by cross-validation, as a net."""
    scaler = StandardScaler().fit(data.x_train)
    fitted = RidgeCV(np.logspace(-2, 3, 20)).fit(scaler.transform(data.x_train), labels)
    dense = keras.layers.Dense(1)
    model = keras.Sequential([keras.Input(data.input_shape), dense])
    slopes = fitted.coef_ / scaler.scale_  # of the measurements in their own units
    bias = fitted.intercept_ - slopes @ scaler.mean_
    dense.set_weights([slopes[:, None], np.array([bias])])
    return model


def answers_figure(models: dict[str, keras.Model], data: Data) -> Figure:
    """What each answers over what is true, on the test split."""
    figure = Figure(figsize=(4 * len(models), 4), layout="constrained")
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for panel, (name, model) in zip(panels, models.items(), strict=True):
        answers = np.ravel(model(data.x_test))
        PredictionErrorDisplay.from_predictions(
            data.y_test, answers, kind="actual_vs_predicted", ax=panel
        )
        panel.set_title(name)
    return figure


def main(
    data: str = "diabetes",
    target: str = "",
    epochs: PositiveInt = 40,
    batch_size: PositiveInt = 32,
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
        batch_size: Examples per step.
        lr: Learning rate of Adam.
        units: Units of the hidden layer.
        wrong: Share of the training labels that are ten times too large.
        delta: Error beyond which Huber's loss is in proportion, relative to half the distance of
            the labels' quartiles.
        seed: Seed of weights, wrong labels, order of examples and choice of the validation split.
    """
    params = dict(locals())
    rows = load(data, target=target, seed=seed, kinds=("features",), goals=("numbers",))
    labels = slipped(rows.y_train, wrong, seed)
    huber = keras.losses.Huber(delta * spread(labels)[1])
    losses = {"squared": keras.losses.MeanSquaredError(), "huber": huber}

    def compiled(model: keras.Model, loss: keras.losses.Loss) -> keras.Model:
        metrics = [keras.metrics.MeanAbsoluteError("mae"), keras.metrics.R2Score(name="r2")]
        model.compile(keras.optimizers.Adam(lr), loss, metrics=metrics)
        return model

    models = {}
    record = {"dataset": rows.dataset, "seed": seed, "variants": 4}
    with mka.technique("regression", params, **record) as technique:
        for name, given in (("ridge_right", rows.y_train), ("ridge", labels)):
            with technique.variant(name) as run:
                model = models[name] = compiled(ridge(rows, given), losses["squared"])
                found = model.evaluate(*rows.validation, verbose=0, return_dict=True)
                run.log_metrics({f"val/{key}": value for key, value in found.items()}, step=0)
                technique.finish(model, *rows.test)

        for name, loss in losses.items():
            with technique.variant(name):
                model = models[name] = compiled(net(rows, units, labels), loss)
                model.fit(
                    rows.x_train,
                    labels,
                    batch_size=batch_size,
                    epochs=epochs,
                    validation_data=rows.validation,
                    callbacks=[mka.MlflowLogger()],
                    verbose=0,
                )
                technique.finish(model, *rows.test)

        technique.compare(
            candidates=list(losses), monitor="val/mae", mode="min", curves=("val/mae", "val/r2")
        )
        technique.run.log_figure(answers_figure(models, rows), "answers.png")
        mae = technique.final("mae")
        shown = ", ".join(f"{name} {value:.3g}" for name, value in mae.items())
        median = np.abs(rows.y_test - np.median(rows.y_train)).mean()
        technique.conclude(
            f"Mean absolute error on the test split: {shown}; the median of the training labels, "
            f"whoever asks, {median:.3g}.",
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

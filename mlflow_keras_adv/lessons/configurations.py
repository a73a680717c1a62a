"""Compares the best configuration of a search with the default one, over several seeds."""

from typing import Any

import keras
import numpy as np

from mlflow_keras_adv.callbacks.mlflow_logger import MlflowLogger
from mlflow_keras_adv.lessons.claims import Claim
from mlflow_keras_adv.lessons.technique import Technique

Configuration = tuple[Any, int]  # hyperparameters of Keras Tuner, and number of epochs


def compare_with_default(
    technique: Technique,
    hypermodel: Any,
    data: Any,
    *,
    best: Configuration,
    default: Configuration,
    seeds: int,
) -> tuple[list[str], Claim]:
    """Trains both configurations on training and validation data together, from several seeds.

    Each training is a variant, `best-<number>` or `default-<number>`, with its hyperparameters and
    `final/accuracy`. Only the models of the first seed are logged. The run of the technique gets
    the tag `winner`, the `final/…` metrics of the best configuration and `final/tuned_gain_std`.

    Args:
        technique: The record to which the variants belong.
        hypermodel: A `keras_tuner.HyperModel` of a classifier with the metric `accuracy`.
        data: Has `train`, `validation` and `test`, each `(x, y)` of arrays.
        best: The configuration that the search has found.
        default: The configuration to compare with.
        seeds: Number of trainings of each configuration, 2 or more.

    Returns:
        The mean test accuracies of both in words, with their standard deviations; and the claim
        `tuned_gain`, that the search has not made the accuracy worse.
    """
    both = [np.concatenate(pair) for pair in zip(data.train, data.validation, strict=True)]
    accuracies: dict[str, list[float]] = {"best": [], "default": []}
    for number in range(seeds):
        for name, (hp, epochs) in {"best": best, "default": default}.items():
            with technique.variant(f"{name}-{number}") as run:
                keras.utils.set_random_seed(technique.seed + number)
                model = hypermodel.build(hp)
                hypermodel.fit(hp, model, *both, epochs=epochs, callbacks=[MlflowLogger()])
                run.log_params(hp.values)
                if number == 0:
                    accuracy = technique.finish(model, *data.test, name=name).final["accuracy"]
                else:
                    _, accuracy = model.evaluate(*data.test, verbose=0)
                    run.log_metrics({"final/accuracy": accuracy})
            accuracies[name].append(accuracy)

    gains = np.subtract(accuracies["best"], accuracies["default"])
    spread = float(gains.std(ddof=1))
    technique.run.set_tags({"winner": "best" if gains.mean() > 0 else "default"})
    final = {**technique.finished["best"].final, "tuned_gain_std": spread}
    technique.run.log_metrics({f"final/{key}": value for key, value in final.items()})
    text = (
        "accuracy on the test split that the search gains over the default configuration, "
        f"mean of {seeds} seeds (standard deviation {spread:.2g})"
    )
    reached = [f"{np.mean(a):.1%} ± {np.std(a, ddof=1):.1%}" for a in accuracies.values()]
    return reached, Claim("tuned_gain", text, float(gains.mean()), at_least=0.0)

"""Tuners that take next to no time: a trial is a formula, or a fit of four steps."""

from pathlib import Path
from typing import Any

import keras
import keras_tuner
import numpy as np

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 4)).astype(np.float32)
Y = (X.sum(axis=1) > 0).astype(np.int64)
DATA = {"x": X, "y": Y, "validation_data": (X, Y), "batch_size": 16, "verbose": 0}
STEPS = 2  # of an epoch


def formula(hp: keras_tuner.HyperParameters) -> float:
    """Conditional: `momentum` and `decay` are never active together."""
    score = (hp.Float("x", 0.01, 10.0, sampling="log") - 1) ** 2
    if hp.Choice("kind", ["sgd", "adam"]) == "sgd":
        with hp.conditional_scope("kind", ["sgd"]):
            return score + hp.Float("momentum", 0.0, 0.9)
    with hp.conditional_scope("kind", ["adam"]):
        return score + hp.Int("decay", 1, 3)


class Formula(keras_tuner.RandomSearch):
    """Overrides `run_trial`, takes no callbacks and needs no model."""

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> float:
        """The score itself."""
        return formula(trial.hyperparameters)


def formula_search(folder: Path, tuner_class: Any = Formula, **settings: Any) -> Any:
    """A tuner of formulas with five trials."""
    chosen = {"max_trials": 5, "seed": 1, "directory": folder, "project_name": "formula"}
    return tuner_class(**(chosen | settings))


def network(hp: keras_tuner.HyperParameters) -> keras.Model:
    """Sixteen parameters at most."""
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(hp.Int("units", 1, 2)), keras.layers.Dense(2)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rate = hp.Float("learning_rate", 1e-3, 1e-1, sampling="log")
    model.compile(keras.optimizers.SGD(rate), loss, metrics=["accuracy"])
    return model


def network_search(
    folder: Path, tuner_class: Any = keras_tuner.RandomSearch, **settings: Any
) -> Any:
    """A tuner of networks with two trials."""
    chosen = {"hypermodel": network, "objective": "val_loss", "max_trials": 2, "seed": 1}
    chosen |= {"directory": folder, "project_name": "network"}
    given = {name: value for name, value in (chosen | settings).items() if value is not None}
    return tuner_class(**given)

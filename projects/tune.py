"""Hyperparameter search: which layers, units, dropout, optimizer, learning rate and batch size?

Keras Tuner proposes configurations and trains each for a few epochs; `track_search` puts each of
these trials on record, nested in the run of the search. Four ways to propose: at random, on a grid,
by a Gaussian process over what was found so far (`bayesian`), and Hyperband, which gives most
configurations few epochs and goes on with those that do well.

Li, Jamieson, DeSalvo, Rostamizadeh, Talwalkar: Hyperband: A Novel Bandit-Based Approach to
Hyperparameter Optimization, JMLR 18, 2018, arXiv:1603.06560.

A score is found on the validation split, and the best of many scores is flattered by having been
chosen. So the best configuration is trained anew on training and validation images, over several
seeds, and compared on the test split with the configuration that one would have started from.
What to expect: on digits, which are easy, a gain of about a point. Two minutes on two cores.

    mlflow run . -e tune --env-manager local -P tuner=hyperband -P workers=2

With `workers` above 1 Keras Tuner's chief and workers are processes of this machine; docs/search.md
says how to start them on several.
"""

import os
import sys
import tempfile
from typing import Annotated, Any, Literal

import keras
import keras_tuner
import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.tuner.processes import search_in_processes
from projects.data import Data, load


class Net(keras_tuner.HyperModel):
    """One to three hidden layers; the defaults are what one would start from."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.data = data

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """The space: what is in a `conditional_scope` counts only where the scope is entered."""
        net = self.data.entrance()
        layers = hp.Int("layers", 1, 3)
        dropout = hp.Boolean("dropout")
        for number in range(1, 4):
            with hp.conditional_scope("layers", list(range(number, 4))):
                if number <= layers:
                    units = hp.Int(f"units_{number}", 16, 128, step=16, default=32)
                    net.append(keras.layers.Dense(units, activation="relu"))
            with hp.conditional_scope("dropout", [True]):
                if number <= layers and dropout:
                    net.append(keras.layers.Dropout(hp.Float("dropout_rate", 0.1, 0.5, step=0.1)))
        rate = hp.Float("learning_rate", 1e-4, 1e-1, sampling="log", default=1e-3)
        if hp.Choice("optimizer", ["adam", "sgd"]) == "sgd":
            with hp.conditional_scope("optimizer", ["sgd"]):
                optimizer = keras.optimizers.SGD(rate, momentum=hp.Float("momentum", 0.0, 0.95))
        else:
            optimizer = keras.optimizers.Adam(rate)
        model = keras.Sequential([*net, keras.layers.Dense(self.data.classes)], name="net")
        crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, crossentropy, metrics=["accuracy"])
        return model

    def fit(
        self, hp: keras_tuner.HyperParameters, model: keras.Model, *args: Any, **kwargs: Any
    ) -> Any:
        """The batch size is a hyperparameter too."""
        batch_size = hp.Choice("batch_size", [16, 32, 64, 128], default=32)
        return model.fit(*args, **({"verbose": 0} | kwargs | {"batch_size": batch_size}))


TUNERS = {
    "hyperband": keras_tuner.Hyperband,
    "bayesian": keras_tuner.BayesianOptimization,
    "random": keras_tuner.RandomSearch,
    "grid": keras_tuner.GridSearch,
}


def main(
    data: str = "digits",
    target: str = "",
    tuner: Literal["hyperband", "bayesian", "random", "grid"] = "random",
    max_trials: PositiveInt = 20,
    max_epochs: Annotated[int, Field(ge=2)] = 15,
    executions: PositiveInt = 1,
    workers: PositiveInt = 1,
    seeds: Annotated[int, Field(ge=2)] = 3,
    directory: str = "",
    seed: NonNegativeInt = 0,
) -> None:
    """Searches, trains the best anew, and compares it with the default configuration.

    Args:
        data: digits, keras:mnist (or another of keras.datasets), breast_cancer, a folder of images,
            or the path of an .npz, .csv or .parquet file.
        target: Column to tell of a .csv or .parquet file.
        tuner: hyperband, bayesian, random or grid.
        max_trials: Configurations to try; Hyperband has no such bound and tries as many as
            max_epochs makes it.
        max_epochs: Epochs of a trial at most.
        executions: Trainings of each configuration, whose mean score counts.
        workers: Processes that search; above 1 beside a chief.
        seeds: Trainings of the best and of the default configuration to compare, 2 or more.
        directory: Folder of the search; one that holds a search is continued. Empty: a temporary
            one.
        seed: Seed of the search and of the choice of the validation split.
    """
    params = dict(locals())
    images = load(data, target=target, seed=seed, kinds=("images", "features"))
    net = Net(images)
    bound = f"max_trials={max_trials}"
    if tuner == "hyperband":
        bound = f"Hyperband is bounded by max_epochs={max_epochs}; max_trials does not count."

    def new_tuner(folder: str) -> keras_tuner.Tuner:
        """In a folder that holds a search, that search as far as it has come."""
        keras.utils.set_random_seed(seed)
        budget = "max_epochs" if tuner == "hyperband" else "max_trials"
        return TUNERS[tuner](
            net,
            "val_accuracy",
            **{budget: params[budget]},
            executions_per_trial=executions,
            seed=seed + 1,  # Keras Tuner takes a seed of 0 for none
            directory=folder,
            project_name="tune",
        )

    def search(folder: str) -> None:
        tracked = mka.track_search(new_tuner(folder), name="search")
        tracked.search(*images.train, epochs=max_epochs, validation_data=images.validation)

    if "KERASTUNER_ORACLE_IP" in os.environ:  # this process is the chief or a worker
        search(directory)
        return

    record = {"dataset": images.dataset, "seed": seed, "variants": 2 * seeds}
    with (
        mka.technique("tune", params, **record) as technique,
        tempfile.TemporaryDirectory(prefix="tune-") as temporary,
    ):
        run, folder = technique.run, directory or temporary
        run.set_tags({"tune.budget": bound})
        print(f"The search: {bound}", flush=True)
        if workers == 1:
            search(folder)
        else:
            options = (params | {"directory": folder}).items()
            command = [sys.executable, "-m", "projects.tune"]
            command += [f"--{key.replace('_', '-')}={value}" for key, value in options]
            nested = {"MLFLOW_RUN_ID": run.run_id, "MLFLOW_EXPERIMENT_ID": run.experiment_id}
            search_in_processes(command, workers=workers, environment=nested)
        oracle = new_tuner(folder).oracle
        oracle.reload()
        (best,) = oracle.get_best_trials()

        both = [np.concatenate(pair) for pair in zip(images.train, images.validation, strict=True)]
        configurations = {
            "best": (best.hyperparameters, best.best_step + 1),
            "default": (keras_tuner.HyperParameters(), max_epochs),
        }
        accuracies: dict[str, list[float]] = {name: [] for name in configurations}
        for number in range(seeds):
            for name, (hp, epochs) in configurations.items():
                with technique.variant(f"{name}-{number}") as variant:
                    keras.utils.set_random_seed(seed + number)
                    model = net.build(hp)
                    net.fit(hp, model, *both, epochs=epochs, callbacks=[mka.MlflowLogger()])
                    variant.log_params(hp.values)
                    if number == 0:
                        finished = technique.finish(model, *images.test, name=name)
                        accuracy = finished.final["accuracy"]
                    else:
                        _, accuracy = model.evaluate(*images.test, verbose=0)
                        variant.log_metrics({"final/accuracy": accuracy})
                accuracies[name].append(accuracy)

        gains = np.subtract(accuracies["best"], accuracies["default"])
        run.set_tags({"winner": "best" if gains.mean() > 0 else "default"})
        final = technique.finished["best"].final | {"tuned_gain_std": gains.std(ddof=1)}
        run.log_metrics({f"final/{key}": value for key, value in final.items()})
        reached = [f"{np.mean(a):.1%} ± {np.std(a, ddof=1):.1%}" for a in accuracies.values()]
        technique.conclude(
            f"The best of {len(oracle.trials)} trials reaches {reached[0]} on the test split, the "
            f"default configuration {reached[1]} ({seeds} seeds each).",
            mka.Claim(
                "tuned_gain",
                "accuracy on the test split that the search gains over the default configuration, "
                f"mean of {seeds} seeds (standard deviation {gains.std(ddof=1):.2g})",
                gains.mean(),
                at_least=0.0,
            ),
        )


if __name__ == "__main__":
    entry_point.run(main)

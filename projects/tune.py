"""Hyperparameter search: which layers, units, dropout, optimizer, learning rate and batch size?

Keras Tuner proposes configurations and trains each for a few epochs; `track_search` puts each of
these trials on record, nested in the run of the search. Four ways to propose: at random, on a grid,
by a Gaussian process fitted to the scores so far (`bayesian`), and Hyperband, which gives most
configurations few epochs and goes on with those that do well.

Li, Jamieson, DeSalvo, Rostamizadeh, Talwalkar: Hyperband: A Novel Bandit-Based Approach to
Hyperparameter Optimization, JMLR 18, 2018, arXiv:1603.06560.

Scores are measured on the validation split, and the best of many scores is optimistic because it
was chosen. So the best configuration is trained again on training and validation images, from
several seeds, and compared on the test split with the default configuration. What to expect: on
digits, which are easy, a gain of about a point. Two minutes on two cores.

    mlflow run . -e tune --env-manager local -P tuner=hyperband -P workers=2

With `workers` above 1 Keras Tuner's chief and workers are processes of this machine; docs/search.md
says how to start them on several.
"""

import os
import tempfile
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import keras
import keras_tuner
from pydantic import Field, NonNegativeInt, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.configurations import compare_with_default
from mlflow_keras_adv.lessons.training import crossentropy
from mlflow_keras_adv.tuner.processes import search_in_processes
from projects.data import Data, load
from projects.parameters import Examples, Target


class Net(keras_tuner.HyperModel):
    """One to three hidden layers; the defaults are a usual first choice."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.data = data

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """The search space; hyperparameters of a `conditional_scope` are active only inside it."""
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


def new_tuner(net: Net, folder: str, params: Mapping[str, Any]) -> keras_tuner.Tuner:
    """The tuner that was asked for; a search that is in the folder is continued."""
    keras.utils.set_random_seed(params["seed"])
    budget = "max_epochs" if params["tuner"] == "hyperband" else "max_trials"
    return TUNERS[params["tuner"]](
        net,
        "val_accuracy",
        **{budget: params[budget]},
        executions_per_trial=params["executions"],
        seed=params["seed"] + 1,  # Keras Tuner takes a seed of 0 for none
        directory=folder,
        project_name="tune",
    )


def search(net: Net, folder: str, params: Mapping[str, Any]) -> None:
    """The search itself: a nested run, and one in it for each trial."""
    tuner = mka.track_search(new_tuner(net, folder, params), name="search")
    validation = net.data.validation
    tuner.search(*net.data.train, epochs=params["max_epochs"], validation_data=validation)


def main(
    data: Examples = "digits",
    target: Target = "",
    tuner: Literal["hyperband", "bayesian", "random", "grid"] = "random",
    max_trials: PositiveInt = 20,
    max_epochs: Annotated[int, Field(ge=2)] = 15,
    executions: PositiveInt = 1,
    workers: PositiveInt = 1,
    seeds: Annotated[int, Field(ge=2)] = 3,
    directory: str = "",
    seed: NonNegativeInt = 0,
) -> None:
    """Searches, trains the best configuration again, and compares it with the default one.

    Args:
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
    net = Net(load(data, target=target, seed=seed, kinds=("images", "features")))
    if "KERASTUNER_ORACLE_IP" in os.environ:  # this process is the chief or a worker
        search(net, directory, params)
        return

    bound = f"max_trials={max_trials}"
    if tuner == "hyperband":
        bound = f"Hyperband is bounded by max_epochs={max_epochs}; max_trials does not count."
    with (
        mka.technique("tune", params, dataset=net.data, variants=2 * seeds) as technique,
        tempfile.TemporaryDirectory(prefix="tune-") as temporary,
    ):
        run, folder = technique.run, directory or temporary
        run.set_tags({"tune.budget": bound})
        print(f"The search: {bound}", flush=True)
        if workers == 1:
            search(net, folder, params)
        else:
            command = entry_point.command("projects.tune", params | {"directory": folder})
            nested = {"MLFLOW_RUN_ID": run.run_id, "MLFLOW_EXPERIMENT_ID": run.experiment_id}
            search_in_processes(command, workers=workers, environment=nested)
        oracle = new_tuner(net, folder, params).oracle
        oracle.reload()
        (best,) = oracle.get_best_trials()

        default = keras_tuner.HyperParameters(), max_epochs
        found = best.hyperparameters, best.best_step + 1
        reached, claim = compare_with_default(
            technique, net, net.data, best=found, default=default, seeds=seeds
        )
        technique.conclude(
            f"The best of {len(oracle.trials)} trials reaches {reached[0]} on the test split, the "
            f"default configuration {reached[1]} ({seeds} seeds each).",
            claim,
        )


if __name__ == "__main__":
    entry_point.run(main)

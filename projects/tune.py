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

With `workers` above 1 Keras Tuner's chief and workers are processes of this machine. On several:
give each its KERASTUNER_TUNER_ID (`chief`, `worker-0`, ...), KERASTUNER_ORACLE_IP and
KERASTUNER_ORACLE_PORT of the chief, the same MLFLOW_TRACKING_URI and `directory` on a shared disk,
and start the same command on each; then once more without these variables.
"""

import os
import sys
import tempfile
from contextlib import ExitStack
from typing import Annotated, Any, Literal

import keras
import keras_tuner
import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv import entry_point
from mlflow_keras_adv.tuner.processes import search_in_processes
from projects.data import Data, load


class Net(keras_tuner.HyperModel):
    """A net of one to three hidden layers; its defaults are what one would start from."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.data = data

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """The space: what is in a `conditional_scope` counts only where the scope is entered."""
        net = [keras.Input(self.data.input_shape), keras.layers.Flatten()]
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


def new_tuner(kind: str, max_trials: int, max_epochs: int, **settings: Any) -> keras_tuner.Tuner:
    """The tuner, or in a folder that holds a search, that search as far as it has come."""
    settings |= {"objective": "val_accuracy", "project_name": "tune"}
    if kind == "hyperband":  # bounded by epochs alone
        return keras_tuner.Hyperband(max_epochs=max_epochs, **settings)
    kinds = {
        "bayesian": keras_tuner.BayesianOptimization,
        "random": keras_tuner.RandomSearch,
        "grid": keras_tuner.GridSearch,
    }
    return kinds[kind](max_trials=max_trials, **settings)


def main(
    data: str = "digits",
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
        data: digits, keras:mnist (or another of keras.datasets), or the path of an .npz file.
        tuner: hyperband, bayesian, random or grid.
        max_trials: Configurations to try; Hyperband has no such bound and tries as many as
            max_epochs makes it.
        max_epochs: Epochs of a trial at most.
        executions: Trainings of each configuration, whose mean score counts.
        workers: Processes that search; above 1 beside a chief.
        seeds: Trainings of the best and of the default configuration to compare, 2 or more.
        directory: Folder of the search; one that holds a search is continued. Empty: a temporary
            one.
        seed: Of the search and of the choice of the validation split.
    """
    params = dict(locals())
    images = load(data, seed=seed)
    dataset = mka.Dataset(images.name, images.digest)
    net = Net(images)

    def make(folder: str) -> keras_tuner.Tuner:
        keras.utils.set_random_seed(seed)
        # Keras Tuner takes a seed of 0 for none.
        settings = {"executions_per_trial": executions, "seed": seed + 1, "directory": folder}
        return new_tuner(tuner, max_trials, max_epochs, hypermodel=net, **settings)

    def search(folder: str) -> None:
        mka.track_search(make(folder), name="search").search(
            images.x_train,
            images.y_train,
            epochs=max_epochs,
            validation_data=(images.x_validation, images.y_validation),
        )

    if "KERASTUNER_ORACLE_IP" in os.environ:  # this process is the chief or a worker
        search(directory)
        return

    def train(hp: keras_tuner.HyperParameters, epochs: int, number: int) -> keras.Model:
        keras.utils.set_random_seed(seed + number)
        model = net.build(hp)
        x = np.concatenate([images.x_train, images.x_validation])
        y = np.concatenate([images.y_train, images.y_validation])
        net.fit(hp, model, x, y, epochs=epochs, callbacks=[mka.MlflowLogger()])
        return model

    with ExitStack() as stack:
        run = stack.enter_context(mka.track("tune", params=params, tags={"technique": "tune"}))
        run.log_dataset(dataset, context="training")
        if tuner == "hyperband":
            bound = f"Hyperband is bounded by max_epochs={max_epochs}; max_trials does not count."
            run.set_tags({"tune.budget": bound})
            print(bound)
        folder = directory or stack.enter_context(tempfile.TemporaryDirectory(prefix="tune-"))
        if workers == 1:
            search(folder)
        else:
            options = params | {"directory": folder}
            command = [sys.executable, "-m", "projects.tune"]
            command += [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
            nested = {"MLFLOW_RUN_ID": run.run_id, "MLFLOW_EXPERIMENT_ID": run.experiment_id}
            search_in_processes(command, workers=workers, environment=nested)
        searched = make(folder)
        searched.oracle.reload()
        (best,) = searched.oracle.get_best_trials()

        accuracies: dict[str, list[float]] = {"best": [], "default": []}
        for number in range(seeds):
            configurations = {
                "best": (best.hyperparameters, best.best_step + 1),
                "default": (keras_tuner.HyperParameters(), max_epochs),
            }
            for name, (hp, epochs) in configurations.items():
                print(f"[{number + 1}/{seeds}] {name} configuration, {epochs} epochs", flush=True)
                with run.child(f"{name}-{number}", tags={"technique": "tune"}) as child:
                    model = train(hp, epochs, number)
                    child.log_params(hp.values)
                    test = images.x_test, images.y_test
                    if number == 0:
                        found = mka.log_finished_model(
                            child, model, *test, name=name, dataset=dataset
                        )
                        accuracy = found.final["accuracy"]
                        if name == "best":
                            of_winner = {f"final/{k}": v for k, v in found.final.items()}
                            run.log_metrics(of_winner, step=0)
                    else:
                        accuracy = float(
                            model.evaluate(*test, verbose=0, return_dict=True)["accuracy"]
                        )
                        child.log_metrics({"final/accuracy": accuracy}, step=0)
                accuracies[name].append(accuracy)

        gains = np.subtract(accuracies["best"], accuracies["default"])
        claim = mka.Claim(
            "tuned_gain",
            "accuracy on the test split that the search gains over the default, mean of the seeds",
            float(gains.mean()),
            at_least=0.0,
        )
        claims = mka.log_claims(run, claim)
        spoken = {
            name: f"{np.mean(each):.1%} ± {np.std(each, ddof=1):.1%}"
            for name, each in accuracies.items()
        }
        result = (
            f"The best of {len(searched.oracle.trials)} trials reaches {spoken['best']} on the "
            f"test split, the default configuration {spoken['default']} ({seeds} seeds each)."
        )
        run.set_tags({"winner": "best" if gains.mean() > 0 else "default"})
        values = "\n".join(
            f"| {key} | {value} |" for key, value in best.hyperparameters.values.items()
        )
        run.describe(f"{result}\n\n{claims}\n\n| hyperparameter | best |\n|---|---|\n{values}")
    print(f"{result}\n{claims}")


if __name__ == "__main__":
    entry_point.run(main)

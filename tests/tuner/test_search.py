"""track_search(): one run per search, one per trial, whatever the tuner and whatever goes wrong."""

import copy
import json
import math
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import keras
import keras_tuner
import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

import mlflow_keras_adv as mka
from mlflow_keras_adv.tracking.axis import is_superseded, superseded_spans
from mlflow_keras_adv.tuner import trials as trials_module
from tests.tuner.searches import (
    DATA,
    STEPS,
    Formula,
    X,
    Y,
    formula_search,
    network,
    network_search,
)

pytestmark = pytest.mark.filterwarnings(
    # Keras Tuner's own locking.
    "ignore:currentThread:DeprecationWarning",
    "ignore:getName:DeprecationWarning",
    # What it makes of a score that is NaN.
    "ignore:All-NaN:RuntimeWarning",
)

Curves = Callable[[str], dict[str, dict[int, float]]]


@pytest.fixture
def runs(experiment: str, client: mlflow.MlflowClient) -> Callable[[], dict[str, Run]]:
    """Reads the runs of the test by their names; no name may stand for two."""

    def read() -> dict[str, Run]:
        found = client.search_runs([experiment])
        named = {run.info.run_name: run for run in found}
        assert len(named) == len(found), "two runs of one name"
        return named

    return read


def artifact(run: Run, name: str) -> str:
    return mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{name}")


def statuses(found: dict[str, Run]) -> dict[str, str]:
    return {name: run.info.status for name, run in found.items()}


def parents(found: dict[str, Run]) -> dict[str, str | None]:
    names = {run.info.run_id: name for name, run in found.items()}
    return {
        name: names.get(run.data.tags.get("mlflow.parentRunId", "")) for name, run in found.items()
    }


# What a search leaves.


@pytest.mark.quick
def test_one_run_per_trial_nested_in_that_of_the_search(
    runs: Callable[[], dict[str, Run]], tmp_path: Path
) -> None:
    tuner = formula_search(tmp_path)
    mka.track_search(tuner).search(verbose=0)
    found = runs()
    names = [f"trial-{number:03d}" for number in range(5)]
    assert parents(found) == {"Formula": None} | dict.fromkeys(names, "Formula")
    assert set(statuses(found).values()) == {"FINISHED"}
    for trial_id, trial in tuner.oracle.trials.items():
        run = found[f"trial-{int(trial_id):03d}"]
        assert run.data.tags["tuner.trial_id"] == trial_id
        assert run.data.metrics["trial/score"] == trial.score
        assert run.data.metrics["trial/best_step"] == trial.best_step
        inactive = "decay" if trial.hyperparameters["kind"] == "sgd" else "momentum"
        assert inactive not in run.data.params
        assert run.data.params == {k: str(v) for k, v in trial.hyperparameters.values.items()}


def test_the_run_of_the_search_says_what_is_best(
    runs: Callable[[], dict[str, Run]], curves: Curves, tmp_path: Path
) -> None:
    tuner = formula_search(tmp_path, max_trials=8)
    mka.track_search(tuner, name="formulas").search(verbose=0)
    run = runs()["formulas"]
    (best,) = tuner.oracle.get_best_trials()
    winner = f"trial-{int(best.trial_id):03d}"
    assert run.data.tags["winner"] == winner
    first, *table = run.data.tags["mlflow.note.content"].splitlines()
    assert first == (
        f"Best default_objective {best.score:.6g} by {winner} (lower is better), "
        "after 8 of 8 trials."
    )
    assert f"| x | {best.hyperparameters['x']} |" in table
    assert run.data.params["tuner.class"] == "Formula"
    assert run.data.params["tuner.direction"] == "min"
    assert run.data.params["tuner.max_trials"] == "8"
    assert run.data.params["space.x"] == "float from 0.01 to 10.0, log"
    assert run.data.params["space.momentum"] == "float from 0.0 to 0.9 if kind is sgd"
    scores = [tuner.oracle.trials[each].score for each in tuner.oracle.end_order]
    found = curves(run.info.run_id)
    assert found["search/score"] == dict(enumerate(scores, start=1))
    best_so_far = np.minimum.accumulate(scores)
    assert found["search/best_score"] == dict(enumerate(best_so_far, start=1))
    assert found["trial/score"] == {0: best.score}
    space = keras_tuner.HyperParameters.from_config(json.loads(artifact(run, "search_space.json")))
    assert space.get_config()["space"] == tuner.oracle.get_space().get_config()["space"]
    config = json.loads(artifact(run, "best_hyperparameters.json"))
    assert keras_tuner.HyperParameters.from_config(config).values == best.hyperparameters.values
    client = mlflow.MlflowClient()
    shown = client.load_table(run.info.experiment_id, "trials.json", [run.info.run_id])
    assert list(shown["trial"]) == [f"trial-{number:03d}" for number in range(8)]
    score = dict(zip(shown["trial"], shown["score"], strict=True))[winner]
    assert score == pytest.approx(best.score, rel=1e-12)  # pandas reads 15 digits
    pictures = {"optimization_history", "parallel_coordinates", "hyperparameter_importance"}
    listed = {each.path for each in client.list_artifacts(run.info.run_id)}
    assert {f"{name}.png" for name in pictures} <= listed


def test_the_tuner_is_as_it_was_but_for_search(experiment: str, tmp_path: Path) -> None:
    tuner = network_search(tmp_path)
    callback = keras.callbacks.EarlyStopping("val_loss")
    given = [callback]
    seen: list[set[str]] = []
    oracle, fit = tuner.oracle, keras.Model.fit
    before = set(vars(tuner)), set(vars(oracle))

    class Looks(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            seen.append(set(vars(tuner)) - before[0])

    given.append(Looks())
    mka.track_search(mka.track_search(tuner)).search(**DATA, epochs=1, callbacks=given)
    assert {"search", "run_trial", "on_trial_begin", "on_trial_end"} == seen[0]
    assert (set(vars(tuner)), set(vars(oracle))) == (before[0] | {"search"}, before[1])
    assert given == [callback, given[1]]
    assert keras.Model.fit is fit
    assert mlflow.active_run() is None


@pytest.mark.slow
def test_the_same_trials_and_scores_with_and_without(experiment: str, tmp_path: Path) -> None:
    def scores(folder: str, track: Callable[[Any], Any]) -> list[Any]:
        keras.utils.set_random_seed(3)
        tuner = network_search(tmp_path / folder, executions_per_trial=2)
        track(tuner).search(**DATA, epochs=1)
        found = [tuner.oracle.trials[each] for each in tuner.oracle.end_order]
        return [(trial.hyperparameters.values, trial.score, trial.best_step) for trial in found]

    assert scores("bare", lambda tuner: tuner) == scores("tracked", mka.track_search)


# Which tuners.


class OwnFit(keras_tuner.HyperModel):
    """A fit of its own, which passes no callbacks on."""

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        return network(hp)

    def fit(self, hp: Any, model: keras.Model, *args: Any, **kwargs: Any) -> Any:
        history = model.fit(X, Y, batch_size=hp.Choice("batch_size", [8, 16]), verbose=0)
        return {"val_loss": history.history["loss"][-1], "other": 1.0}


class OwnTrial(keras_tuner.RandomSearch):
    """A trial of its own, with a signature that takes no callbacks."""

    def run_trial(self, trial: Any, x: Any, y: Any) -> float:
        model = self.hypermodel.build(trial.hyperparameters)
        return model.fit(x, y, batch_size=16, verbose=0).history["loss"][-1]


class OwnStep(keras.Model):
    def train_step(self, data: Any) -> Any:
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


def own_step(hp: keras_tuner.HyperParameters) -> keras.Model:
    inputs = keras.Input((4,))
    model = OwnStep(inputs, keras.layers.Dense(2)(inputs))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(hp.Float("learning_rate", 0.01, 0.1)), loss)
    return model


@pytest.mark.parametrize(
    ("settings", "search"),
    [
        ({}, {**DATA, "epochs": 2}),
        ({"hypermodel": OwnFit()}, {}),
        ({"tuner_class": OwnTrial, "objective": None}, {"x": X, "y": Y}),
        ({"hypermodel": own_step}, {**DATA, "epochs": 2}),
    ],
    ids=["fit", "HyperModel.fit", "run_trial", "train_step"],
)
def test_every_fit_of_a_trial_is_on_record(
    settings: dict[str, Any],
    search: dict[str, Any],
    runs: Callable[[], dict[str, Run]],
    curves: Curves,
    tmp_path: Path,
) -> None:
    tuner = network_search(tmp_path, **settings)
    mka.track_search(tuner).search(**search)
    found = runs()
    for trial_id, trial in tuner.oracle.trials.items():
        run = found[f"trial-{int(trial_id):03d}"]
        recorded = curves(run.info.run_id)
        assert len(recorded["batch/loss"]) >= STEPS
        assert list(recorded["gradient/norm"]) == list(recorded["batch/loss"])
        assert recorded["trial/score"] == {0: trial.score}
        expected = np.float32(trial.hyperparameters["learning_rate"])
        assert set(recorded["optimizer/learning_rate"].values()) == {float(expected)}
    assert not any(key.startswith("batch/") for key in found[type(tuner).__name__].data.metrics)


def test_executions_are_nested_in_their_trial(
    experiment: str, client: mlflow.MlflowClient, curves: Curves, tmp_path: Path
) -> None:
    tuner = network_search(tmp_path, max_trials=1, executions_per_trial=2)
    mka.track_search(tuner).search(**DATA, epochs=2)
    found = client.search_runs([experiment])
    trial = next(run for run in found if run.info.run_name == "trial-000")
    below = [run for run in found if run.data.tags.get("mlflow.parentRunId") == trial.info.run_id]
    assert sorted(run.info.run_name for run in below) == ["execution-0", "execution-1"]
    scores = []
    for run in below:
        recorded = curves(run.info.run_id)
        assert list(recorded["batch/loss"]) == [1, 2, 3, 4]
        assert recorded["trial/score"][0] == min(recorded["val/loss"].values())
        scores.append(recorded["trial/score"][0])
    metrics = trial.data.metrics
    assert "batch/loss" not in metrics
    assert metrics["trial/score"] == pytest.approx(np.mean(scores), rel=1e-12)
    assert metrics["trial/score_std"] == pytest.approx(np.std(scores, ddof=1), rel=1e-9)


@pytest.mark.slow
def test_hyperband_says_which_trial_is_continued(
    runs: Callable[[], dict[str, Run]], tmp_path: Path
) -> None:
    tuner = network_search(tmp_path, keras_tuner.Hyperband, max_trials=None, max_epochs=2, factor=2)
    mka.track_search(tuner).search(**DATA)
    found = runs()
    continued = {
        trial_id: trial.hyperparameters.values["tuner/trial_id"]
        for trial_id, trial in tuner.oracle.trials.items()
        if "tuner/trial_id" in trial.hyperparameters.values
    }
    assert continued
    for trial_id, before in continued.items():
        run, earlier = found[f"trial-{int(trial_id):03d}"], found[f"trial-{int(before):03d}"]
        assert run.data.tags["tuner.continues"] == earlier.info.run_name
        assert run.data.tags["tuner.continues_run_id"] == earlier.info.run_id
        assert run.data.params["tuner.round"] == "1"
        assert run.data.params["tuner.bracket"] == earlier.data.params["tuner.bracket"]
        assert run.data.params["tuner.initial_epoch"] == "1"
    assert found["Hyperband"].data.params["tuner.max_epochs"] == "2"
    assert found["Hyperband"].data.params["tuner.factor"] == "2"


@pytest.mark.parametrize("tuner_class", [keras_tuner.GridSearch, keras_tuner.BayesianOptimization])
def test_other_oracles(
    tuner_class: Any, runs: Callable[[], dict[str, Run]], tmp_path: Path
) -> None:
    kind = type("Kind", (tuner_class,), {"run_trial": Formula.run_trial})
    tuner = formula_search(tmp_path, kind)
    mka.track_search(tuner).search(verbose=0)
    found = runs()
    assert len(found) == 1 + len(tuner.oracle.trials)
    assert found["Kind"].data.params["tuner.oracle"] == type(tuner.oracle).__name__


def test_sklearn_tuner(runs: Callable[[], dict[str, Run]], tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    objective = keras_tuner.Objective("score", "max")
    tuner = keras_tuner.SklearnTuner(
        keras_tuner.oracles.RandomSearchOracle(objective, max_trials=2, seed=1),
        lambda hp: LogisticRegression(C=hp.Float("C", 0.1, 10.0)),
        directory=tmp_path,
    )
    mka.track_search(tuner).search(X, Y)
    found = runs()
    assert found["trial-001"].data.metrics["trial/score"] == tuner.oracle.trials["1"].score
    assert set(found["trial-001"].data.params) == {"C"}


# What goes wrong.


class Breaks(Formula):
    """Trial 1 raises, trial 2 scores NaN, trial 3 is interrupted, each the first time only."""

    log: ClassVar[list[str]] = []

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> float:
        self.log.append(trial.trial_id)
        if self.log.count(trial.trial_id) == 1:
            if trial.trial_id == "1":
                raise ValueError("no such layer")
            if trial.trial_id == "2":
                return math.nan
            if trial.trial_id == "3":
                raise KeyboardInterrupt
        return super().run_trial(trial)


def test_a_trial_that_fails_has_its_traceback_and_the_search_goes_on(
    runs: Callable[[], dict[str, Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Breaks, "log", [])
    mka.track_search(formula_search(tmp_path, Breaks, max_trials=3)).search(verbose=0)
    found = runs()
    expected = {"Breaks": "FINISHED", "trial-000": "FINISHED"}
    assert statuses(found) == expected | {"trial-001": "FAILED", "trial-002": "FAILED"}
    assert found["trial-001"].data.tags["error"] == "ValueError: no such layer"
    assert "no such layer" in artifact(found["trial-001"], "traceback.txt")
    assert "NaN" in found["trial-002"].data.tags["error"]
    assert "trial/score" not in found["trial-002"].data.metrics
    note = found["Breaks"].data.tags["mlflow.note.content"]
    assert "after 3 of 3 trials, 2 of them failed." in note


def test_a_trial_that_is_retried_keeps_its_run(
    runs: Callable[[], dict[str, Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Breaks, "log", [])
    tuner = formula_search(tmp_path, Breaks, max_trials=2, max_retries_per_trial=1)
    mka.track_search(tuner).search(verbose=0)
    found = runs()
    assert len(found) == 3
    assert set(statuses(found).values()) == {"FINISHED"}
    assert found["trial-001"].data.tags["tuner.attempt"] == "2"
    assert "error" not in found["trial-001"].data.tags


class BreaksLate(keras_tuner.RandomSearch):
    """A trial that has trained all of its epochs, and fails then; once."""

    broke = False

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
        found = super().run_trial(trial, *args, **kwargs)
        if not type(self).broke:
            type(self).broke = True
            raise ValueError("after the last epoch")
        return found


def test_of_a_trial_that_is_repeated_one_attempt_counts(
    runs: Callable[[], dict[str, Run]],
    client: MlflowClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(BreaksLate, "broke", False)
    tuner = network_search(tmp_path, BreaksLate, max_trials=1, max_retries_per_trial=1)
    mka.track_search(tuner).search(**DATA, epochs=2)
    trial = runs()["trial-000"]
    spans = superseded_spans(trial.data.tags)
    points = client.get_metric_history(trial.info.run_id, "batch/loss")
    assert len(points) == 2 * 2 * STEPS
    counted = [point.step for point in points if not is_superseded(point, spans)]
    assert sorted(counted) == list(range(1, 2 * STEPS + 1))


def test_too_many_failures_fail_the_search(
    runs: Callable[[], dict[str, Run]], tmp_path: Path
) -> None:
    class Always(Formula):
        def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> float:
            super().run_trial(trial)
            raise ValueError("never")

    with pytest.raises(RuntimeError, match="consecutive failures"):
        mka.track_search(formula_search(tmp_path, Always)).search(verbose=0)
    found = runs()
    assert len(found) == 4
    assert set(statuses(found).values()) == {"FAILED"}
    assert found["trial-002"].data.tags["error"] == "ValueError: never"


def test_a_search_in_which_every_trial_failed_is_failed(
    runs: Callable[[], dict[str, Run]], tmp_path: Path
) -> None:
    wrong = keras_tuner.Objective("val_f1", "max")
    tuner = network_search(tmp_path, objective=wrong, max_trials=2)
    mka.track_search(tuner).search(**DATA)
    found = runs()["RandomSearch"]
    assert found.info.status == "FAILED"
    for said in (found.data.tags["mlflow.note.content"], found.data.tags["error"]):
        assert "No trial is complete: each of 2 has failed. Of trial-001: " in said
        assert "val_f1" in said


class Folds(keras_tuner.RandomSearch):
    """Cross-validates, and reports metrics that are called as ours are."""

    def run_trial(self, trial: Any, x: Any, y: Any) -> dict[str, float]:
        losses = []
        for fold in np.arange(len(x)) % 2 == 0, np.arange(len(x)) % 2 == 1:
            model = self.hypermodel.build(trial.hyperparameters)
            history = model.fit(x[fold], y[fold], batch_size=16, epochs=2, verbose=0)
            losses.append(history.history["loss"][-1])
        return {"loss": float(np.mean(losses)), "score": 1e9, "best_step": -3.0}


def test_folds_are_nested_in_their_trial(
    experiment: str, client: mlflow.MlflowClient, curves: Curves, tmp_path: Path
) -> None:
    objective = keras_tuner.Objective("loss", "min")
    tuner = network_search(tmp_path, Folds, objective=objective, max_trials=1)
    mka.track_search(tuner, nest_fits=True).search(X, Y)
    found = client.search_runs([experiment])
    trial = next(run for run in found if run.info.run_name == "trial-000")
    below = [run for run in found if run.data.tags.get("mlflow.parentRunId") == trial.info.run_id]
    assert sorted(run.info.run_name for run in below) == ["fold-0", "fold-1"]
    losses = []
    for run in below:
        recorded = curves(run.info.run_id)
        assert list(recorded["batch/loss"]) == [1, 2]
        assert run.info.status == "FINISHED"
        losses.append(recorded["train/loss"][2])
    metrics = trial.data.metrics
    assert "batch/loss" not in metrics
    assert metrics["trial/score"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert (metrics["trial/reported/score"], metrics["trial/reported/best_step"]) == (1e9, -3)


def test_the_best_model_is_on_the_run_of_the_search(
    runs: Callable[[], dict[str, Run]], client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    assert mka.search_run_id(network_search(tmp_path)) is None
    for _ in range(2):  # the second finds the search complete
        tuner = network_search(tmp_path)
        mka.track_search(tuner, best_model_example=X[:2]).search(**DATA)
    found = runs()["RandomSearch"]
    assert mka.search_run_id(tuner) == found.info.run_id
    [logged] = client.search_logged_models([found.info.experiment_id])
    assert (logged.name, logged.source_run_id) == ("best", found.info.run_id)
    assert logged.tags["trial"] == found.data.tags["winner"]
    assert {each.key: each.value for each in logged.metrics}["trial/score"] == (
        found.data.metrics["trial/score"]
    )
    [best] = tuner.get_best_models(1)
    served = mlflow.pyfunc.load_model(f"models:/{logged.model_id}").predict(X)
    np.testing.assert_allclose(served, best(X), rtol=0, atol=1e-5)


def test_another_objective_in_the_same_folder_is_another_search(
    experiment: str,
    client: mlflow.MlflowClient,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mka.track_search(network_search(tmp_path, objective="val_accuracy")).search(**DATA)
    tuner = network_search(tmp_path, objective="val_loss", max_trials=4)
    mka.track_search(tuner, name="by loss").search(**DATA)
    found = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert set(found) == {"RandomSearch", "by loss", *(f"trial-00{n}" for n in range(4))}
    assert "the objective was val_accuracy (max), and is val_loss (min) now" in caplog.text
    losses = {
        name: run.data.metrics["trial/val_loss"] for name, run in found.items() if "trial" in name
    }
    best = min(losses, key=losses.__getitem__)
    search = found["by loss"]
    assert search.data.tags["winner"] == best
    assert search.data.metrics["trial/score"] == losses[best]
    table = json.loads(artifact(search, "trials.json"))
    scores = [row[table["columns"].index("score")] for row in table["data"]]
    assert scores == [losses[f"trial-00{n}"] for n in range(4)]
    accuracies = found["RandomSearch"].data.metrics
    assert accuracies["search/best_score"] <= 1
    again = network_search(tmp_path, objective="val_loss", max_trials=5)
    mka.track_search(again, name="by loss").search(**DATA)
    assert mka.search_run_id(again) == search.info.run_id


def test_a_search_that_was_killed_continues_its_runs(
    runs: Callable[[], dict[str, Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Breaks, "log", ["1", "2"])
    with pytest.raises(KeyboardInterrupt):
        mka.track_search(formula_search(tmp_path, Breaks)).search(verbose=0)
    killed = runs()
    assert mlflow.active_run() is None
    assert len(killed) == 5
    assert killed["Breaks"].info.status == killed["trial-003"].info.status == "KILLED"
    mka.track_search(formula_search(tmp_path, Breaks)).search(verbose=0)
    found = runs()
    assert len(found) == 6
    assert {name: found[name].info.run_id for name in killed} == {
        name: run.info.run_id for name, run in killed.items()
    }
    assert set(statuses(found).values()) == {"FINISHED"}
    assert "after 5 of 5 trials." in found["Breaks"].data.tags["mlflow.note.content"]
    anew = formula_search(tmp_path, Breaks, max_trials=1, overwrite=True)
    mka.track_search(anew, name="anew").search(verbose=0)
    assert mlflow.MlflowClient().search_runs(
        [killed["Breaks"].info.experiment_id], "attributes.run_name = 'anew'"
    )


@pytest.mark.parametrize("fault", ["track", "read_run_ids", "active_values", "_results"])
def test_a_fault_of_the_record_leaves_the_search_alone(
    fault: str,
    experiment: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bare = formula_search(tmp_path / "bare")
    bare.search(verbose=0)

    def broken(*args: Any, **kwargs: Any) -> Any:
        random.random()
        raise RuntimeError("the record is broken")

    monkeypatch.setattr(trials_module, fault, broken)
    tuner = formula_search(tmp_path / "tracked")
    mka.track_search(tuner).search(verbose=0)
    assert {k: t.score for k, t in tuner.oracle.trials.items()} == {
        k: t.score for k, t in bare.oracle.trials.items()
    }
    assert mlflow.active_run() is None
    if fault != "read_run_ids":  # which only Hyperband asks for
        assert "the record is broken" in caplog.text


def test_no_trial_waits_for_the_delivery_of_the_one_before(
    runs: Callable[[], dict[str, Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_answers, in_vain = threading.Event(), []
    log_batch = mlflow.MlflowClient.log_batch

    def held_back(*args: Any, **kwargs: Any) -> Any:
        if not store_answers.wait(5):
            in_vain.append(args)
        return log_batch(*args, **kwargs)

    class Answers(Formula):
        def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> float:
            if trial.trial_id == "3":
                store_answers.set()
            return super().run_trial(trial)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", held_back)
    mka.track_search(formula_search(tmp_path, Answers)).search(verbose=0)
    assert not in_vain
    found = runs()
    assert set(statuses(found).values()) == {"FINISHED"}
    begin, end = (found[name].info for name in ("trial-003", "trial-000"))
    assert end.end_time <= begin.start_time
    assert all("trial/score" in found[f"trial-00{n}"].data.metrics for n in range(5))


def test_a_store_out_of_reach_is_said_before_the_first_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'text.db'}")
    (tmp_path / "text.db").write_text("not a database")
    tuner = formula_search(tmp_path)
    with pytest.raises(mka.UserError, match="not an SQLite database"):
        mka.track_search(tuner).search(verbose=0)
    assert not tuner.oracle.trials
    assert set(vars(tuner)) == set(vars(formula_search(tmp_path / "other"))) | {"search"}


def test_what_is_no_tuner_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected a tuner"):
        mka.track_search(keras.Model())


def test_autolog_records_a_search_and_puts_it_back(
    experiment: str, client: mlflow.MlflowClient, curves: Curves, tmp_path: Path
) -> None:
    before = keras_tuner.engine.base_tuner.BaseTuner.search, keras.Model.fit
    mka.autolog()
    try:
        tuner = network_search(tmp_path, max_trials=1)
        tuner.search(**DATA, epochs=1)
        mka.track_search(formula_search(tmp_path, max_trials=1), name="once").search(verbose=0)
    finally:
        mka.autolog(disable=True)
    assert (keras_tuner.engine.base_tuner.BaseTuner.search, keras.Model.fit) == before
    found = client.search_runs([experiment])
    assert sorted(run.info.run_name for run in found) == [
        "RandomSearch",
        "once",
        "trial-000",
        "trial-000",
    ]
    trained = [run for run in found if "batch/loss" in run.data.metrics]
    assert [run.info.run_name for run in trained] == ["trial-000"]
    assert list(curves(trained[0].info.run_id)["batch/loss"]) == [1, 2]
    assert "search" not in vars(tuner)
    network_search(tmp_path / "after", max_trials=1).search(**DATA, epochs=1)
    assert len(client.search_runs([experiment])) == 4


# Where it is nested.


def test_in_a_run_of_mlflow_and_in_another_thread(
    runs: Callable[[], dict[str, Run]], tmp_path: Path
) -> None:
    with mlflow.start_run(run_name="outer") as outer:
        mka.track_search(formula_search(tmp_path / "a", max_trials=1), name="a").search(verbose=0)
        assert mlflow.active_run().info.run_id == outer.info.run_id
    other = mka.track_search(formula_search(tmp_path / "b", max_trials=2), name="b")
    thread = threading.Thread(target=other.search, kwargs={"verbose": 0})
    thread.start()
    thread.join()
    found = mlflow.MlflowClient().search_runs([outer.info.experiment_id])
    names = {run.info.run_id: run.info.run_name for run in found}
    nesting = [
        (run.info.run_name, names.get(run.data.tags.get("mlflow.parentRunId"))) for run in found
    ]
    trials = [("trial-000", "a"), ("trial-000", "b"), ("trial-001", "b")]
    assert sorted(nesting, key=str) == [("a", "outer"), ("b", None), ("outer", None), *trials]


def test_under_mlflow_run_the_search_is_a_child(
    runs: Callable[[], dict[str, Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment_id = mlflow.MlflowClient().create_run("0").info.experiment_id
    outer = mlflow.MlflowClient().create_run(experiment_id).info
    monkeypatch.setenv("MLFLOW_RUN_ID", outer.run_id)
    mka.track_search(formula_search(tmp_path, max_trials=1), name="under").search(verbose=0)
    (run,) = mlflow.MlflowClient().search_runs(
        [experiment_id], f"tags.mlflow.parentRunId = '{outer.run_id}'"
    )
    assert run.info.run_name == "under"
    assert mlflow.get_run(outer.run_id).info.status == "RUNNING"


def test_callbacks_that_refer_to_the_tuner_are_copied_as_before(
    runs: Callable[[], dict[str, Run]], tmp_path: Path
) -> None:
    tuner = network_search(tmp_path, max_trials=1)

    class Refers(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.tuner = tuner

    mka.track_search(tuner).search(**DATA, epochs=1, callbacks=[Refers()])
    assert statuses(runs()) == {"RandomSearch": "FINISHED", "trial-000": "FINISHED"}
    twin = copy.deepcopy(tuner)
    assert twin.search.__self__ is twin


def test_a_logger_of_the_users_own_is_enough(
    runs: Callable[[], dict[str, Run]], curves: Curves, tmp_path: Path
) -> None:
    tuner = network_search(tmp_path, max_trials=1)
    mka.track_search(tuner).search(**DATA, epochs=1, callbacks=[mka.MlflowLogger()])
    run = runs()["trial-000"]
    assert list(curves(run.info.run_id)["batch/loss"]) == [1, 2]

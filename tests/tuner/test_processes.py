"""Keras Tuner's chief and workers, as processes of their own, on one tracking server."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest

import mlflow_keras_adv as mka
from mlflow_keras_adv.tuner.processes import search_in_processes
from tests.tuner.searches import formula_search

ROOT = Path(__file__).parent.parent.parent
# Both workers begin before either goes on. A file `fatal-4` is a trial that kills its worker: once
# if it says so. Trial 4 begins after trial 1 has ended.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import keras_tuner
import mlflow_keras_adv as mka
from tests.tuner.searches import Formula, formula, formula_search

FOLDER = Path(sys.argv[1])
NEEDS = {"0": "begun-1", "1": "begun-0", "4": "ended-1"}

class Fatal(Formula):
    def run_trial(self, trial, *args, **kwargs):
        number = trial.trial_id
        (FOLDER / f"begun-{number}").touch()
        for _ in range(2000):
            if number not in NEEDS or (FOLDER / NEEDS[number]).exists():
                break
            time.sleep(0.05)
        score = super().run_trial(trial)
        fatal = FOLDER / f"fatal-{number}"
        if fatal.exists():
            if fatal.read_text() == "once":
                fatal.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        (FOLDER / f"ended-{number}").touch()
        return score

space = keras_tuner.HyperParameters()  # without it, a worker that comes during trial 0 leaves
formula(space)
tuner = formula_search(FOLDER, Fatal, max_trials=6, hyperparameters=space)
mka.track_search(tuner, name="parallel").search()
"""


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:currentThread:DeprecationWarning", "ignore:getName:DeprecationWarning"
)
def test_all_trials_of_all_workers_under_one_run_also_when_workers_die(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    experiment = mlflow.MlflowClient().create_experiment("chief and workers")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    (tmp_path / "fatal-1").write_text("once")
    (tmp_path / "fatal-4").write_text("each time")
    (tmp_path / "search.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "search.py"), str(tmp_path)]

    def runs() -> dict[str, mlflow.entities.Run]:
        found = mlflow.MlflowClient().search_runs([experiment])
        named = {run.info.run_name: run for run in found}
        assert len(named) == len(found)
        return named

    # The worker of trial 1 is started again and does it once more; that of trial 4 then dies more
    # often than it may.
    with pytest.raises(mka.UserError, match="can be continued"):
        search_in_processes(command, workers=2, restarts=1, environment={"PYTHONPATH": str(ROOT)})
    killed = runs()
    assert killed["parallel"].info.status == killed["trial-004"].info.status == "KILLED"
    done = [killed[f"trial-00{number}"] for number in range(4)]
    assert {run.info.status for run in done} == {"FINISHED"}
    assert killed["trial-001"].data.tags["tuner.attempt"] == "2"
    assert {run.data.tags["tuner.worker"] for run in done} == {"worker-0", "worker-1"}

    # The search goes on, here in this process.
    mka.track_search(formula_search(tmp_path, max_trials=6), name="another").search(verbose=0)
    found = runs()
    assert found.keys() == {"parallel", *(f"trial-00{number}" for number in range(6))}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    for name, run in killed.items():
        assert found[name].info.run_id == run.info.run_id
    parent = found.pop("parallel")
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}
    assert int(found["trial-004"].data.tags["tuner.attempt"]) > 2
    assert "after 6 of 6 trials" in parent.data.tags["mlflow.note.content"]


def test_a_chief_that_fails_is_said() -> None:
    with pytest.raises(mka.UserError, match="chief ended with 3"):
        search_in_processes([sys.executable, "-c", "raise SystemExit(3)"], workers=1)


def test_processes_are_stopped_with_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Counted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if len(started) == 2:
                raise KeyboardInterrupt
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Counted)
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(KeyboardInterrupt):
        search_in_processes(sleeping, workers=2)
    assert len(started) == 2
    assert all(process.returncode is not None for process in started)


def test_no_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="workers=0"):
        search_in_processes(["true"], workers=0)

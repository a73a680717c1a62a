"""Keras Tuner's chief and workers, as processes of their own, on one tracking server."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest

import mlflow_keras_adv as mka
from mlflow_keras_adv.tuner.processes import search_in_processes

ROOT = Path(__file__).parent.parent.parent
# In the folder `fatal` each file names a trial that kills its worker, once.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import mlflow_keras_adv as mka
from tests.tuner.searches import Formula, formula_search

class Fatal(Formula):
    def run_trial(self, trial, *args, **kwargs):
        score = super().run_trial(trial)
        time.sleep(0.5)  # or one worker does it all before the other has begun
        mark = Path(sys.argv[1]) / "fatal" / trial.trial_id
        if mark.exists():
            mark.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return score

mka.track_search(formula_search(Path(sys.argv[1]), Fatal, max_trials=6), name="parallel").search()
"""


@pytest.mark.slow
def test_all_trials_of_all_workers_under_one_run_also_when_workers_die(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    experiment = mlflow.MlflowClient().create_experiment("chief and workers")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    (tmp_path / "fatal").mkdir()
    (tmp_path / "search.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "search.py"), str(tmp_path)]
    path = {"PYTHONPATH": str(ROOT)}

    def runs() -> dict[str, mlflow.entities.Run]:
        found = mlflow.MlflowClient().search_runs([experiment])
        named = {run.info.run_name: run for run in found}
        assert len(named) == len(found)
        return named

    (tmp_path / "fatal" / "1").touch()
    with pytest.raises(mka.UserError, match="can be continued"):
        search_in_processes(command, workers=1, restarts=0, environment=path)
    killed = runs()
    assert killed["parallel"].info.status == killed["trial-001"].info.status == "KILLED"

    (tmp_path / "fatal" / "4").touch()
    search_in_processes(command, workers=2, restarts=1, environment=path)
    found = runs()
    assert found.keys() == {"parallel", *(f"trial-00{number}" for number in range(6))}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    for name, run in killed.items():
        assert found[name].info.run_id == run.info.run_id
    parent = found.pop("parallel")
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}
    assert {run.data.tags["tuner.worker"] for run in found.values()} == {"worker-0", "worker-1"}
    assert found["trial-001"].data.tags["tuner.attempt"] == "2"
    assert found["trial-004"].data.tags["tuner.attempt"] == "2"
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

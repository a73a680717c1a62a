"""Several processes that write to one run: whoever opened it ends it."""

import subprocess
import time

import mlflow
import pytest

import mlflow_keras_adv as mka
from mlflow_keras_adv.tracking.sync import sync
from tests.warm import PYTHON

JOINS = """
import os, signal, sys
import mlflow_keras_adv as mka

with mka.track(run_id=sys.argv[1], log_system_metrics=False) as run:
    run.log_metrics({sys.argv[2]: 1.0})
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[2] == "broken":
        raise ValueError("of another process")
"""


@pytest.mark.parametrize("end", ["done", "broken", "killed"])
def test_who_joins_a_run_that_is_open_does_not_end_it(
    end: str, experiment: str, client: mlflow.MlflowClient
) -> None:
    with mka.track("opened", log_system_metrics=False) as run:
        run.log_metrics({"own": 1.0}, step=1)
        command = [PYTHON, "-c", JOINS, run.run_id, end]
        code = subprocess.run(command, timeout=120, check=False).returncode
        assert code == {"done": 0, "broken": 1, "killed": -9}[end]
        sync()
        joined = client.get_run(run.run_id)
        assert joined.info.status == "RUNNING"
        assert joined.info.end_time is None
        assert joined.data.metrics[end] == 1.0
        assert "error" not in joined.data.tags
        run.log_metrics({"own": 2.0}, step=2)
    ended = client.get_run(run.run_id)
    assert ended.info.status == "FINISHED"
    assert ended.data.metrics["own"] == 2.0
    assert ended.data.tags["points.produced"] == "3"


def test_an_experiment_that_another_process_makes_at_the_same_time_is_taken(
    client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow asks whether there is one, and makes it: between the two another may have."""
    name = f"made by two {time.monotonic_ns()}"
    made = client.create_experiment(name)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    find, answers = mlflow.MlflowClient.get_experiment_by_name, [None]

    def too_early(client: mlflow.MlflowClient, name: str) -> object:
        return answers.pop() if answers else find(client, name)

    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", too_early)
    with mka.track(log_system_metrics=False) as run:
        assert run.experiment_id == made
    assert not answers

"""The store of the artifacts is away, that of the runs is not: each waits for its own."""

import logging
import subprocess
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

import mlflow_keras_adv as mka
from mlflow_keras_adv.tracking import journal_delivery, retry
from mlflow_keras_adv.tracking import run as run_module
from mlflow_keras_adv.tracking.paths import journals_folder
from mlflow_keras_adv.tracking.run import Run
from mlflow_keras_adv.tracking.sync import sync
from tests.faults.proxy import Rule
from tests.servers.conftest import BUCKET, Team
from tests.warm import PYTHON

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.parametrize("team", ["postgresql"], indirect=True)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(journal_delivery, "ASIDE_SECONDS", 0.5)
    monkeypatch.setattr(run_module, "GRACE_SECONDS", 8.0)
    monkeypatch.setattr("mlflow_keras_adv.tracking.sync.GRACE_SECONDS", 8.0)


@pytest.fixture
def model() -> keras.Model:
    made = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    made.compile("sgd", "mse")
    return made


def train(run: Run, model: keras.Model) -> str:
    """Files and a model between values; returns the id of the model."""
    run.log_metrics({"before": 1.0}, step=1)
    run.log_text("first", "notes.txt")
    run.log_text("gone", "gone.txt")
    run.delete_artifact("gone.txt")
    run.log_text("last", "notes.txt")
    run.log_params({"long": "x" * 7000})
    info = mka.log_model(model, name="net", input_example=np.zeros((1, 8), "float32"))
    model_id = str(info.model_id)
    run.internals.writer.log_metrics({"of_model": 0.5}, step=3, model_id=model_id)
    for step in range(20):
        run.log_metrics({"after": step}, step=step)
    run.set_tags({"later": "x"})
    return model_id


def assert_values_are_there(run_id: str, status: str = "FINISHED") -> None:
    there = MlflowClient().get_run(run_id)
    assert there.info.status == status
    assert there.data.metrics == {"before": 1.0, "of_model": 0.5, "after": 19.0}
    assert there.data.tags["later"] == "x"
    assert there.data.params["long"] == "x" * 6000
    assert there.data.tags["points.delivered"] == "22"
    assert there.data.tags["points.pending"] == "0"


def assert_files_are_there(run_id: str, folder: Path) -> None:
    client = MlflowClient()
    run = client.get_run(run_id)
    files = sorted(file.path for file in client.list_artifacts(run_id))
    assert files == ["notes.txt", "params"]
    place = client.download_artifacts(run_id, "notes.txt", str(folder))
    assert Path(place).read_text() == "last"
    place = client.download_artifacts(run_id, "params/long.txt", str(folder))
    assert Path(place).read_text() == "x" * 7000
    (output,) = run.outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    assert logged.status == "READY"
    assert {metric.key for metric in logged.metrics} >= {"of_model"}
    found = client.search_logged_models([run.info.experiment_id])
    assert [each.model_id for each in found if each.source_run_id == run_id] == [output.model_id]
    loaded = mlflow.keras.load_model(f"models:/{output.model_id}")
    assert loaded(np.zeros((1, 8), "float32")).shape == (1, 2)


def test_values_and_the_status_do_not_wait_for_files(
    project: Team, model: keras.Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    project.s3.close()
    with mka.track("away", log_system_metrics=False) as run:
        train(run, model)
    assert_values_are_there(run.run_id)
    assert run.receipt.refused_names == {}
    assert run.receipt.artifacts == 5
    assert MlflowClient().get_run(run.run_id).data.tags["artifacts.pending"] == "5"
    assert f"The artifact store does not answer. Run {run.run_id}: " in caplog.text
    assert "5 files or models pending" in caplog.text
    assert "tracking store" not in caplog.text
    project.s3.open()
    outcome = sync()
    assert (len(outcome.delivered), outcome.pending) == (1, [])
    assert_values_are_there(run.run_id)
    assert_files_are_there(run.run_id, tmp_path)
    assert MlflowClient().get_run(run.run_id).data.tags["artifacts.pending"] == "0"
    assert list(journals_folder().iterdir()) == []


def test_they_follow_as_soon_as_their_store_is_back(
    project: Team, model: keras.Model, tmp_path: Path
) -> None:
    with mka.track("back", log_system_metrics=False) as run:
        project.s3.inject(Rule("503"))
        train(run, model)
        run.internals.writer.settle(30)
        assert run.receipt.pending == 0
        assert run.receipt.artifacts > 0
        project.s3.inject()
        assert run.flush(30)
    assert run.receipt.artifacts == 0
    assert_values_are_there(run.run_id)
    assert_files_are_there(run.run_id, tmp_path)
    assert list(journals_folder().iterdir()) == []


KILLED = """
import os, sys
import mlflow_keras_adv as mka
with mka.track("killed", log_system_metrics=False) as run:
    run.log_text("hello", "notes.txt")
    run.log_metrics({"after": 1.0}, step=1)
    while run.receipt.delivered < 1:
        pass
    print(run.run_id, flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
@pytest.mark.parametrize("artifacts", ["direct"], indirect=True)
def test_sync_ends_the_run_of_a_killed_trainer_and_keeps_its_files(
    project: Team, tmp_path: Path
) -> None:
    project.s3.close()
    done = subprocess.run([PYTHON, "-c", KILLED], cwd=ROOT, capture_output=True, text=True)
    run_id = done.stdout.split()[-1]
    client = MlflowClient()
    for _ in range(2):
        outcome = sync()
        assert client.get_run(run_id).info.status == "KILLED"
        assert any("1 files or models pending" in line for line in outcome.pending)
        assert client.get_run(run_id).data.tags["artifacts.pending"] == "1"
    project.s3.open()
    assert sync().pending == []
    assert [file.path for file in client.list_artifacts(run_id)] == ["notes.txt"]
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["artifacts.pending"]) == ("KILLED", "0")
    assert list(journals_folder().iterdir()) == []


@pytest.mark.parametrize("artifacts", ["direct"], indirect=True)
@pytest.mark.parametrize("missing", ["bucket", "right"])
def test_what_somebody_can_put_right_later_is_kept(
    project: Team, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient()
    bucket = "later" if missing == "bucket" else BUCKET
    experiment = client.create_experiment(f"without {missing}", f"s3://{bucket}/x")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    if missing == "right":
        project.s3.inject(Rule("403"))
    with mka.track("misses", log_system_metrics=False) as run:
        run.log_text("hello", "notes.txt")
        run.log_metrics({"after": 1.0}, step=1)
    assert client.get_run(run.run_id).info.status == "FINISHED"
    assert (run.receipt.artifacts, run.receipt.refused_names) == (1, {})
    if missing == "bucket":
        import boto3

        boto3.client("s3", endpoint_url=project.s3.address).create_bucket(Bucket=bucket)
    project.s3.inject()
    assert sync().pending == []
    assert [file.path for file in client.list_artifacts(run.run_id)] == ["notes.txt"]

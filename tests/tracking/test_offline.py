"""Runs without their server, and what `sync` makes of them and of what is left in journals."""

import logging
import os
import signal
import socket
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from mlflow_keras_adv.tracking import outbox, run
from mlflow_keras_adv.tracking.paths import journals_folder, offline_uri
from mlflow_keras_adv.tracking.run import current_run, track
from mlflow_keras_adv.tracking.sync import sync
from tests.warm import PYTHON


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home_template: Path) -> Path:
    """A state folder of the test's own."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "offline.db").write_bytes(home_template.read_bytes())
    monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(folder))
    return folder


@pytest.fixture(scope="module")
def home_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store, which takes MLflow seconds to make."""
    path = tmp_path_factory.mktemp("template") / "offline.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def dead_uri() -> Iterator[str]:
    """The address of a server that is not there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{probe.getsockname()[1]}"


def runs_of(client: MlflowClient, experiment_id: str) -> dict[str, MlflowRun]:
    return {run.info.run_name: run for run in client.search_runs([experiment_id])}


def record() -> None:
    with track("parent", params={"a": 1}, log_system_metrics=False) as parent:
        parent.log_series(
            {"s": np.arange(1500.0)}, steps=np.arange(1500), timestamps_ms=np.arange(1500)
        )
        with parent.child("child", tags={"t": "v"}) as child:
            child.log_metrics({"m": 2.0, "inf": float("inf")}, step=3)
            child.log_text("hello", "a.txt")
        mlflow.log_metric("theirs", 5.0)


def check(client: MlflowClient, experiment: str) -> None:
    found = runs_of(client, experiment)
    assert set(found) == {"parent", "child"}
    parent, child = found["parent"], found["child"]
    assert parent.data.params == {"a": "1"}
    assert parent.data.metrics["theirs"] == 5.0
    assert len(client.get_metric_history(parent.info.run_id, "s")) == 1500
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["t"] == "v"
    assert child.data.tags["points.refused"] == "1"
    assert child.data.metrics == {"m": 2.0}
    assert [file.path for file in client.list_artifacts(child.info.run_id)] == ["a.txt"]
    assert {parent.info.status, child.info.status} == {"FINISHED"}


def test_offline_runs_are_seen_here_and_carried_over_once(
    home: Path, client: MlflowClient, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_KERAS_ADV_OFFLINE", "1")
    record()
    assert mlflow.get_tracking_uri() == uri
    assert os.environ["MLFLOW_TRACKING_URI"] == uri
    assert runs_of(client, experiment) == {}
    here = MlflowClient(offline_uri())
    (local,) = {run.info.experiment_id for run in here.search_runs(["1"])}
    assert set(runs_of(here, local)) == {"parent", "child"}

    outcome = sync()
    assert len(outcome.delivered) == 2
    assert outcome.pending == []
    check(client, experiment)
    assert sync().delivered == []
    check(client, experiment)


def test_with_a_dead_server_a_run_is_recorded_here_with_one_warning(
    home: Path,
    dead_uri: str,
    client: MlflowClient,
    experiment: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead_uri)
    record()
    said = [each.getMessage() for each in caplog.records if "cannot be used" in each.getMessage()]
    assert len(said) == 1
    assert "mlflow-keras-adv sync" in said[0]
    assert current_run() is None
    outcome = sync()
    assert outcome.delivered == []
    assert len(outcome.pending) == 2
    assert len(sync(store).delivered) == 2
    check(client, experiment)


def test_the_receipt_of_a_run_that_was_recorded_here_says_where(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_KERAS_ADV_OFFLINE", "1")
    with caplog.at_level(logging.INFO), track("here", log_system_metrics=False) as run:
        run.log_metrics({"m": 1.0}, step=1)
    said = f"Run {run.run_id} in the store on this machine, for `mlflow-keras-adv sync`: 1 points"
    assert said in caplog.text


def test_a_run_of_mlflow_run_whose_server_is_gone_is_continued(
    home: Path,
    dead_uri: str,
    client: MlflowClient,
    experiment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = mlflow.get_tracking_uri()
    theirs = client.create_run(experiment, run_name="of mlflow run").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead_uri)
    with track(log_system_metrics=False) as r:
        r.log_metrics({"m": 1.0})
    assert "MLFLOW_RUN_ID" not in os.environ
    sync(store)
    assert client.get_run(theirs).data.metrics == {"m": 1.0}
    assert client.get_run(theirs).info.status == "FINISHED"
    assert len(client.search_runs([experiment])) == 1


def test_a_server_that_comes_back_gets_the_run_at_its_end(
    home: Path, server: str, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow_keras_adv.tracking import offline

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    name = f"offline {os.getpid()} {experiment}"
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    probe, failures = offline.probe, [1]

    def away_once(uri: str) -> None:
        if failures:
            failures.pop()
            raise mlflow.MlflowException("away")
        probe(uri)

    monkeypatch.setattr(offline, "probe", away_once)
    with track("late", log_system_metrics=False) as r:
        r.log_metrics({"m": 1.0})
    there = MlflowClient(server)
    found = there.get_experiment_by_name(name)
    assert found is not None
    assert runs_of(there, found.experiment_id)["late"].data.metrics == {"m": 1.0}


def left_by(program: str, *, expected: int) -> None:
    head = "import os, signal, numpy as np\nfrom mlflow_keras_adv.tracking.run import track\n"
    source = head + textwrap.dedent(program)
    process = subprocess.run([PYTHON, "-c", source], check=False)
    assert process.returncode == expected


def test_what_a_killed_process_has_left_is_delivered_and_the_run_is_killed(
    home: Path, client: MlflowClient, experiment: str
) -> None:
    left_by(
        """
        from mlflow import MlflowClient
        with track("killed", log_system_metrics=False) as run:
            run.log_metrics({"before": 1.0})
            run.flush()
            log_batch = MlflowClient.log_batch
            def hang(self, *args, **kwargs):
                import time
                time.sleep(600)
            MlflowClient.log_batch = hang
            rows = np.arange(3000)
            run.log_series({"s": rows}, steps=rows, timestamps_ms=rows)
            run.log_params({"p": 1})
            run.log_text("kept", "kept.txt")
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        expected=-signal.SIGKILL,
    )
    assert runs_of(client, experiment)["killed"].info.status == "RUNNING"
    (line,) = sync().delivered
    assert "3001 points produced, 3001 delivered, 0 pending, 0 refused" in line

    killed = runs_of(client, experiment)["killed"]
    assert killed.info.status == "KILLED"
    assert killed.info.end_time is not None
    assert killed.data.params == {"p": "1"}
    steps = [point.step for point in client.get_metric_history(killed.info.run_id, "s")]
    assert sorted(steps) == list(range(3000))
    assert client.list_artifacts(killed.info.run_id)[0].path == "kept.txt"
    assert killed.data.tags["points.delivered"] == "3001"
    assert list(journals_folder().iterdir()) == []


def test_sync_leaves_alone_what_is_alive(home: Path, client: MlflowClient, experiment: str) -> None:
    with track("alive", log_system_metrics=False) as r:
        r.log_metrics({"m": 1.0})
        program = "from mlflow_keras_adv.cli import main; main()"
        command = [PYTHON, "-c", program, "sync"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "Nothing is pending" in shown.stdout
        assert sync().delivered == []
        assert client.get_run(r.run_id).info.status == "RUNNING"
    assert client.get_run(r.run_id).info.status == "FINISHED"


def test_a_run_that_is_taken_up_again_first_gets_what_was_left(
    home: Path, client: MlflowClient, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(outbox, "SHORT_GRACE_SECONDS", 0.2)
    monkeypatch.setattr(outbox, "DISK_GRACE_SECONDS", 0.2)
    with monkeypatch.context() as away, track("again", log_system_metrics=False) as r:
        assert r.flush(30)

        def fail(*_: object, **__: object) -> None:
            raise ConnectionError("away")

        away.setattr(MlflowClient, "log_batch", fail)
        away.setattr(MlflowClient, "set_terminated", fail)
        r.log_metrics({"batch/loss": 1.0}, step=7)
    assert r.receipt.pending == 1
    with track(run_id=r.run_id, log_system_metrics=False) as again:
        assert again.axis.batches == 7
    assert client.get_run(r.run_id).data.metrics == {"batch/loss": 1.0}
    assert client.get_run(r.run_id).info.status == "FINISHED"
    assert list(journals_folder().iterdir()) == []


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[[], Path]:
    """Makes a folder in MLflow's model format."""

    def make() -> Path:
        class Echo(mlflow.pyfunc.PythonModel):
            def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
                return model_input

        folder = tmp_path / "model"
        mlflow.pyfunc.save_model(str(folder), python_model=Echo(), pip_requirements=["mlflow"])
        return folder

    return make


@pytest.mark.filterwarnings("ignore:.*type hints:UserWarning")  # MLflow's advice
def test_a_model_that_was_logged_in_an_outage_gets_its_true_id(
    home: Path, client: MlflowClient, experiment: str, model_folder: Callable[[], Path]
) -> None:
    with track("with a model", log_system_metrics=False) as r:
        model_id = r.internals.writer.log_model_folder(model_folder(), name="echo", tags={"a": "b"})
        r.log_metrics({"final/accuracy": 0.5}, model_id=model_id)
        r.set_tags({"parent_model_id": model_id})

    (model,) = client.search_logged_models([experiment])
    assert (model.name, model.status, model.source_run_id) == ("echo", "READY", r.run_id)
    assert [(metric.key, metric.value) for metric in model.metrics] == [("final/accuracy", 0.5)]
    stored = client.get_run(r.run_id)
    assert stored.data.tags["parent_model_id"] == model.model_id
    assert [output.model_id for output in stored.outputs.model_outputs] == [model.model_id]
    loaded = mlflow.pyfunc.load_model(f"models:/{model.model_id}")
    assert loaded.predict([1, 2]) == [1, 2]
    assert loaded.metadata.run_id == r.run_id

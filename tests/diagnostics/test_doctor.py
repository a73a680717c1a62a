import os
import signal
import threading
import time
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from mlflow_keras_adv.diagnostics import doctor
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.tracking.sigterm import Terminated
from tests.conftest import Guarded
from tests.mlflow_server import free_port


def examined(uri: str | None = None, **arguments: Any) -> tuple[bool, list[str]]:
    lines: list[str] = []
    healthy = doctor.examine(uri, say=lambda text: lines.extend(text.splitlines()), **arguments)
    return healthy, lines


def results(lines: list[str]) -> dict[str, str]:
    """Result by step."""
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("step")) + 1 :]
    return {line[:26].strip(): line[26:37].strip() for line in table}


def left_behind(uri: str) -> list[str]:
    """All runs, models and registered models that can be seen, of every experiment."""
    client = MlflowClient(uri, uri)
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(everywhere, "run_name LIKE 'mlflow-keras-adv-doctor%'")
    models = client.search_logged_models(everywhere, "name LIKE 'mlflow-keras-adv-doctor%'")
    versions = client.search_model_versions("name LIKE 'mlflow-keras-adv-doctor%'")
    return [
        *(run.info.run_id for run in runs),
        *(model.model_id for model in models),
        *(version.name for version in versions),
    ]


@pytest.mark.quick
def test_a_store_that_works_is_healthy_and_left_as_it_was(store: str, experiment: str) -> None:
    before = dict(os.environ)
    healthy, lines = examined()

    assert healthy
    assert set(results(lines).values()) == {"ok"}
    assert {"create a run", "log a model", "set an alias", "end the run"} <= set(results(lines))
    assert lines[0] == f"store     {store}"
    assert "mlflow 3." in lines[1]
    assert "tensorflow 2." in lines[1]
    assert left_behind(store) == []
    assert os.environ == before
    (run,) = MlflowClient().search_runs([experiment], run_view_type=ViewType.DELETED_ONLY)
    assert run.info.run_name.startswith("mlflow-keras-adv-doctor")


def test_a_server_is_tried_and_asked_for_its_version(server: str) -> None:
    healthy, lines = examined(server)
    assert healthy, lines
    assert lines[0] == f"store     {server}"
    assert "server mlflow 3." in lines[1]
    assert left_behind(server) == []


@pytest.mark.parametrize("variable", ["MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"])
def test_an_experiment_that_is_not_there(
    store: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "987654")
    healthy, lines = examined()
    if variable == "MLFLOW_EXPERIMENT_NAME":  # which a first run would make
        assert healthy
        assert MlflowClient().get_experiment_by_name("987654") is None
    else:
        assert not healthy
        assert results(lines)["find the experiment"] == "failed"
        assert results(lines)["create a run"] == "not tried"


def test_a_server_that_is_down_is_said_once_and_nothing_more_tried() -> None:
    healthy, lines = examined(f"http://ann:secret@127.0.0.1:{free_port()}")
    assert not healthy
    assert results(lines)["reach the store"] == "failed"
    assert "The server does not answer. Start it" in lines[-2]
    assert lines[-1] == "The store does not answer: nothing more is tried."
    assert "secret" not in "".join(lines)


def test_a_server_that_goes_in_the_middle_ends_the_examination(
    store: str, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = False

    def require_store(uri: str) -> None:
        if gone:
            raise UserError("gone")

    def away(*_: Any, **__: Any) -> None:
        nonlocal gone
        gone = True
        raise MlflowException("connection refused")

    monkeypatch.setattr(doctor, "require_store", require_store)
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_batch", away)
        healthy, lines = examined()
    assert not healthy
    assert list(results(lines))[-2:] == [
        "log metric, param, tag",
        "The store does not answer:",
    ]


def test_a_step_that_hangs_is_given_up(
    store: str, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(doctor, "STEP_SECONDS", 0.3)
    monkeypatch.setattr(MlflowClient, "log_text", lambda *_: released.wait(60))
    try:
        healthy, lines = examined()
    finally:
        released.set()
    assert not healthy
    assert results(lines)["upload an artifact"] == "failed"
    assert results(lines)["download it"] == "not tried"
    assert any("no answer within" in line for line in lines)


def test_what_cannot_be_deleted_is_a_warning(
    store: str, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(*_: Any) -> None:
        raise MlflowException("no", PERMISSION_DENIED)

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "delete_run", forbid)
        healthy, lines = examined()
    assert healthy
    assert results(lines)["delete the run"] == "warning"
    assert lines[-1].endswith("403, this login lacks the right to delete (MANAGE)")


def test_a_value_that_comes_back_changed_is_a_failure(
    store: str, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_text = MlflowClient.log_text
    monkeypatch.setattr(
        MlflowClient, "log_text", lambda self, run, text, file: log_text(self, run, text[:-1], file)
    )
    healthy, lines = examined()
    assert not healthy
    assert results(lines)["download it"] == "failed"
    assert any("the store gave back" in line for line in lines)


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_ctrl_c_and_sigterm_leave_nothing_behind(
    store: str,
    experiment: str,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    raised: type[BaseException],
) -> None:
    create_run = MlflowClient.create_run

    def interrupted(*arguments: Any, **named: Any) -> Any:
        os.kill(os.getpid(), number)
        time.sleep(0.3)  # the signal arrives before the run exists
        return create_run(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "create_run", interrupted)
        with pytest.raises(raised):
            examined()
    assert MlflowClient().search_runs([experiment]) == []
    deleted = MlflowClient().search_runs([experiment], run_view_type=ViewType.DELETED_ONLY)
    assert len(deleted) == 1


def login(monkeypatch: pytest.MonkeyPatch, name: str, password: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)


def test_the_rights_that_are_missing_are_named(
    guarded_server: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    login(monkeypatch, *guarded_server.reader)
    healthy, lines = examined(guarded_server.address)
    assert not healthy
    assert results(lines)["find the experiment"] == "ok"
    assert results(lines)["create a run"] == "failed"
    assert any(line.endswith("403, this login lacks EDIT on the experiment") for line in lines)
    assert results(lines)["log a model"] == "not tried"


def test_a_login_that_is_wrong_is_named(
    guarded_server: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    login(monkeypatch, "nobody", "of this name")
    healthy, lines = examined(guarded_server.address)
    assert not healthy
    assert any("401, the login is missing or wrong" in line for line in lines)

"""Faults are injected in the client; all else is a real store."""

from collections.abc import Callable
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    BAD_REQUEST,
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    REQUEST_LIMIT_EXCEEDED,
    TEMPORARILY_UNAVAILABLE,
)

from mlflow_keras_adv.tracking import retry
from mlflow_keras_adv.tracking.writer import RunWriter


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.001)


@pytest.fixture
def run_id(client: MlflowClient, experiment: str) -> str:
    return client.create_run(experiment).info.run_id


def failing(call: Callable[..., Any], errors: list[Exception]) -> Callable[..., Any]:
    def fail_first(*args: Any, **kwargs: Any) -> Any:
        if errors:
            raise errors.pop(0)
        return call(*args, **kwargs)

    return fail_first


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    names = ("mlflow_keras_adv",)
    return [r.getMessage() for r in caplog.records if r.name.startswith(names)]


@pytest.mark.parametrize(
    "error",
    [
        MlflowException("refused connection", INTERNAL_ERROR),
        MlflowException("database is locked", TEMPORARILY_UNAVAILABLE),
        MlflowException("slow down", REQUEST_LIMIT_EXCEEDED),
        MlflowException("the login has expired", PERMISSION_DENIED),
        MlflowException("QueuePool limit of size 5 overflow 10 reached", BAD_REQUEST),
        ConnectionResetError("reset"),
        TimeoutError("timed out"),
    ],
)
def test_what_may_pass_is_retried_until_it_has_with_one_warning(
    client: MlflowClient,
    run_id: str,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(client, "log_batch", failing(client.log_batch, [error] * 5))
    writer = RunWriter(run_id, client)
    writer.log_metrics({"m": 1.0}, step=1)
    writer.log_params({"p": 2})
    writer.log_metrics({"m": 3.0}, step=2)
    assert writer.flush(30)

    data = client.get_run(run_id).data
    assert [m.value for m in client.get_metric_history(run_id, "m")] == [1.0, 3.0]
    assert data.params == {"p": "2"}
    assert not writer.refused
    (warning,) = warnings_of(caplog)
    assert run_id in warning
    assert str(error) in warning


def test_artifacts_tables_and_the_status_are_retried_as_well(
    client: MlflowClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = [MlflowException("away", INTERNAL_ERROR)]
    for name in ("log_artifact", "log_batch", "set_terminated"):
        monkeypatch.setattr(client, name, failing(getattr(client, name), away * 3))
    writer = RunWriter(run_id, client)
    writer.log_text("hello", "a.txt")
    writer.log_params({"p": 1})
    writer.log_status("FAILED")
    assert writer.close(30)

    assert client.get_run(run_id).info.status == "FAILED"
    assert client.get_run(run_id).data.params == {"p": "1"}
    assert [file.path for file in client.list_artifacts(run_id)] == ["a.txt"]


def test_a_rejected_value_is_refused_by_name_and_its_batch_delivered(
    client: MlflowClient,
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    log_batch = client.log_batch

    def reject_bad(run_id: str, metrics: Any = (), params: Any = (), **rest: Any) -> None:
        if any(entity.key.startswith("bad") for entity in (*metrics, *params)):
            raise MlflowException("no bad ones", INVALID_PARAMETER_VALUE)
        log_batch(run_id, metrics=metrics, params=params, **rest)

    monkeypatch.setattr(client, "log_batch", reject_bad)
    writer = RunWriter(run_id, client)
    for step in range(50):
        writer.log_metrics({"good": step, "bad": step, "fine": step}, step=step)
    writer.log_params({"a": 1, "bad_one": 2, "c": 3})
    assert writer.flush(60)

    good = {m.step: m.value for m in client.get_metric_history(run_id, "good")}
    assert good == {step: step for step in range(50)}
    assert len(client.get_metric_history(run_id, "fine")) == 50
    assert client.get_run(run_id).data.params == {"a": "1", "c": "3"}
    assert writer.refused == {"bad": 50, "bad_one": 1}
    assert [warning.split(" of run")[0] for warning in warnings_of(caplog)] == ["bad", "bad_one"]


def test_a_value_that_a_real_store_rejects_does_not_take_its_neighbours_along(
    client: MlflowClient, run_id: str
) -> None:
    writer = RunWriter(run_id, client)
    writer.log_metrics({"m": 1.0}, step=1)
    writer.log_metrics({"lost": 1.0}, model_id="m-unknown")
    writer.log_metrics({"m": 2.0}, step=2)
    assert writer.flush(60)

    assert writer.refused == {"lost": 1}
    assert [m.value for m in client.get_metric_history(run_id, "m")] == [1.0, 2.0]


def test_values_of_a_deleted_run_are_refused_without_a_call_for_each(
    client: MlflowClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    log_batch = client.log_batch
    monkeypatch.setattr(client, "log_batch", lambda *a, **k: (calls.append(1), log_batch(*a, **k)))
    client.delete_run(run_id)
    writer = RunWriter(run_id, client)
    writer.log_metrics({f"m{number}": 1.0 for number in range(1000)})
    assert writer.flush(60)

    assert writer.refused.total() == 1000
    assert len(calls) == 1


def test_an_artifact_that_cannot_be_written_does_not_hold_up_the_metrics(
    client: MlflowClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        client, "log_artifact", failing(client.log_artifact, [PermissionError("read-only")])
    )
    writer = RunWriter(run_id, client)
    writer.log_text("hello", "a.txt")
    writer.log_metrics({"m": 1.0})
    assert writer.flush(30)

    assert client.get_run(run_id).data.metrics == {"m": 1.0}
    assert writer.refused == {"a.txt": 1}

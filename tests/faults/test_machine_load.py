"""The load of the machine while its store is away: it is recorded, counted, and there once."""

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from mlflow_keras_adv.tracking import retry
from mlflow_keras_adv.tracking.run import Run, track
from tests.mlflow_server import MlflowServer

CPU = "system/cpu_utilization_percentage"


@pytest.fixture
def own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    """A server that may be killed; the machine is measured ten times a second."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(retry, "LONGEST_PAUSE_SECONDS", 0.5)
    with MlflowServer(tmp_path) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        yield server


def produced(run: Run, more: int) -> None:
    """Waits until the receipt counts so many more values."""
    wanted, deadline = run.receipt.produced + more, time.monotonic() + 60
    while run.receipt.produced < wanted:
        assert time.monotonic() < deadline, run.receipt
        time.sleep(0.02)


def test_a_server_is_killed_and_comes_back(own_server: MlflowServer) -> None:
    with track("load") as run:
        produced(run, 20)
        own_server.kill()
        produced(run, 40)  # with nobody there
        own_server.start()
        produced(run, 20)
    client = MlflowClient()
    found = client.get_run(run.run_id)
    histories = {key: client.get_metric_history(run.run_id, key) for key in found.data.metrics}
    assert CPU in histories
    assert all(key.startswith("system/") for key in histories)
    steps = [point.step for point in histories[CPU]]
    assert steps == list(range(len(steps)))
    stored = sum(len(history) for history in histories.values())
    assert run.receipt.delivered == run.receipt.produced == stored
    assert found.data.tags["points.delivered"] == str(stored)

    with track(run_id=run.run_id) as again:  # their steps go on
        produced(again, 20)
    points = client.get_metric_history(run.run_id, CPU)
    assert [point.step for point in points] == list(range(len(points)))
    assert len(points) > len(steps)


def test_what_cannot_be_measured_for_a_while_is_said_once(
    experiment: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    measure, failures = SystemMetricsMonitor.collect_metrics, [RuntimeError("no driver")] * 3

    def collect(self: SystemMetricsMonitor) -> object:
        if failures:
            raise failures.pop()
        return measure(self)

    monkeypatch.setattr(SystemMetricsMonitor, "collect_metrics", collect)
    with caplog.at_level(logging.WARNING), track("load") as run:
        produced(run, 5)
    assert [r.getMessage() for r in caplog.records if "no driver" in r.getMessage()] == [
        f"Run {run.run_id}: the load of the machine is not recorded for now: "
        "RuntimeError('no driver')"
    ]


def test_mlflow_ends_it_as_it_ends_its_own(
    experiment: str, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    with track("load") as run:
        produced(run, 5)
        mlflow.end_run()
        before = run.receipt.produced
        assert not [each for each in threading.enumerate() if each.name == "SystemMetricsMonitor"]
        assert run.receipt.produced == before
    assert client.get_run(run.run_id).info.status == "FINISHED"

"""A process of its own that sends values."""

import signal
import subprocess
import sys

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from mlflow_keras_adv.tracking import courier as courier_module
from mlflow_keras_adv.tracking import retry
from mlflow_keras_adv.tracking.courier import Courier, courier_to
from mlflow_keras_adv.tracking.records import Points, Series
from mlflow_keras_adv.tracking.writer import RunWriter


@pytest.fixture
def run_id(client: MlflowClient, experiment: str) -> str:
    return client.create_run(experiment).info.run_id


@pytest.fixture
def courier(client: MlflowClient) -> Courier:
    assert courier_to(client.tracking_uri) is None
    courier_module.count(client.tracking_uri, courier_module.POINTS_BEFORE + 1)
    found = courier_to(client.tracking_uri)
    assert found is not None
    return found


def test_it_logs_what_it_is_given_and_says_what_the_store_says(
    client: MlflowClient, run_id: str, courier: Courier
) -> None:
    assert courier_to(client.tracking_uri) is courier
    rows = np.arange(1500)
    series = Series({"s": np.ma.masked_equal(rows * 0.5, 1.0)}, rows, rows + 9)
    taken: list[int] = []
    courier.log(
        run_id,
        [Points([Metric("a", 1 / 3, 5, 2), Metric("b", float("nan"), 6, 3)]), series],
        [Param("p", "1")],
        [RunTag("t", "2")],
        progress=lambda: taken.append(1),
    )
    assert len(taken) == 2  # batches of at most 1000
    stored = client.get_metric_history(run_id, "s")
    moments = {(point.step, point.value, point.timestamp) for point in stored}
    assert moments == {(row, row * 0.5, row + 9) for row in range(1500) if row != 2}
    data = client.get_run(run_id).data
    assert (data.params["p"], data.tags["t"]) == ("1", "2")
    (a,) = client.get_metric_history(run_id, "a")
    assert (a.value, a.timestamp, a.step) == (1 / 3, 5, 2)
    (b,) = client.get_metric_history(run_id, "b")
    assert np.isnan(b.value)

    with pytest.raises(MlflowException, match="not found") as caught:
        courier.log("f" * 32, [Points([Metric("a", 1, 5, 2)])])
    assert caught.value.error_code == "RESOURCE_DOES_NOT_EXIST"


def test_a_run_with_many_values_gets_one_and_none_is_lost_when_it_dies(
    client: MlflowClient, run_id: str, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)
    writer = RunWriter(run_id, client)
    rows = np.arange(4000)
    writer.log_series({"s": rows[:2500]}, steps=rows[:2500], timestamps_ms=rows[:2500])
    assert writer.flush(60)
    courier._process.kill()
    courier._process.wait()
    writer.log_series({"s": rows[2500:]}, steps=rows[2500:], timestamps_ms=rows[2500:])
    assert writer.flush(60)

    stored = client.get_metric_history(run_id, "s")
    assert sorted(point.step for point in stored) == rows.tolist()
    assert courier_to(client.tracking_uri) is None
    assert writer.receipt.delivered == 4000


def test_it_ends_with_its_trainer(store: str) -> None:
    program = f"""
import os, signal
from mlflow_keras_adv.tracking.courier import POINTS_BEFORE, count, courier_to
count({store!r}, POINTS_BEFORE + 1)
courier = courier_to({store!r})
print(courier._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", program]
    # The courier inherits standard output: reading it to its end waits for the courier's.
    shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert shown.returncode == -signal.SIGKILL
    assert shown.stdout.strip().isdecimal()

"""A process of its own that sends values."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from mlflow_keras_adv.tracking import retry, sender_process
from mlflow_keras_adv.tracking.journal import About, Cursor, Journal
from mlflow_keras_adv.tracking.records import Points, Record, Series, encode
from mlflow_keras_adv.tracking.sender_process import SenderProcess, note_sent, sender_to
from mlflow_keras_adv.tracking.verdict import RejectedError
from mlflow_keras_adv.tracking.writer import RunWriter
from tests.warm import PYTHON

# On a busy machine a process that lets others go first may take minutes to start.
SECONDS = 600


@pytest.fixture
def run_id(client: MlflowClient, experiment: str) -> str:
    return client.create_run(experiment).info.run_id


@pytest.fixture
def sender(client: MlflowClient) -> SenderProcess:
    assert sender_to(client.tracking_uri) is None
    note_sent(client.tracking_uri, sender_process.POINTS_BEFORE + 1)
    found = sender_to(client.tracking_uri)
    assert found is not None
    return found


@pytest.fixture
def journaled(tmp_path: Path) -> Iterator[Callable[..., Cursor]]:
    """Puts records into a journal, and says where they stand."""
    journal = Journal.create(tmp_path / "journals", About("run", "store", False, "host", 1))

    def write(*records: Record) -> Cursor:
        journal.append(b"what stands before")
        places = [journal.append(encode(record, journal.folder)) for record in records]
        journal.append(b"what stands behind")
        return journal.cursor(places[0], places[-1])

    yield write
    journal.close(delete=True)


def test_it_delivers_what_it_is_told_and_says_what_the_store_says(
    client: MlflowClient, run_id: str, sender: SenderProcess, journaled: Callable[..., Cursor]
) -> None:
    assert sender_to(client.tracking_uri) is sender
    rows = np.arange(1500)
    series = Series({"s": np.ma.masked_equal(rows * 0.5, 1.0)}, rows, rows + 9)
    points = Points([Metric("a", 1 / 3, 5, 2), Metric("b", float("nan"), 6, 3)])
    taken: list[int] = []
    sender.send(run_id, journaled(points, series), progress=lambda: taken.append(1))
    assert len(taken) == 2  # batches of at most 1000
    stored = client.get_metric_history(run_id, "s")
    moments = {(point.step, point.value, point.timestamp) for point in stored}
    assert moments == {(row, row * 0.5, row + 9) for row in range(1500) if row != 2}
    (a,) = client.get_metric_history(run_id, "a")
    assert (a.value, a.timestamp, a.step) == (1 / 3, 5, 2)
    (b,) = client.get_metric_history(run_id, "b")
    assert np.isnan(b.value)

    with pytest.raises(RejectedError, match="not found"):
        sender.send("f" * 32, journaled(Points([Metric("a", 1, 5, 2)])))


def test_what_it_cannot_read_is_said(
    run_id: str, sender: SenderProcess, journaled: Callable[..., Cursor]
) -> None:
    cursor = journaled(Points([Metric("a", 1, 5, 2)]))
    path = cursor.folder / "000001.log"
    path.write_bytes(path.read_bytes().replace(b'"a"', b'"b"'))
    with pytest.raises(RejectedError, match="damaged"):
        sender.send(run_id, cursor)


def test_a_run_with_many_values_gets_one_and_none_is_lost_when_it_dies(
    client: MlflowClient, run_id: str, sender: SenderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)
    writer = RunWriter(run_id, client)
    rows = np.arange(4000)
    writer.log_series({"s": rows[:2500]}, steps=rows[:2500], timestamps_ms=rows[:2500])
    _wait_until_delivered(writer, 2500)
    sender._process.kill()
    sender._process.wait()
    writer.log_series({"s": rows[2500:]}, steps=rows[2500:], timestamps_ms=rows[2500:])
    _wait_until_delivered(writer, 4000)

    stored = client.get_metric_history(run_id, "s")
    assert sorted(point.step for point in stored) == rows.tolist()
    assert sender_to(client.tracking_uri) is None
    assert writer.receipt.delivered == 4000


def test_who_waits_for_values_does_not_wait_for_the_start_of_one(
    client: MlflowClient, run_id: str, sender: SenderProcess
) -> None:
    sender._process.send_signal(signal.SIGSTOP)  # as one that gets no processor
    writer = RunWriter(run_id, client)
    rows = np.arange(2500)
    writer.log_series({"s": rows}, steps=rows, timestamps_ms=rows)
    assert writer.flush(SECONDS)
    assert len(client.get_metric_history(run_id, "s")) == writer.receipt.delivered == 2500
    assert sender_to(client.tracking_uri) is sender  # it may be at work later


def test_one_that_gets_no_processor_is_given_up_while_somebody_waits(
    client: MlflowClient,
    run_id: str,
    sender: SenderProcess,
    journaled: Callable[..., Cursor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(sender_process, "SILENT_SECONDS", 0.5)
    sender.send(run_id, journaled(Points([Metric("a", 1, 5, 2)])))  # it is at work
    sender._process.send_signal(signal.SIGSTOP)
    writer = RunWriter(run_id, client)
    rows = np.arange(2500)
    writer.log_series({"s": rows}, steps=rows, timestamps_ms=rows)
    while not sender._calling.locked():  # the values are with it
        time.sleep(0.01)
    assert writer.flush(SECONDS)
    assert len(client.get_metric_history(run_id, "s")) == writer.receipt.delivered == 2500
    assert sender_to(client.tracking_uri) is None


def _wait_until_delivered(writer: RunWriter, points: int) -> None:
    """Not by `flush`: while somebody waits so, the sender process is not used."""
    give_up_at = time.monotonic() + SECONDS
    while writer.receipt.delivered < points:
        assert time.monotonic() < give_up_at, writer.receipt
        time.sleep(0.05)


def test_it_ends_with_its_trainer(store: str) -> None:
    program = f"""
import os, signal
from mlflow_keras_adv.tracking.sender_process import POINTS_BEFORE, note_sent, sender_to
note_sent({store!r}, POINTS_BEFORE + 1)
sender = sender_to({store!r})
print(sender._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [PYTHON, "-c", program]
    # It inherits standard error: reading that to its end waits for the sender process, too.
    shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert shown.returncode == -signal.SIGKILL
    assert shown.stdout.strip().isdecimal()

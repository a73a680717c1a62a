import signal
import subprocess
import threading
import time
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_keras_adv.tracking import outbox, retry
from mlflow_keras_adv.tracking.journal import Journal, Place
from mlflow_keras_adv.tracking.paths import journals_folder
from mlflow_keras_adv.tracking.records import Tags
from mlflow_keras_adv.tracking.sync import sync
from mlflow_keras_adv.tracking.writer import RunWriter
from tests.warm import PYTHON


@pytest.fixture
def run_id(client: MlflowClient, experiment: str) -> str:
    return client.create_run(experiment).info.run_id


def away(*_: Any, **__: Any) -> None:
    raise MlflowException("away")


def test_closing_gives_up_on_a_store_that_takes_nothing_and_says_what_is_left(
    client: MlflowClient,
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(client, "log_batch", away)
    writer = RunWriter(run_id, client)
    writer.log_metrics({"a": 1.0, "b": 2.0})
    writer.set_tags({"c": "d"})
    assert not writer.flush(0.2)
    writer.log_status("FINISHED")
    assert not writer.close(0.2)

    lost = caplog.records[-1].getMessage()
    assert "2 points produced, 0 delivered, 2 pending, 0 refused" in lost
    assert "2 other records pending, its status among them" in lost
    assert client.get_run(run_id).info.status == "RUNNING"
    assert not writer.flush(None)  # does not wait for what will never come
    thread = writer._outbox._store_thread
    assert thread is not None
    thread.join(10)
    assert not thread.is_alive()


def test_closing_does_not_give_up_on_a_slow_store_that_goes_on_taking_values(
    client: MlflowClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_batch = client.log_batch

    def slow(*args: Any, **kwargs: Any) -> None:
        time.sleep(0.2)
        log_batch(*args, **kwargs)

    monkeypatch.setattr(client, "log_batch", slow)
    writer = RunWriter(run_id, client)
    for number in range(6):
        writer.log_params({f"p{number}": number})
    writer.log_status("FINISHED")
    assert writer.close(0.4)

    assert len(client.get_run(run_id).data.params) == 6
    assert client.get_run(run_id).info.status == "FINISHED"


def slow_run(client: MlflowClient, run_id: str, monkeypatch: pytest.MonkeyPatch) -> RunWriter:
    """A writer of ten params and a value whose store takes 0.3 s for each."""
    log_batch = client.log_batch

    def slow(*args: Any, **kwargs: Any) -> None:
        time.sleep(0.3)
        log_batch(*args, **kwargs)

    monkeypatch.setattr(client, "log_batch", slow)
    writer = RunWriter(run_id, client)
    for number in range(10):
        writer.log_params({f"p{number}": number})
    writer.log_metrics({"a": 1.0})
    writer.log_status("FINISHED")
    return writer


def test_a_long_end_says_what_it_waits_for_and_has_a_limit(
    client: MlflowClient,
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    writer = slow_run(client, run_id, monkeypatch)
    monkeypatch.setattr(outbox, "LONGEST_END_SECONDS", 0.8)
    monkeypatch.setattr(outbox, "DISK_GRACE_SECONDS", 0.5)
    assert not writer.close(0.5)
    assert "1 points and " in caplog.text
    assert "of it are still on their way to the store" in caplog.text
    assert "Ctrl-C leaves them on this machine" in caplog.text
    assert "The rest was not delivered within 1 s." in caplog.text
    assert not any(run_id in line for line in sync().pending)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert len(client.get_run(run_id).data.params) == 10


def test_a_ctrl_c_leaves_the_rest_to_sync_and_is_raised(
    client: MlflowClient,
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    writer = slow_run(client, run_id, monkeypatch)
    threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        writer.close(10)
    assert "It was interrupted." in caplog.text
    assert writer._outbox not in outbox._at_work
    assert not any(run_id in line for line in sync().pending)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert len(client.get_run(run_id).data.params) == 10


def test_waiting_for_the_store_ends_the_pause_before_the_next_attempt(
    client: MlflowClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 600.0)
    log_batch, failed = client.log_batch, threading.Event()

    def fail_once(*args: Any, **kwargs: Any) -> None:
        if not failed.is_set():
            failed.set()
            raise MlflowException("away")
        log_batch(*args, **kwargs)

    monkeypatch.setattr(client, "log_batch", fail_once)
    writer = RunWriter(run_id, client)
    writer.log_metrics({"m": 1.0})
    assert failed.wait(30)
    assert writer.flush(60)  # and not after ten minutes


def test_idle_threads_end_and_the_next_value_starts_others(
    client: MlflowClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "IDLE_SECONDS", 0.01)
    writer = RunWriter(run_id, client)

    def at_work() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.endswith(run_id)]

    for step in range(3):
        writer.log_metrics({"m": step}, step=step)
        assert writer.flush(60)
        for thread in at_work():
            thread.join(30)
        assert at_work() == []

    assert len(client.get_metric_history(run_id, "m")) == 3


def test_threads_of_an_outbox_that_is_held_stay_until_it_is_let_go(
    client: MlflowClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "IDLE_SECONDS", 0.01)
    writer = RunWriter(run_id, client)

    def at_work() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.endswith(run_id)]

    release, other = writer.hold(), writer.hold()
    while len(at_work()) < 2:  # also without anything to write
        time.sleep(0.01)
    held = at_work()
    other()
    other()
    time.sleep(0.2)
    assert at_work() == held
    writer.log_metrics({"m": 1.0})
    assert writer.flush(60)
    assert at_work() == held
    release()
    for thread in held:
        thread.join(30)
    assert at_work() == []
    assert not writer.was_used or writer.flush(60)


def test_where_no_thread_can_be_had_what_is_handed_in_stands_in_the_journal(
    client: MlflowClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    writer = RunWriter(run_id, client)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_more)
        release = writer.hold()
        for step in range(3):
            writer.log_metrics({"m": step}, step=step)
        assert not writer.flush(None)  # nobody would answer
        assert writer.receipt.pending == 3
        with pytest.raises(TypeError, match="JSON"):
            writer._outbox.put(Tags({"t": object()}))  # type: ignore[dict-item]
    assert writer.flush(60)  # the machine has threads again
    assert len(client.get_metric_history(run_id, "m")) == 3
    release()
    assert writer.close(60)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_more)
        other = RunWriter(run_id, client)
        other.log_metrics({"late": 1.0})
        assert not other.close(60)
    (left,) = [folder for folder in journals_folder().iterdir() if folder.name.startswith(run_id)]
    journal = Journal.take_over(left)
    assert journal is not None
    assert len(list(journal.records())) == 1
    journal.close(delete=True)


def test_a_disk_that_stands_still_is_not_waited_for_and_nothing_is_lost(
    client: MlflowClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, stands_still = Journal.append, threading.Event()

    def wait_and_append(journal: Journal, record: bytes) -> Place:
        assert stands_still.wait(300)
        return append(journal, record)

    monkeypatch.setattr(Journal, "append", wait_and_append)
    writer = RunWriter(run_id, client)
    for step in range(3):
        writer.log_metrics({"m": step}, step=step)  # comes back, or nobody would end the wait
    assert not writer.flush(0.1)
    stands_still.set()
    assert writer.flush(60)

    assert [point.step for point in client.get_metric_history(run_id, "m")] == [0, 1, 2]
    assert str(writer.receipt) == "3 points produced, 3 delivered, 0 pending, 0 refused"


def test_what_is_left_stands_in_the_journal_when_its_run_is_closed(
    client: MlflowClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "log_batch", away)
    append = Journal.append

    def append_slowly(journal: Journal, record: bytes) -> Place:
        time.sleep(0.2)
        return append(journal, record)

    monkeypatch.setattr(Journal, "append", append_slowly)
    monkeypatch.setattr(outbox, "DISK_GRACE_SECONDS", 0.1)
    writer = RunWriter(run_id, client)
    for step in range(3):
        writer.log_metrics({"m": step}, step=step)
    assert not writer.close(0.1)

    assert writer.receipt.pending == 3
    (left,) = [folder for folder in journals_folder().iterdir() if folder.name.startswith(run_id)]
    journal = Journal.take_over(left)
    assert journal is not None
    assert len(list(journal.records())) == 3
    journal.close(delete=True)


def test_what_cannot_be_written_down_is_an_error_of_its_caller(
    client: MlflowClient, run_id: str
) -> None:
    writer = RunWriter(run_id, client)
    with pytest.raises(TypeError, match="JSON"):
        writer._outbox.put(Tags({"t": object()}))  # type: ignore[dict-item]
    writer.log_metrics({"m": 1.0})
    assert writer.flush(60)


def test_what_is_left_at_the_end_of_the_process_is_delivered(
    client: MlflowClient, run_id: str
) -> None:
    script = f"""
import mlflow, numpy as np
from mlflow_keras_adv.tracking.run import current_run
with mlflow.start_run(run_id={run_id!r}):
    steps = np.arange(5000)
    current_run().log_series({{"m": steps}}, steps=steps, timestamps_ms=steps)
raise RuntimeError("the script fails")
"""
    process = subprocess.run([PYTHON, "-c", script], capture_output=True, check=False)

    assert process.returncode == 1
    assert b"the script fails" in process.stderr
    stored = client.get_metric_history(run_id, "m")
    assert sorted(metric.step for metric in stored) == list(range(5000))

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.tracking import current_run, outbox, run, track
from mlflow_keras_adv.tracking.run import attach_run


def status(client: MlflowClient, run_id: str) -> str:
    return str(client.get_run(run_id).info.status)


# Which run


def test_a_new_run_is_active_described_and_finished(client: MlflowClient, experiment: str) -> None:
    with track("first", params={"optimizer": {"lr": 0.1}}, tags={"a": 1}, description="# It") as r:
        active = mlflow.active_run()
        assert active is not None
        assert active.info.run_id == r.run_id
        assert status(client, r.run_id) == "RUNNING"
        mlflow.log_metric("fluent", 1.0)
        r.log_metrics({"ours": 2.0}, step=3)
    assert mlflow.active_run() is None

    stored = client.get_run(r.run_id)
    assert (stored.info.status, stored.info.experiment_id) == ("FINISHED", experiment)
    assert (stored.info.run_name, r.name, r.experiment_id) == ("first", "first", experiment)
    assert stored.info.end_time >= stored.info.start_time
    assert stored.data.params == {"optimizer.lr": "0.1"}
    assert stored.data.metrics == {"fluent": 1.0, "ours": 2.0}
    assert (stored.data.tags["a"], stored.data.tags["mlflow.note.content"]) == ("1", "# It")
    assert stored.data.tags["mlflow.user"]
    last = mlflow.last_active_run()
    assert last is not None
    assert last.info.run_id == r.run_id


def test_two_tracks_are_two_runs(client: MlflowClient, experiment: str) -> None:
    with track() as one:
        pass
    with track() as two:
        pass
    assert one.run_id != two.run_id
    assert [status(client, r.run_id) for r in (one, two)] == ["FINISHED", "FINISHED"]


def test_an_inner_track_adopts_the_outer(client: MlflowClient, experiment: str) -> None:
    with track() as outer:
        with track("another name", params={"a": 1}) as inner:
            assert inner is outer
        assert status(client, outer.run_id) == "RUNNING"
        assert current_run() is outer
    assert client.get_run(outer.run_id).data.params == {"a": "1"}
    assert client.get_run(outer.run_id).info.run_name != "another name"
    assert status(client, outer.run_id) == "FINISHED"


def test_an_active_run_is_adopted_and_goes_on(client: MlflowClient, experiment: str) -> None:
    with mlflow.start_run(run_name="theirs") as theirs:
        with suppress(ZeroDivisionError), track("ours", params={"a": 1}) as r:
            assert r.run_id == theirs.info.run_id
            r.log_metrics({"m": 1 / 0})
        stored = client.get_run(theirs.info.run_id)
        assert stored.info.status == "RUNNING"
        assert (stored.info.run_name, stored.data.params) == ("theirs", {"a": "1"})
        active = mlflow.active_run()
        assert active is not None
        assert active.info.run_id == theirs.info.run_id
    assert status(client, theirs.info.run_id) == "FINISHED"


def test_a_run_that_is_active_in_another_thread_is_adopted(
    client: MlflowClient, experiment: str
) -> None:
    def work(run_id: str) -> None:
        with track(run_id=run_id) as r:
            active = mlflow.active_run()
            assert active is not None
            assert active.info.run_id == run_id
            r.log_metrics({"m": 1.0})
        assert mlflow.active_run() is None

    with ThreadPoolExecutor(1) as pool:
        with mlflow.start_run() as theirs:
            pool.submit(work, theirs.info.run_id).result()
            assert status(client, theirs.info.run_id) == "RUNNING"
        with track() as ours:
            pool.submit(work, ours.run_id).result()
            assert status(client, ours.run_id) == "RUNNING"
    assert client.get_run(ours.run_id).data.metrics["m"] == 1.0


def test_a_run_id_is_continued_and_ended(client: MlflowClient, experiment: str) -> None:
    run_id = client.create_run(experiment, run_name="before").info.run_id
    client.set_terminated(run_id, "FAILED")
    with track("ignored", run_id=run_id) as r:
        assert r.run_id == run_id
        assert status(client, run_id) == "RUNNING"
    assert client.get_run(run_id).info.run_name == "before"
    assert status(client, run_id) == "FINISHED"


def test_a_run_that_is_taken_up_again_keeps_the_key_of_each_name(
    client: MlflowClient, experiment: str
) -> None:
    with track("before", log_system_metrics=False) as r:
        r.log_metrics({"train/hit@5": 1.0, "train/hit#5": 2.0, "train/hit": 3.0}, step=1)
        r.log_params({"p@": 1, "p#": 2})
    with track(run_id=r.run_id):
        r = current_run()
        r.log_metrics({"train/hit%5": 4.0, "train/hit#5": 5.0}, step=2)  # in another order
        r.log_metrics({"train/hit@5": 6.0, "train/hit": 7.0}, step=2)
        r.log_params({"p#": 2, "p@": 1})

    data = client.get_run(r.run_id).data
    assert {k: v for k, v in data.metrics.items() if k.startswith("train/")} == {
        "train/hit_5": 6.0,
        "train/hit_5.2": 5.0,
        "train/hit_5.3": 4.0,
        "train/hit": 7.0,
    }
    assert data.params == {"p_": "1", "p_.2": "2"}
    assert not [tag for tag in data.tags if tag.endswith(".changed")]


def test_the_run_of_mlflow_run_is_taken_with_the_params_it_holds(
    client: MlflowClient, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = client.create_run(experiment).info.run_id
    for key, value in {"lr": "'1e-3'", "epochs": "5", "note": "''", "jit": "true"}.items():
        client.log_param(run_id, key, value)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with track("mine", params={"lr": 0.001, "epochs": 5, "note": "", "jit": True, "new": 1}) as r:
        assert r.run_id == run_id
        assert "MLFLOW_RUN_ID" not in os.environ  # as mlflow.start_run() does
        with track() as inner:
            assert inner is r

    stored = client.get_run(run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.params["new"] == "1"
    assert len(stored.data.params) == 5
    assert not [key for key in stored.data.tags if key.startswith("param.")]


def test_a_run_id_comes_before_the_run_of_mlflow_run(
    client: MlflowClient, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment_run_id = client.create_run(experiment).info.run_id
    run_id = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", environment_run_id)
    with track(run_id=run_id) as r, track() as inner:
        assert inner is r
    assert os.environ["MLFLOW_RUN_ID"] == environment_run_id
    assert status(client, environment_run_id) == "RUNNING"


def test_nothing_else_in_the_environment_changes(experiment: str) -> None:
    before, uri = dict(os.environ), mlflow.get_tracking_uri()
    with track() as r, r.child("c"):
        pass
    after = dict(os.environ)
    for environment in (before, after):
        environment.pop("PYTEST_CURRENT_TEST", None)
    assert (after, mlflow.get_tracking_uri()) == (before, uri)


# Children


def test_children_are_nested_also_from_threads_and_with_mlflow_run_id_set(
    client: MlflowClient, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment_run_id = client.create_run(experiment).info.run_id

    def work(number: int) -> str:
        with parent.child(f"child-{number}", params={"n": number}, tags={"t": "x"}) as child:
            active = mlflow.active_run()
            assert active is not None
            assert active.info.run_id == child.run_id
            assert current_run() is child
            child.log_metrics({"final/m": number})
            with track() as inner:
                assert inner is child
        return child.run_id

    with track("parent") as parent:
        monkeypatch.setenv("MLFLOW_RUN_ID", environment_run_id)
        with ThreadPoolExecutor(3) as pool:
            children = [work(0), *pool.map(work, range(1, 6))]
        assert current_run() is parent
        assert status(client, parent.run_id) == "RUNNING"

    assert os.environ["MLFLOW_RUN_ID"] == environment_run_id
    for number, run_id in enumerate(children):
        stored = client.get_run(run_id)
        assert (stored.info.status, stored.info.run_name) == ("FINISHED", f"child-{number}")
        assert stored.data.tags["mlflow.parentRunId"] == parent.run_id
        assert stored.data.tags["mlflow.source.name"]
        assert stored.data.params == {"n": str(number)}
        assert stored.data.metrics == {"final/m": number}


def test_nested_opens_a_child_of_the_innermost_run(client: MlflowClient, experiment: str) -> None:
    with mlflow.start_run() as theirs:
        with track(nested=True) as child, track(nested=True) as grandchild:
            pass
        with pytest.raises(KeyError), track(nested=True) as failed:
            raise KeyError("x")
    with track(parent_run_id=theirs.info.run_id) as late, track(nested=True) as later:
        pass

    parents = {
        r.run_id: client.get_run(r.run_id).data.tags.get("mlflow.parentRunId")
        for r in (child, grandchild, late, later)
    }
    assert parents == {
        child.run_id: theirs.info.run_id,
        grandchild.run_id: child.run_id,
        late.run_id: theirs.info.run_id,
        later.run_id: late.run_id,
    }
    assert status(client, failed.run_id) == "FAILED"
    assert status(client, theirs.info.run_id) == "FINISHED"


def test_nested_in_nothing_is_a_run_of_its_own_and_under_mlflow_run_a_child(
    client: MlflowClient, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with track(nested=True) as alone:
        pass
    assert "mlflow.parentRunId" not in client.get_run(alone.run_id).data.tags

    environment_run_id = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", environment_run_id)
    with track(nested=True) as child:
        pass
    tags = client.get_run(child.run_id).data.tags
    assert tags["mlflow.parentRunId"] == environment_run_id


# The current run


def test_the_current_run_is_the_innermost_of_this_thread(experiment: str) -> None:
    assert current_run() is None
    with track() as outer:
        assert current_run() is outer
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(current_run).result() is None
        with mlflow.start_run(nested=True) as theirs:
            inner = current_run()
            assert inner is not None
            assert inner.run_id == theirs.info.run_id
        mlflow.end_run()
        assert current_run() is outer
    assert current_run() is None


def test_an_active_run_keeps_its_axis(experiment: str) -> None:
    with mlflow.start_run() as theirs:
        first = current_run()
        assert first is not None
        first.axis.batches, first.internals.counts["trainings"] = 12, 1
        assert current_run() is first
        with track() as r:
            assert r is first
        assert attach_run(theirs.info.run_id) is first
        assert current_run() is first
    with mlflow.start_run():
        other = current_run()
        assert other is not None
        assert (other.axis.batches, other.internals.counts["trainings"]) == (0, 0)


def test_an_attached_run_is_written_to_and_not_ended(client: MlflowClient, experiment: str) -> None:
    run_id = client.create_run(experiment).info.run_id
    attached = attach_run(run_id)
    attached.log_metrics({"m": 1.0})
    assert attached.flush(30)
    assert attach_run(run_id) is attached
    assert mlflow.active_run() is None
    assert status(client, run_id) == "RUNNING"
    assert client.get_run(run_id).data.metrics == {"m": 1.0}


# The end


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("a bad value"), "FAILED"),
        (UserError("epochs must be positive"), "FAILED"),
        (SystemExit(2), "FAILED"),
        (SystemExit("a message"), "FAILED"),
        (SystemExit(0), "FINISHED"),
        (SystemExit(None), "FINISHED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_the_status_is_true(
    client: MlflowClient, experiment: str, error: BaseException, expected: str
) -> None:
    with pytest.raises(type(error)) as caught, track() as r:
        raise error
    assert caught.value is error
    assert mlflow.active_run() is None
    assert status(client, r.run_id) == expected

    tags = client.get_run(r.run_id).data.tags
    files = [file.path for file in client.list_artifacts(r.run_id)]
    if expected == "FAILED":
        assert tags["error"] == f"{type(error).__name__}: {error}"
        text = Path(client.download_artifacts(r.run_id, "traceback.txt")).read_text()
        assert "test_the_status_is_true" in text
        assert text.rstrip().endswith(str(error))
    else:
        assert "error" not in tags
        assert files == []


class MuteError(Exception):
    """It cannot say what it is."""

    def __str__(self) -> str:
        raise TypeError("no text")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("caf\udce9"), "RuntimeError: caf\\udce9"),
        (RuntimeError("a\0b"), "RuntimeError: a\\x00b"),
        (MuteError(), "MuteError: <its text cannot be had: TypeError('no text')>"),
    ],
    ids=["a byte that is no UTF-8", "NUL", "no text"],
)
def test_an_exception_leaves_as_itself_whatever_its_text(
    client: MlflowClient, experiment: str, error: Exception, said: str
) -> None:
    with pytest.raises(type(error)) as caught, track(log_system_metrics=False) as r:
        raise error
    assert caught.value is error
    run = client.get_run(r.run_id)
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", said)
    assert {file.path for file in client.list_artifacts(r.run_id)} == {"traceback.txt"}


def test_callbacks_are_called_once_at_the_end_of_the_outermost_block(
    client: MlflowClient, experiment: str, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[str] = []
    with suppress(ValueError), track() as r:
        r.on_exit(lambda: called.append("first"))
        r.on_exit(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        r.on_exit(lambda: r.log_metrics({"in_callback": 1.0}))
        withdraw = r.on_exit(lambda: called.append("withdrawn"))
        with track():
            r.on_exit(lambda: called.append("inner"))
        assert called == []
        withdraw()
        raise ValueError("x")
    assert called == ["inner", "first"]
    assert client.get_run(r.run_id).data.metrics == {"in_callback": 1.0}
    assert "a callback of on_exit failed" in caplog.text
    with mlflow.start_run(), track() as adopted:
        adopted.on_exit(lambda: called.append("adopted"))
    assert called[-1] == "adopted"


def test_a_run_that_its_user_ends_inside_gets_the_true_status(
    client: MlflowClient, experiment: str
) -> None:
    with suppress(ValueError), track() as r:
        mlflow.end_run()
        raise ValueError("x")
    assert status(client, r.run_id) == "FAILED"


def test_a_run_that_the_user_opened_inside_is_left_to_the_user(
    client: MlflowClient, experiment: str
) -> None:
    with track() as outer:
        theirs = mlflow.start_run(nested=True)
    active = mlflow.active_run()
    assert active is not None
    assert active.info.run_id == theirs.info.run_id
    assert status(client, theirs.info.run_id) == "RUNNING"
    assert status(client, outer.run_id) == "FINISHED"


def test_system_metrics_are_recorded_once_for_a_process(
    client: MlflowClient, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")

    def has_system_metrics(run_id: str) -> bool:
        return any(key.startswith("system/") for key in client.get_run(run_id).data.metrics)

    with track() as parent:
        with parent.child("c") as child:
            pass
        deadline = time.monotonic() + 60
        while not has_system_metrics(parent.run_id):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with track(log_system_metrics=False) as without:
        pass
    with track(run_id=parent.run_id):
        assert list(mlflow.tracking.fluent.run_id_to_system_metrics_monitor) == [parent.run_id]

    assert has_system_metrics(parent.run_id)
    assert not has_system_metrics(child.run_id)
    assert not has_system_metrics(without.run_id)
    assert mlflow.tracking.fluent.run_id_to_system_metrics_monitor == {}
    assert not [t for t in threading.enumerate() if t.name == "SystemMetricsMonitor"]


def test_leaving_waits_for_a_dead_store_no_longer_than_the_grace(
    client: MlflowClient,
    experiment: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(run, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(outbox, "DISK_GRACE_SECONDS", 0.2)
    hanging = threading.Event()

    def hang(*_: Any, **__: Any) -> None:
        hanging.wait(60)
        raise MlflowException("away")

    with track() as r:
        assert r.flush(30)
        monkeypatch.setattr(MlflowClient, "log_batch", hang)
        monkeypatch.setattr(MlflowClient, "set_terminated", hang)
        monkeypatch.setattr(MlflowClient, "get_run", hang)  # of the system metrics' monitor
        r.log_metrics({"a": 1.0, "b": 2.0})
    assert mlflow.active_run() is None  # nothing for MLflow to end once more at exit
    (warning,) = [x.getMessage() for x in caplog.records if "does not answer" in x.getMessage()]
    assert "2 pending" in warning
    assert "its status among them" in warning
    hanging.set()


# A store that does not take the run


def test_a_run_of_a_server_that_is_down_cannot_be_attached(
    experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(UserError, match="does not serve"):
        attach_run("a" * 32)
    assert current_run() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"run_id": "f" * 32}, "ffff.*not found"),
        ({"run_id": "../x"}, "run_id"),
        ({"parent_run_id": "f" * 32}, "ffff.*not found"),
    ],
)
def test_an_unknown_run_is_one_error(
    experiment: str, arguments: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message), track(**arguments):  # type: ignore[arg-type]
        pytest.fail("it opened")
    assert mlflow.active_run() is None


def test_a_deleted_run_is_one_error(client: MlflowClient, experiment: str) -> None:
    run_id = client.create_run(experiment).info.run_id
    client.delete_run(run_id)
    openings: list[Callable[[], Any]] = [
        lambda: track(run_id=run_id).__enter__(),
        lambda: track(parent_run_id=run_id).__enter__(),
    ]
    for opening in openings:
        with pytest.raises(UserError, match="deleted"):
            opening()


def test_an_experiment_that_is_missing_is_one_error(
    experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "123456789")
    with pytest.raises(UserError, match="123456789"), track():
        pytest.fail("it opened")


def test_a_run_to_continue_cannot_be_nested(experiment: str) -> None:
    with pytest.raises(ValueError, match="Received run_id='a' together with nested=True"):
        track(run_id="a", nested=True).__enter__()


def test_a_track_serves_one_with_and_decorates_any_number_of_calls(
    client: MlflowClient, experiment: str
) -> None:
    block = track(log_system_metrics=False)
    with block:
        pass
    with pytest.raises(RuntimeError, match="one `with`"):
        block.__enter__()

    @track("decorated", params={"a": 1}, log_system_metrics=False)
    def work(number: int) -> tuple[str, int]:
        """Does it."""
        run = current_run()
        assert run is not None
        return run.run_id, number

    (first, one), (second, two) = work(1), work(number=2)
    assert (one, two, work.__doc__) == (1, 2, "Does it.")
    assert first != second
    for run_id in (first, second):
        stored = client.get_run(run_id)
        assert (stored.info.status, stored.data.params) == ("FINISHED", {"a": "1"})


def test_what_cannot_be_recorded_as_the_block_begins_ends_the_run_failed(
    client: MlflowClient, experiment: str
) -> None:
    block = track(tags={"a": Unprintable()}, log_system_metrics=False)
    with pytest.raises(ZeroDivisionError), block:
        pytest.fail("it was entered")
    assert current_run() is None
    (found,) = client.search_runs([experiment])
    assert found.info.status == "FAILED"


class Unprintable:
    def __str__(self) -> str:
        raise ZeroDivisionError


# Over HTTP


def test_over_http_all_of_it_lands(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    steps = np.arange(1, 3001)
    with suppress(ValueError), track(params={"a": 1}) as r:
        r.log_series({"m": steps / 2}, steps=steps, timestamps_ms=steps)
        with r.child("c") as child:
            child.log_metrics({"final/nan": float("nan")})
            child.log_text("hello", "a.txt")
        raise ValueError("x")

    client = MlflowClient()
    assert [status(client, x.run_id) for x in (r, child)] == ["FAILED", "FINISHED"]
    stored = sorted((m.step, m.value) for m in client.get_metric_history(r.run_id, "m"))
    assert stored == [(step, step / 2) for step in range(1, 3001)]
    assert np.isnan(client.get_run(child.run_id).data.metrics["final/nan"])
    assert [file.path for file in client.list_artifacts(child.run_id)] == ["a.txt"]
    assert [file.path for file in client.list_artifacts(r.run_id)] == ["traceback.txt"]


# Processes

SCRIPT = """
import sys, time
from mlflow_keras_adv.tracking.run import track
with track(log_system_metrics=False) as run:
    run.log_metrics({"m": 1.0})
    with run.child("c") as child:
        print(run.run_id, child.run_id, flush=True)
        BODY
"""


def start(body: str) -> tuple["subprocess.Popen[str]", list[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.replace("BODY", body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "code"),
    [([signal.SIGTERM], 143), ([signal.SIGTERM] * 3, 143), ([signal.SIGINT], -signal.SIGINT)],
)
def test_a_process_that_is_stopped_leaves_its_runs_killed(
    client: MlflowClient, experiment: str, signals: list[signal.Signals], code: int
) -> None:
    process, run_ids = start("time.sleep(300)")
    for number in signals:
        process.send_signal(number)
    process.communicate(timeout=120)

    assert process.returncode == code
    assert [status(client, run_id) for run_id in run_ids] == ["KILLED", "KILLED"]
    assert client.get_run(run_ids[0]).data.metrics == {"m": 1.0}


@pytest.mark.slow
def test_a_process_that_exits_with_an_error_leaves_its_runs_failed(
    client: MlflowClient, experiment: str
) -> None:
    process, run_ids = start("sys.exit(3)")
    _, errors = process.communicate(timeout=120)

    assert process.returncode == 3
    assert "Traceback" not in errors
    assert [status(client, run_id) for run_id in run_ids] == ["FAILED", "FAILED"]


def test_a_run_shows_what_its_user_needs_and_its_plumbing_under_one_name(experiment: str) -> None:
    with track() as opened:
        shown = {name for name in dir(opened) if not name.startswith("_")}
    records = ("artifact", "dataset", "dict", "figure", "image", "metrics", "params", "series")
    assert shown == {
        *(f"log_{each}" for each in (*records, "table", "text")),
        *("set_tags", "describe", "delete_artifact", "flush", "receipt"),
        *("child", "on_exit", "resume_after"),
        *("run_id", "name", "experiment_id", "artifact_uri", "tracking_uri", "axis"),
        "internals",
    }

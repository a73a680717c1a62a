"""How a training on several machines ends: a worker is killed, all are, they begin again."""

import os
import re
import signal
import time
from pathlib import Path

import mlflow
import pytest

from mlflow_keras_adv.tracking.axis import is_superseded, superseded_spans
from mlflow_keras_adv.tracking.sync import sync
from tests.machines.net import STEPS, truth
from tests.machines.processes import Started, workers
from tests.machines.test_training import ROUNDING, assert_trained, new_run, read, shared

pytestmark = pytest.mark.slow

LONG = {"epochs": 200, "pause": 0.2}


def begun(started: Started, epoch: int) -> list[int]:
    """Waits until each process is in this epoch; their ids."""
    for _ in range(1200):
        texts = [output.read_text() for output in started.outputs]
        if all(f"epoch {epoch}\n" in text for text in texts):
            return [int(re.findall(r"pid (\d+)", text)[-1]) for text in texts]
        assert all(process.poll() is None for process in started.processes), texts
        time.sleep(0.05)
    raise AssertionError(f"not in epoch {epoch} yet: {texts}")


def status(run_id: str) -> str:
    return str(mlflow.MlflowClient().get_run(run_id).info.status)


def test_a_worker_that_is_killed_fails_the_run_of_the_chief(
    tmp_path: Path, store: str, warm_python: None
) -> None:
    run_id = new_run()
    started = workers(tmp_path, LONG, LONG, environment=shared(run_id))
    _, other = begun(started, 2)
    os.kill(other, signal.SIGKILL)
    chief, _ = started.ended()
    assert chief.code != 0
    run = mlflow.MlflowClient().get_run(run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["error"]
    steps = list(read(run_id)["batch/loss"])
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= 2 * STEPS
    assert int(run.data.tags["points.pending"]) == 0


def test_a_chief_that_is_killed_is_ended_by_sync_with_all_its_steps(
    tmp_path: Path, store: str, warm_python: None
) -> None:
    run_id = new_run()
    started = workers(tmp_path, LONG, LONG, environment=shared(run_id))
    chief, _ = begun(started, 3)
    os.kill(chief, signal.SIGKILL)
    codes = [each.code for each in started.ended()]
    assert all(codes)
    assert status(run_id) == "RUNNING"  # the other rank has no say in it
    sync()
    assert status(run_id) == "KILLED"
    steps = list(read(run_id)["batch/loss"])
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= 2 * STEPS


def test_all_that_are_terminated_leave_one_killed_run_and_go_on_in_it(
    tmp_path: Path, store: str, warm_python: None
) -> None:
    """As a cluster does that takes machines away, and gives them back later."""
    run_id = new_run()
    settings = [{**LONG, "backups": str(tmp_path / f"backup-{rank}")} for rank in range(2)]
    (tmp_path / "outputs").mkdir()
    started = workers(tmp_path / "outputs", *settings, environment=shared(run_id))
    for process in begun(started, 3):
        os.kill(process, signal.SIGTERM)
    started.ended()
    assert status(run_id) == "KILLED"
    before = read(run_id)["batch/loss"]

    again = [{**each, "epochs": 6, "pause": 0.0} for each in settings]
    ended = workers(tmp_path / "outputs", *again, environment=shared(run_id)).ended()
    expected = truth(epochs=6)
    for each in ended:
        assert_trained(each, expected)
    run = mlflow.MlflowClient().get_run(run_id)
    assert run.info.status == "FINISHED"
    spans = superseded_spans(run.data.tags)
    points = mlflow.MlflowClient().get_metric_history(run_id, "batch/loss")
    counted = {p.step: p.value for p in points if not is_superseded(p, spans)}
    assert sorted(counted) == list(range(1, 6 * STEPS + 1))
    assert [counted[step] for step in sorted(counted)] == pytest.approx(
        expected.losses, rel=ROUNDING
    )
    assert len(before) >= 3 * STEPS


def test_a_worker_that_stops_early_leaves_a_failed_run_and_no_waiting_chief(
    tmp_path: Path, store: str, warm_python: None
) -> None:
    """The others cannot go on without it: TensorFlow says so, and the run tells."""
    chief, other = workers(tmp_path, {"epochs": 4}, {"epochs": 4, "stops_after": 2}).ended()
    assert other.code == 0
    assert chief.code != 0
    run_id = re.findall(r"run (\w{32})", chief.output)[0]
    assert status(run_id) == "FAILED"
    assert list(read(run_id)["batch/loss"])[: 2 * STEPS] == list(range(1, 2 * STEPS + 1))


def test_ranks_that_begin_at_different_batches_are_told_before_the_first_step(
    tmp_path: Path, store: str, warm_python: None
) -> None:
    """Such as from backups of their own, of which one is older."""
    chief, other = workers(tmp_path, {"already": 0}, {"already": 3}).ended()
    for ended in (chief, other):
        assert ended.code != 0
        assert "begin at different places" in ended.output
        assert "epoch 0, batch 0" in ended.output
        assert "epoch 0, batch 3" in ended.output
    (run_id,) = re.findall(r"run (\w{32})", chief.output)
    assert status(run_id) == "FAILED"
    assert "begin at different places" in mlflow.MlflowClient().get_run(run_id).data.tags["error"]
    assert "batch/loss" not in read(run_id)

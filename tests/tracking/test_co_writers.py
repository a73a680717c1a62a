"""Processes that write to a run which another one ends: its receipt counts them, in real forks."""

import json
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_keras_adv.tracking.paths import journals_folder
from mlflow_keras_adv.tracking.sync import sync
from tests.warm import PYTHON

ROOT = Path(__file__).parent.parent.parent
Counts = dict[str, int]

BEGIN = """
import json, multiprocessing, os, signal, sys, time
import numpy as np
import mlflow_keras_adv as mka

def work(run, count=5):
    for step in range(count):
        run.log_metrics({f"of/{os.getpid()}": 1.0}, step=step)
    run.log_text("a", f"{os.getpid()}.txt")

def fork(action):
    child = os.fork()
    if child:
        return child
    try:
        action()
    finally:
        os._exit(0)  # as multiprocessing ends: nothing of atexit runs
"""


@pytest.fixture
def program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experiment: str
) -> Callable[[str], str]:
    """Runs a program in a home of its own; returns what it says last."""
    monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "1")

    def run(body: str) -> str:
        command = [PYTHON, "-c", BEGIN + textwrap.dedent(body)]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode in (0, -9), done.stderr
        return done.stdout.split()[-1]

    return run


def receipt(client: MlflowClient, run_id: str) -> Counts:
    tags = client.get_run(run_id).data.tags
    names = ("produced", "delivered", "pending", "refused")
    return {name: int(tags[f"points.{name}"]) for name in names}


def stored(client: MlflowClient, run_id: str) -> int:
    keys = client.get_run(run_id).data.metrics
    return sum(len(client.get_metric_history(run_id, key)) for key in keys)


def all_delivered(client: MlflowClient, run_id: str, points: int) -> None:
    assert stored(client, run_id) == points
    there = {"produced": points, "delivered": points, "pending": 0, "refused": 0}
    assert receipt(client, run_id) == there
    assert not list(journals_folder().iterdir())


@pytest.mark.parametrize(
    "end", ["pass", "mka.current_run().flush()", "time.sleep(2)", "os.kill(os.getpid(), 9)"]
)
def test_a_child_has_ended_before(
    end: str, program: Callable[[str], str], client: MlflowClient
) -> None:
    run_id = program(f"""
        with mka.track(log_system_metrics=False) as run:
            run.log_metrics({{"before": 1.0}})
            def action():
                work(mka.current_run())
                {end}
            children = [fork(action) for _ in range(2)]
            for child in children:
                os.waitpid(child, 0)
            run.log_metrics({{"after": 1.0}})
        print(run.run_id)
    """)
    all_delivered(client, run_id, 12)
    names = {file.path for file in client.list_artifacts(run_id)}
    assert len(names) == 2
    assert client.get_run(run_id).info.status == "FINISHED"
    assert sync().delivered == []


def test_a_pool_of_workers_is_terminated(
    program: Callable[[str], str], client: MlflowClient
) -> None:
    run_id = program("""
        def task(number):
            work(mka.current_run(), 3)
        with mka.track(log_system_metrics=False) as run:
            with multiprocessing.get_context("fork").Pool(2) as pool:
                pool.map(task, range(4))
        print(run.run_id)
    """)
    all_delivered(client, run_id, 12)


def test_a_child_that_goes_on_is_pending_until_it_is_delivered(
    program: Callable[[str], str], client: MlflowClient
) -> None:
    run_id = program("""
        read, write = os.pipe()
        with mka.track(log_system_metrics=False) as run:
            def action():
                work(mka.current_run())
                os.write(write, b"x")
                os.read(read_2, 1)
                work(mka.current_run(), 7)  # the same steps, and two more
            read_2, write_2 = os.pipe()
            child = fork(action)
            os.read(read, 1)
        os.write(write_2, b"x")
        os.waitpid(child, 0)
        print(run.run_id)
    """)
    before = receipt(client, run_id)
    assert before["produced"] == 5
    assert before["pending"] + before["delivered"] == 5
    (line,) = sync().delivered
    assert "12 points produced, 12 delivered, 0 pending" in line
    counts = receipt(client, run_id)
    assert counts == {"produced": 12, "delivered": 12, "pending": 0, "refused": 0}
    assert not list(journals_folder().iterdir())
    assert (sync().delivered, sync().pending) == ([], [])


def test_the_parent_is_killed_and_its_child_is_not_taken_for_it(
    program: Callable[[str], str], client: MlflowClient
) -> None:
    run_id = program("""
        with mka.track(log_system_metrics=False) as run:
            run.log_metrics({"before": 1.0})
            child = fork(lambda: work(mka.current_run()))
            os.waitpid(child, 0)
            print(run.run_id, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    sync()
    all_delivered(client, run_id, 6)
    assert client.get_run(run_id).info.status == "KILLED"


def test_a_child_of_a_run_that_goes_on_ends_nothing(
    program: Callable[[str], str], client: MlflowClient
) -> None:
    text = program("""
        from mlflow_keras_adv.tracking.sync import sync
        import mlflow
        with mka.track(log_system_metrics=False) as run:
            child = fork(lambda: work(mka.current_run()))
            os.waitpid(child, 0)
            sync()
            print(json.dumps([run.run_id, mlflow.get_run(run.run_id).info.status]).replace(" ", ""))
    """)
    run_id, status = json.loads(text)
    assert status == "RUNNING"
    all_delivered(client, run_id, 5)


def test_another_process_that_was_given_the_id(
    program: Callable[[str], str], client: MlflowClient
) -> None:
    run_id = program("""
        import subprocess
        other = (
            "import os, sys, mlflow_keras_adv as mka; run = mka.attach_run(sys.argv[1]); "
            "run.log_metrics({'theirs': 1.0}); run.log_metrics({'inf': float('inf')}); "
            "(run.flush() if len(sys.argv) > 2 else None); "
            "(os._exit(0) if len(sys.argv) > 2 else None)"
        )
        with mka.track(log_system_metrics=False) as run:
            for more in ([], ["exit"]):
                subprocess.run([sys.executable, "-c", other, run.run_id, *more], check=True)
        print(run.run_id)
    """)
    counts = receipt(client, run_id)
    assert counts == {"produced": 4, "delivered": 2, "pending": 0, "refused": 2}
    assert json.loads(client.get_run(run_id).data.tags["points.refused_names"]) == {"inf": 2}
    assert not list(journals_folder().iterdir())


def test_a_fork_at_any_moment_hands_in_all_of_its_own(
    program: Callable[[str], str], client: MlflowClient
) -> None:
    """The threads of the parent hold locks, and what it has handed in is on its way."""
    run_id = program("""
        with mka.track(log_system_metrics=False) as run:
            for number in range(30):
                run.log_series(
                    {"parent": np.ones(50)}, steps=np.arange(50) + 50 * number,
                    timestamps_ms=np.arange(50),
                )
                if number % 3 == 0:
                    child = fork(lambda: work(mka.current_run(), 2))
            try:
                while True:
                    os.wait()
            except ChildProcessError:
                pass
        print(run.run_id)
    """)
    all_delivered(client, run_id, 1520)

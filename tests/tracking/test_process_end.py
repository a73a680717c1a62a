"""What is still open when the process ends: each case a real process with a time limit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_keras_adv.tracking.sync import sync

ROOT = Path(__file__).parent.parent.parent
HEAD = """
import os, signal, sys, threading, time
import mlflow
import numpy as np
from mlflow_keras_adv.tracking import process_end
from mlflow_keras_adv.tracking.run import current_run, track
"""
SECONDS = 120  # a process that hangs, hangs for ever


def run_program(body: str, *, code: int = 0, **variables: str) -> list[str]:
    """Runs a program to its end, and returns the lines that it has printed."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + body],
        cwd=ROOT,
        env={**os.environ, "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true", **variables},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Exception ignored" not in done.stderr
    assert "Error in atexit" not in done.stderr
    return done.stdout.split()


def ended_as(client: MlflowClient, run_id: str) -> tuple[str, int, str]:
    """Status of a run, how many points of `m` it holds, and how it says it went wrong."""
    run = client.get_run(run_id)
    points = len(client.get_metric_history(run_id, "m"))
    return run.info.status, points, run.data.tags.get("error", "")


OPEN = """
run = track(log_system_metrics=False).__enter__()
child = run.child("c").__enter__()
print(run.run_id, child.run_id, flush=True)
for each in (run, child):
    each.log_series({"m": np.arange(10)}, steps=np.arange(10), timestamps_ms=np.arange(10))
"""
# How a program ends, its exit code, the status, and the error.
ENDS = {
    "": (0, "FINISHED", ""),
    "raise RuntimeError('so it was')": (1, "FAILED", "RuntimeError: so it was"),
    "os.kill(os.getpid(), signal.SIGINT); time.sleep(60)": (-2, "KILLED", ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_blocks_that_nobody_left_are_ended_with_the_status_that_is_true(
    client: MlflowClient, experiment: str, end: str
) -> None:
    code, status, error = ENDS[end]
    # The threads of an outbox have been idle for longer than they wait elsewhere.
    run_ids = run_program(f"{OPEN}\ntime.sleep(2.5)\n{end}", code=code)
    assert [ended_as(client, run_id) for run_id in run_ids] == [(status, 10, error)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_runs_of_start_run_that_were_written_to_are_too(
    client: MlflowClient, experiment: str, end: str
) -> None:
    code, status, error = ENDS[end]
    body = f"""
outer = mlflow.start_run(); current_run().log_metrics({{"m": 1.0}})
inner = mlflow.start_run(nested=True); current_run().log_metrics({{"m": 1.0}})
print(outer.info.run_id, inner.info.run_id, flush=True)
time.sleep(2.5)
{end}
"""
    run_ids = run_program(body, code=code)
    assert [ended_as(client, run_id) for run_id in run_ids] == [(status, 1, error)] * 2


@pytest.mark.slow
def test_sigterm_in_a_run_of_start_run_is_seen_by_its_end(
    client: MlflowClient, experiment: str
) -> None:
    body = """
from mlflow_keras_adv.tracking.sigterm import raises_terminated
print(mlflow.start_run().info.run_id, flush=True)
with raises_terminated():
    release = current_run().internals.writer.hold()
    current_run().log_metrics({"m": 1.0})
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""
    (run_id,) = run_program(body, code=143)
    assert ended_as(client, run_id) == ("KILLED", 1, "")


@pytest.mark.slow
def test_a_run_of_start_run_whose_training_called_exit_is_ended_by_that(
    client: MlflowClient, experiment: str
) -> None:
    body = """
print(mlflow.start_run().info.run_id, flush=True)
release = current_run().internals.writer.hold()
current_run().log_metrics({"m": 1.0})
try:
    sys.exit(3)
except BaseException as error:
    release(error)
    raise
"""
    (run_id,) = run_program(body, code=3)
    assert ended_as(client, run_id) == ("FAILED", 1, "SystemExit: 3")


@pytest.mark.slow
@pytest.mark.parametrize("ended", [False, True])
def test_a_run_of_start_run_whose_process_died_is_killed_by_sync(
    client: MlflowClient, experiment: str, ended: bool
) -> None:
    body = f"""
print(mlflow.start_run().info.run_id, flush=True)
current_run().log_metrics({{"m": 1.0}})
assert current_run().flush(60)
time.sleep(2.5)  # nothing is pending, and it is known all the same that the run is open
if {ended}:
    mlflow.end_run()
os._exit(3)
"""
    (run_id,) = run_program(body, code=3)
    assert ended_as(client, run_id) == ("FINISHED" if ended else "RUNNING", 1, "")
    sync()
    assert ended_as(client, run_id) == ("FINISHED" if ended else "KILLED", 1, "")


@pytest.mark.slow
def test_trainings_are_told_first_and_what_they_hand_in_is_delivered(
    client: MlflowClient, experiment: str
) -> None:
    body = """
run = track(log_system_metrics=False).__enter__()
print(run.run_id, flush=True)
withdraw = process_end.before_the_end(lambda error: print("withdrawn"))
process_end.before_the_end(lambda error: 1 / 0)
process_end.before_the_end(lambda error: print(type(error).__name__, flush=True))
process_end.before_the_end(lambda error: run.log_metrics({"m": 1.0}))
withdraw()
raise KeyError("x")
"""
    run_id, *said = run_program(body, code=1)
    assert said == ["KeyError"]
    assert ended_as(client, run_id) == ("FAILED", 1, "KeyError: 'x'")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("opened", "impatient"), [("track", False), ("start_run", False), ("track", True)]
)
def test_a_dead_server_holds_the_end_up_no_longer_than_the_grace(
    server: str, experiment: str, tmp_path: Path, opened: str, impatient: bool
) -> None:
    """The time limit is the assertion: MLflow by itself would ask for minutes for each.

    A Ctrl-C ends the waiting, and nothing else.
    """
    home = tmp_path / "home"
    opening = {
        "track": "runs = [track(log_system_metrics=False).__enter__()]\n"
        "runs += [runs[0].child(str(n)).__enter__() for n in range(5)]",
        "start_run": "runs = []\n"
        "for n in range(6): mlflow.start_run(nested=True); runs.append(current_run())",
    }[opened]
    body = f"""
from tests.faults.proxy import FaultyProxy, Rule
proxy = FaultyProxy({server!r})
proxy.open()
os.environ.pop("MLFLOW_EXPERIMENT_ID")
mlflow.set_tracking_uri(proxy.address)
{opening}
for run in runs:
    run.log_metrics({{"m": 1.0}})
    assert run.flush(60)
    print(run.run_id, flush=True)
proxy.inject(Rule("503"))
for run in runs:
    run.log_metrics({{"m": 2.0}}, step=1)
if {impatient}:
    def interrupt():
        while not process_end.has_begun(): time.sleep(0.01)
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt, daemon=True).start()
raise RuntimeError("the script fails")
"""
    run_ids = run_program(body, code=1, MLFLOW_KERAS_ADV_HOME=str(home))
    logs = list((home / "journals").glob("*/*.log"))
    assert len(logs) == 6
    assert all(b"FAILED" in log.read_bytes() for log in logs)
    client = MlflowClient(server)
    statuses = [client.get_run(run_id).info.status for run_id in run_ids]
    assert statuses == ["RUNNING"] * 6


@pytest.mark.slow
def test_a_generator_that_is_dropped_ends_its_run_whenever_that_is(
    client: MlflowClient, experiment: str
) -> None:
    body = """
def epochs():
    with track(log_system_metrics=False) as run:
        print(run.run_id, flush=True)
        for step in range(10):
            try:
                yield run.log_metrics({"m": step}, step=step)
            finally:
                run.log_metrics({"late": 1.0})
dropped = epochs(); next(dropped); del dropped
kept = epochs(); next(kept)
raise RuntimeError("the script fails")
"""
    dropped, kept = run_program(body, code=1)
    assert ended_as(client, dropped) == ("FINISHED", 1, "")
    assert ended_as(client, kept) == ("FAILED", 1, "RuntimeError: the script fails")


@pytest.mark.slow
def test_a_block_in_a_thread_that_is_cut_off_is_killed(
    client: MlflowClient, experiment: str
) -> None:
    body = """
entered = threading.Event()
def work():
    with track(log_system_metrics=False) as run:
        run.log_metrics({"m": 1.0})
        print(run.run_id, flush=True)
        entered.set()
        time.sleep(300)
threading.Thread(target=work, daemon=True).start()
entered.wait()
"""
    (run_id,) = run_program(body)
    assert ended_as(client, run_id) == ("KILLED", 1, "")


@pytest.mark.slow
def test_a_forked_child_ends_nothing_of_its_parent(client: MlflowClient, experiment: str) -> None:
    body = """
import warnings; warnings.simplefilter("ignore")
def fork(leave):
    child = os.fork()
    if child == 0:
        current_run().log_metrics({"m": 1.0}, step=len(statuses) + 1)
        leave()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    statuses.append(mlflow.get_run(run.run_id).info.status)
statuses = []
with track(log_system_metrics=False) as run:
    print(run.run_id, flush=True)
    run.log_metrics({"m": 1.0})
    assert run.flush(60)
    fork(lambda: sys.exit(7))
    try:
        fork(lambda: 1 / 0)
    except ZeroDivisionError:
        os._exit(7)
print(*statuses, flush=True)
"""
    run_id, *statuses = run_program(body)
    assert statuses == ["RUNNING", "RUNNING"]
    assert ended_as(client, run_id)[0] == "FINISHED"


@pytest.mark.slow
def test_what_is_handed_in_when_the_interpreter_is_half_gone_waits_for_nobody(
    client: MlflowClient, experiment: str
) -> None:
    """A run that is nobody's: no thread is at work, and none can be started any more."""
    body = f"""
from mlflow_keras_adv.tracking.run import attach_run
run = attach_run({client.create_run(experiment).info.run_id!r})
print(run.run_id, flush=True)
class Late:
    def __init__(self):
        self.run = run
    def __del__(self):
        self.run.log_metrics({{"m": 1.0}})
        print(self.run.flush(), self.run.receipt.pending, flush=True)
late = Late()
"""
    run_id, *said = run_program(body)
    assert said == ["False", "1"]
    sync()
    assert ended_as(client, run_id) == ("RUNNING", 1, "")

"""Where the locks, forks and priorities of POSIX are not, a run is recorded and delivered as ever.

No Windows is here: what it lacks is taken away, and its one function of locks is played by POSIX'.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_keras_adv.compat import system

WITHOUT_POSIX = """
import fcntl, os, subprocess, sys, types
posix_lock = fcntl.lockf
def locking(descriptor, mode, size):
    posix_lock(descriptor, mode)
msvcrt = types.ModuleType("msvcrt")
msvcrt.LK_NBLCK, msvcrt.locking = fcntl.LOCK_EX | fcntl.LOCK_NB, locking
sys.modules |= {"fcntl": None, "msvcrt": msvcrt}
for name in ("register_at_fork", "nice", "fork", "getuid"):
    delattr(os, name)
from mlflow_keras_adv.compat import system
system.hands_on_pipes = lambda: False
"""


def run(program: str) -> str:
    command = [sys.executable, "-c", WITHOUT_POSIX + textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_with_many_values_is_recorded(client: MlflowClient, experiment: str) -> None:
    run_id = run("""
        import numpy as np, subprocess
        def refused(*arguments, **named):
            assert "pass_fds" not in named, "no process is handed a pipe"
            return popen(*arguments, **named)
        popen, subprocess.Popen = subprocess.Popen, refused
        from mlflow_keras_adv.tracking.run import track
        steps = np.arange(1, 8001)
        with track("no posix", log_system_metrics=False) as run:
            for _ in range(2):
                run.log_series({"m": steps * 1.0}, steps=steps, timestamps_ms=steps)
                run.flush(60)
        print(run.run_id)
    """).split()[-1]
    assert len(client.get_metric_history(run_id, "m")) == 8000
    assert client.get_run(run_id).info.status == "FINISHED"


def test_what_is_left_is_found_and_delivered(
    client: MlflowClient, experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(tmp_path))
    run_id = run("""
        import os
        from mlflow_keras_adv.tracking.run import track
        from mlflow_keras_adv.tracking import delivery
        delivery.Delivery.send = lambda *_, **__: (_ for _ in ()).throw(ConnectionError("away"))
        run = track("left", log_system_metrics=False).__enter__()
        run.log_metrics({"m": 1.0}, step=1)
        run.flush(1)
        print(run.run_id, flush=True)
        os._exit(0)
    """).split()[-1]
    run("""
        from mlflow_keras_adv.cli import main
        main(["sync"], standalone_mode=False)
    """)
    assert [each.value for each in client.get_metric_history(run_id, "m")] == [1.0]


@pytest.mark.parametrize("road", ["posix", "windows"])
def test_a_file_is_locked_for_one_process(road: str, tmp_path: Path) -> None:
    before = "" if road == "posix" else WITHOUT_POSIX
    tries = before + textwrap.dedent("""
        import sys
        from mlflow_keras_adv.compat import system
        try:
            with open(sys.argv[1], "ab") as file:
                system.lock(file)
                print("locked")
        except OSError:
            print("refused")
    """)

    def another() -> str:
        done = subprocess.run(
            [sys.executable, "-c", tries, str(tmp_path / "lock")],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout.strip()

    with (tmp_path / "lock").open("ab") as file:
        system.lock(file)
        assert another() == "refused"
    assert another() == "locked"


def test_a_forked_child_forgets() -> None:
    told, tell = os.pipe()
    system.after_fork_in_child(lambda: os.write(tell, b"x"))
    done = subprocess.run([sys.executable, "-c", "pass"], check=True)  # no fork of Python's own
    assert done.returncode == 0
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(told, 10) == b"x"

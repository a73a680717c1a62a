"""Workers on this machine that train one model together, as several machines would.

Each is a process of its own. `TF_CONFIG` tells it the addresses of all and which of them it is,
which is all that `tf.distribute.MultiWorkerMirroredStrategy` asks for.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mlflow_keras_adv.errors import UserError

STOP_SECONDS = 30.0
_LINES = 5  # of what a worker has printed last


def on_local_workers(
    function: Callable[..., Any],
    *,
    workers: int,
    arguments: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
) -> list[Any]:
    """Calls a function in each of several processes of one cluster, and waits for all of them.

    A worker that fails ends the others. The cores are divided among them.

    Args:
        function: A function of a module that can be imported, also of the one that is run by
            `python -m`. It has to make its strategy before anything else of TensorFlow.
        workers: How many processes, 1 or more.
        arguments: Its arguments by name, as JSON can have them.
        environment: Variables for all of them, beside those of this process.

    Returns:
        What it has returned in each of them, as JSON can have it.

    Raises:
        UserError: A worker fails.
        ValueError: `workers` is below 1.
    """
    if workers < 1:
        raise ValueError(f"Received workers={workers}. Expected 1 or more.")
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    shared = {"TF_NUM_INTRAOP_THREADS": threads, "OMP_NUM_THREADS": threads}
    shared |= {**os.environ, **(environment or {})}
    cluster = {"worker": _addresses(workers)}
    call = json.dumps([_module_of(function), function.__name__, dict(arguments)])
    with tempfile.TemporaryDirectory() as folder, ExitStack() as files:
        answers = [Path(folder, f"{index}.json") for index in range(workers)]
        outputs = [Path(folder, f"{index}.txt") for index in range(workers)]
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for index in range(workers):
                task = {"cluster": cluster, "task": {"type": "worker", "index": index}}
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", __spec__.name, call, str(answers[index])],
                        env={**shared, "TF_CONFIG": json.dumps(task)},
                        stdout=files.enter_context(outputs[index].open("wb")),
                        stderr=subprocess.STDOUT,
                    )
                )
            failed = _first_that_fails(processes)
        finally:
            _stop(processes)
        if failed is not None:
            said = outputs[failed].read_text(errors="replace").strip().splitlines()[-_LINES:]
            code = processes[failed].returncode
            raise UserError("\n".join([f"Worker {failed} ended with {code}. It said last:", *said]))
        return [json.loads(answer.read_text()) for answer in answers]


def _addresses(count: int) -> list[str]:
    """Free addresses on this machine."""
    with ExitStack() as taken:
        sockets = [taken.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def _module_of(function: Callable[..., Any]) -> str:
    """Where a function can be imported from."""
    if function.__module__ == "__main__":
        return str(sys.modules["__main__"].__spec__.name)  # type: ignore[union-attr]
    return function.__module__


def _first_that_fails(processes: Sequence["subprocess.Popen[bytes]"]) -> int | None:
    """Waits until all have ended, or one has failed: its number."""
    while True:
        codes = [process.poll() for process in processes]
        for index, code in enumerate(codes):
            if code:
                return index
        if None not in codes:
            return None
        time.sleep(0.05)


def _stop(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    module, name, own = json.loads(sys.argv[1])
    answer = getattr(importlib.import_module(module), name)(**own)
    Path(sys.argv[2]).write_text(json.dumps(answer))

"""One search in several processes of this machine: Keras Tuner's chief, and its workers."""

import logging
import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence

from mlflow_keras_adv.errors import UserError

STOP_SECONDS = 30.0
# Keras Tuner's chief looks every 20 s whether all have left.
CHIEF_SECONDS = 60.0

_logger = logging.getLogger(__name__)


def search_in_processes(
    command: Sequence[str],
    *,
    workers: int,
    restarts: int = 2,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Starts a chief and workers, and waits until the search is over.

    All of them run the same command; it builds the tuner, in a folder that they share and without
    `overwrite`, and calls its `search`. The variables that Keras Tuner reads give each its role:
    KERASTUNER_TUNER_ID, KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT. The cores are divided
    among the workers, unless TF_NUM_INTRAOP_THREADS is set.

    A worker that dies is started again and repeats its trial. The chief checks every 20 seconds
    whether all workers have left, so the end may take as long.

    Args:
        command: The command of each process.
        workers: How many workers, 1 or more.
        restarts: How often one worker is started again.
        environment: Variables for all processes, beside those of this one.

    Raises:
        UserError: The chief fails, or a worker fails more often than `restarts`.
        ValueError: `workers` is below 1.
    """
    if workers < 1:
        raise ValueError(f"Received workers={workers}. Expected 1 or more.")
    shared = {**os.environ, **(environment or {})} | {
        "KERASTUNER_ORACLE_IP": "127.0.0.1",
        "KERASTUNER_ORACLE_PORT": str(_free_port()),
    }
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    of_workers = {"TF_NUM_INTRAOP_THREADS": threads, "OMP_NUM_THREADS": threads} | shared
    # Of `mlflow run`: the chief nests its run in it, a worker opens runs in the chief's.
    of_workers.pop("MLFLOW_RUN_ID", None)

    def start(name: str) -> subprocess.Popen[bytes]:
        found = shared if name == "chief" else of_workers
        return subprocess.Popen(command, env=found | {"KERASTUNER_TUNER_ID": name})

    processes: dict[str, subprocess.Popen[bytes]] = {}
    restarted: dict[str, int] = {}
    try:
        for name in ("chief", *(f"worker-{number}" for number in range(workers))):
            processes[name] = start(name)
        leaving: float | None = None  # since when the chief is alone
        while processes:
            time.sleep(0.1)
            for name, process in list(processes.items()):
                code = process.poll()
                if code == 0 or (code is not None and "chief" not in processes):
                    del processes[name]
                elif code is not None:
                    restarted[name] = restarted.get(name, 0) + 1
                    if name == "chief" or restarted[name] > restarts:
                        raise UserError(_failure(name, f"ended with {code}"))
                    _logger.warning("%s ended with %s and is started again.", name, code)
                    processes[name] = start(name)
            if processes.keys() == {"chief"}:
                leaving = leaving or time.monotonic()
                if time.monotonic() - leaving > CHIEF_SECONDS:
                    raise UserError(_failure("chief", "does not end"))
    finally:
        _stop(processes)


def _failure(name: str, what: str) -> str:
    return (
        f"The search has stopped: its process {name} {what}. What it printed says why; in the same "
        "folder the search can be continued."
    )


def _stop(processes: Mapping[str, "subprocess.Popen[bytes]"]) -> None:
    """Workers first: they end their runs while the chief still answers."""
    for name in sorted(processes, reverse=True):
        process = processes[name]
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

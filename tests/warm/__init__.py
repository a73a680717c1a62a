"""`python`, `mlflow` and `mlflow-keras-adv` for tests, without the seconds that imports take.

A new interpreter needs about eight seconds of processor time for TensorFlow, Keras and MLflow. The
commands in `bin/` ask a server that has imported them, and nothing of ours, to fork a process: with
the arguments, the folder, the environment and the files of the command, whose end, exit code and
signals are the process' own. Its process id is another. What a test wants to see of an import, of
process ids, groups or capabilities is not for it: `sys.executable` is the way there.
"""

import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BIN = Path(__file__).parent / "bin"
PYTHON = str(BIN / "python")
VARIABLE = "WARM_PYTHON"  # the address of the server


@contextmanager
def warm_server(folder: Path) -> Iterator[None]:
    """The server of the commands in `bin/`; starts when the first of them asks.

    Args:
        folder: Where its address is.
    """
    address, started = str(folder / "socket"), []
    ended, end = os.pipe()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(64)

        def start_when_asked() -> None:
            asked, _, _ = select.select([listening.fileno(), ended], [], [])
            if ended not in asked:
                started.append(_start(listening.fileno()))

        thread = threading.Thread(target=start_when_asked, daemon=True)
        thread.start()
        os.environ[VARIABLE] = address
        try:
            yield
        finally:
            del os.environ[VARIABLE]
            os.close(end)
            thread.join()
            os.close(ended)
    for process in started:
        process.communicate(timeout=60)  # the end of its standard input is its sign to end


def _start(listening: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("server.py")), str(listening)],
        stdin=subprocess.PIPE,
        pass_fds=[listening],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )

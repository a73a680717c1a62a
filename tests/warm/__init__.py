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
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

BIN = Path(__file__).parent / "bin"
PYTHON = str(BIN / "python")
VARIABLE = "WARM_PYTHON"  # the address of the server


class WarmServer(AbstractContextManager["WarmServer"]):
    """The server of the commands in `bin/`; starts when the first of them asks.

    Args:
        folder: Where its address is.
    """

    def __init__(self, folder: Path) -> None:
        self._address = str(folder / "socket")
        self._process: subprocess.Popen[bytes] | None = None
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(self._address)
        self._listening.listen(64)
        self._ended, self._end = os.pipe()
        self._thread = threading.Thread(target=self._start_when_asked, daemon=True)

    def __enter__(self) -> "WarmServer":
        os.environ[VARIABLE] = self._address
        self._thread.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._end)
        self._thread.join()
        os.close(self._ended)
        self._listening.close()
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()  # its sign to end
            self._process.wait(60)
        del os.environ[VARIABLE]

    def _start_when_asked(self) -> None:
        asked, _, _ = select.select([self._listening, self._ended], [], [])
        if self._ended in asked:
            return
        descriptor = self._listening.fileno()
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py")), str(descriptor)],
            stdin=subprocess.PIPE,
            pass_fds=[descriptor],
            env=kept,
        )

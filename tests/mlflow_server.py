"""A real `mlflow server` on loopback, which can be killed and started again on the same port."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

# Of the interpreter whose MLflow serves: in the matrix of versions, that of an older environment.
SERVER_PYTHON = os.environ.get("MLFLOW_SERVER_PYTHON", sys.executable)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Blocks until `url` answers 200, or fails if the process ends first."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, f"{process.args} ended with {process.returncode}"
        try:
            if requests.get(url, timeout=2).status_code == 200:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"{url} did not answer within {seconds} s")


class MlflowServer:
    """A server with a store and artifacts of its own, which outlive its process.

    Args:
        folder: For the store, the artifacts and the log.
        options: More options of `mlflow server`.
        environment: More variables.
        database: The store, if it is not to be an sqlite file.
        artifacts: Where the artifacts are, if that is not to be a folder.

    Attributes:
        address: Its address. The port stays the same from start to start.
        database: Its store, for reading behind its back.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        environment: Mapping[str, str] | None = None,
        database: str | None = None,
        artifacts: str | None = None,
    ) -> None:
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        self.database = database or f"sqlite:///{folder / 'mlflow.db'}"
        self._folder = folder
        self._command = [SERVER_PYTHON, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        self._command += ["--port", str(port), "--workers", "1", *options]
        self._command += ["--backend-store-uri", self.database]
        self._command += ["--artifacts-destination", artifacts or str(folder / "artifacts")]
        self._environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
        self._environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # eight idle processes
        self._environment |= environment or {}
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Starts the processes, and does not wait until they answer."""
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a process group of its own, to be killed as one
            )

    def wait(self) -> None:
        """Waits until it answers."""
        assert self._process is not None
        wait_until_healthy(f"{self.address}/health", self._process)

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        self.launch()
        self.wait()

    def kill(self) -> None:
        """`kill -9` to it and its workers: no connection is closed in peace."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ends it in peace, if it runs."""
        self._end(signal.SIGTERM)

    @property
    def runs(self) -> bool:
        """Whether it was started, and nobody has ended it."""
        return self._process is not None

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to it and its workers."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, number)
            try:
                self._process.wait(timeout=30)
            finally:
                self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Any:
        self.stop()

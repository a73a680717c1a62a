"""Stores for the runs that are measured: their points are a load, and no result."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import mlflow
import requests
from mlflow import MlflowClient

import mlflow_keras_adv as mka
from mlflow_keras_adv.errors import UserError

START_SECONDS = 120
# Its artifacts are in the scratch store too; those of the default one would be in this folder.
EXPERIMENT = "measured"
CHOICES = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")


@contextmanager
def scratch_store(kind: Literal["sqlite", "http"]) -> Iterator[str]:
    """An empty store in a temporary folder, deleted at the end.

    Args:
        kind: `sqlite`, a file; or `http`, a server on a free port of the loopback interface.

    Yields:
        Its tracking URI.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        if kind == "sqlite":
            MlflowClient(uri).create_experiment(EXPERIMENT, (folder / "artifacts").as_uri())
            yield uri
        else:
            with _server(folder, uri) as address:
                MlflowClient(address).create_experiment(EXPERIMENT)
                yield address


@contextmanager
def tracking_in(uri: str) -> Iterator[None]:
    """Makes `uri` the store that MLflow uses, and puts back what was chosen before."""
    found = {name: os.environ.pop(name, None) for name in CHOICES}
    os.environ |= {"MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_NAME": EXPERIMENT}
    try:
        yield
    finally:
        for name in CHOICES:
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in found.items() if value is not None})


@contextmanager
def scratch_run() -> Iterator[mlflow.ActiveRun]:
    """A run of the scratch store, active in this thread, delivered at the end.

    The store is deleted then, and what it had not taken would stay in a journal for good.
    """
    with mlflow.start_run(log_system_metrics=False) as run:
        yield run
        ours = mka.current_run()
        assert ours is not None
        ours.flush()


@contextmanager
def _server(folder: Path, store: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port]
    command += ["--workers", "1", "--backend-store-uri", store]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "server.log").open("wb") as log:
        # In a process group of its own, with its workers: Ctrl-C is for us, and we stop them all.
        server = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _wait_for(address, server, folder / "server.log")
            yield address
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def _wait_for(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            if requests.get(f"{address}/health", timeout=2).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.2)
    raise UserError(
        f"The server for the measurement did not start within {START_SECONDS} s. Try "
        f"store=sqlite. The last it said: {log.read_text()[-500:]}"
    )

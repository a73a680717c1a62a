"""One real sqlite store, one real `mlflow server`, shared by the whole session."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_ENABLE_ASYNC_LOGGING"] = "false"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("MPLBACKEND", "Agg")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs deaf to Ctrl-C, and our child processes would be so too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
for inherited in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
    os.environ.pop(inherited, None)

import mlflow
import pytest
import requests

from tests.mlflow_run import Recorded, copy_project, mlflow_run

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The session's sqlite store: a fresh one takes seconds, an experiment in it milliseconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    os.environ["MLFLOW_TRACKING_URI"] = uri  # read at every call, inherited by child processes
    return uri


@pytest.fixture
def client(store: str) -> mlflow.MlflowClient:
    """Reads back what landed."""
    return mlflow.MlflowClient()


Curves = dict[str, dict[int, float]]


@pytest.fixture
def curves(client: mlflow.MlflowClient) -> Callable[[str], Curves]:
    """Reads every metric of a run: value by step, by key. No step may have been logged twice."""

    def read(run_id: str) -> Curves:
        found: Curves = {}
        for key in client.get_run(run_id).data.metrics:
            history = client.get_metric_history(run_id, key)
            found[key] = {point.step: point.value for point in history}
            assert len(found[key]) == len(history), f"{key} holds a step twice"
        return found

    return read


@pytest.fixture
def experiment(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> Iterator[str]:
    """An experiment of the test's own, chosen as a user would: by MLflow's variable."""
    name = f"{request.node.name}-{time.monotonic_ns()}"
    experiment_id = mlflow.MlflowClient().create_experiment(name, (tmp_path / "artifacts").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment_id)
    yield experiment_id
    while mlflow.active_run() is not None:
        mlflow.end_run()


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


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real `mlflow server` on loopback, with a store of its own."""
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # eight processes of no use here
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            wait_until_healthy(f"{address}/health", process)
            yield address
        finally:
            process.terminate()
            process.wait(timeout=30)


@pytest.fixture(scope="session")
def distill_store(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """What `mlflow run . -e distill` leaves in a folder of its own, after two short epochs."""
    folder = copy_project(tmp_path_factory.mktemp("distill"))
    parameters = ("epochs=2", "temperature=3", "lr=1e-3")
    sampling = {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1"}  # seconds, not the default 10
    return Recorded(folder, mlflow_run(folder, *parameters, **sampling))

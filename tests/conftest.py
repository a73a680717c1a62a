"""One real sqlite store, one real `mlflow server`, shared by the whole session."""

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
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
from werkzeug.security import generate_password_hash

from mlflow_keras_adv.tracking import sender_process
from tests.compression import page as topologies
from tests.faults.table import rows_of, write
from tests.kinds import page as kinds
from tests.lock_holders import lock_holders
from tests.machines import page as machines
from tests.mlflow_run import Recorded, copy_project, mlflow_run
from tests.mlflow_server import MlflowServer
from tests.peers import page as peers
from tests.warm import warm_server

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The session's sqlite store: a fresh one takes seconds, an experiment in it milliseconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    os.environ["MLFLOW_TRACKING_URI"] = uri  # read at every call, inherited by child processes
    os.environ["MLFLOW_KERAS_ADV_HOME"] = str(tmp_path_factory.mktemp("home"))
    return uri


@pytest.fixture(scope="session", autouse=True)
def warm_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the commands of `tests.warm` ask."""
    with warm_server(tmp_path_factory.mktemp("warm")):
        yield


@pytest.fixture(autouse=True)
def no_sender_process() -> Iterator[None]:
    """Each test begins as a process does: what it sends is sent by itself at first."""
    yield
    sender_process.end_all()


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


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real `mlflow server` on loopback, with a store of its own."""
    with MlflowServer(tmp_path_factory.mktemp("server")) as running:
        yield running.address


@dataclass(frozen=True)
class Guarded:
    """A server that asks for a login, and two of them: the second may only read."""

    address: str
    administrator: tuple[str, str]
    reader: tuple[str, str]

    def permit_writing(self, permitted: bool) -> None:
        """Gives the reader the right to write to the default experiment, or takes it back."""
        grant = {"username": self.reader[0], "resource_type": "experiment", "resource_id": "0"}
        requests.post(
            f"{self.address}/api/3.0/mlflow/users/permissions/{'grant' if permitted else 'revoke'}",
            json={**grant, "permission": "EDIT"} if permitted else grant,
            auth=self.administrator,
            timeout=60,
        ).raise_for_status()


@pytest.fixture(scope="session")
def guarded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A real `mlflow server --app-name basic-auth` with a store of its own."""
    administrator, reader = ("admin", "may-do-all-of-it"), ("reader", "may-only-read-it")
    environment = {
        "MLFLOW_AUTH_ADMIN_PASSWORD": administrator[1],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of the tests",
    }
    folder = tmp_path_factory.mktemp("guarded")
    with MlflowServer(folder, "--app-name", "basic-auth", environment=environment) as running:
        requests.post(
            f"{running.address}/api/2.0/mlflow/users/create",
            json=dict(zip(("username", "password"), reader, strict=True)),
            auth=administrator,
            timeout=60,
        ).raise_for_status()
        # Each request pays for the hash of its password, which is slow for good reason elsewhere.
        with closing(sqlite3.connect(folder / "basic_auth.db")) as logins:
            for name, password in (administrator, reader):
                cheap = generate_password_hash(password, "pbkdf2:sha256:1")
                logins.execute(
                    "UPDATE users SET password_hash = ? WHERE username = ?", (cheap, name)
                )
            logins.commit()
        yield Guarded(running.address, administrator, reader)


@pytest.fixture(scope="session")
def distill_store(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """What `mlflow run . -e distill` leaves in a folder of its own, after two short epochs."""
    folder = copy_project(tmp_path_factory.mktemp("distill"))
    parameters = ("epochs=2", "temperature=3", "lr=1e-3")
    sampling = {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1"}  # seconds, not the default 10
    return Recorded(folder, mlflow_run(folder, *parameters, **sampling))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options that write the tables, and pictures of what a browser shows."""
    parser.addoption("--faults-table", type=Path, help="page to write the table of faults to")
    parser.addoption("--peers-table", type=Path, help="page to write the table of peers to")
    parser.addoption("--topologies-table", type=Path, help="page to write the table of nets to")
    parser.addoption("--models-table", type=Path, help="page to write the table of kinds to")
    parser.addoption("--machines-table", type=Path, help="page to write the table of ranks to")
    parser.addoption("--screenshots", type=Path, help="folder to keep screenshots in")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Says, of a test that fails because the store is locked, who holds it."""
    report = yield
    if call.excinfo is not None and "database is locked" in str(call.excinfo.value):
        database = Path(os.environ.get("MLFLOW_TRACKING_URI", "").removeprefix("sqlite:///"))
        if database.is_file():
            report.sections.append(("who holds the store", lock_holders(database)))
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the tables whose page is named and of which the tests have measured something."""
    page = session.config.getoption("--faults-table")
    if page is not None and (rows := rows_of(session.config)):
        write(page, rows)
    page = session.config.getoption("--peers-table")
    if page is not None and (peer_rows := peers.rows_of(session.config)):
        peers.write(page, peer_rows)
    page = session.config.getoption("--topologies-table")
    if page is not None and (net_rows := topologies.rows_of(session.config)):
        topologies.write(page, net_rows)
    page = session.config.getoption("--models-table")
    if page is not None and (cells := kinds.cells_of(session.config)):
        kinds.write(page, cells)
    page = session.config.getoption("--machines-table")
    if page is not None and (ranks := machines.rows_of(session.config)):
        machines.write(page, ranks)

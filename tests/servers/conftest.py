"""What teams have: an `mlflow server` in front of PostgreSQL or MariaDB, its artifacts on S3."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest

from tests.faults.proxy import FaultyProxy
from tests.mlflow_server import MlflowServer, free_port, wait_until_healthy
from tests.servers.databases import mariadb, postgresql, program

BUCKET = "team"
LOGIN = {
    "AWS_ACCESS_KEY_ID": "of-the-tests",
    "AWS_SECRET_ACCESS_KEY": "of the tests",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def _require(*needed: str, modules: tuple[str, ...] = ()) -> None:
    """Skips a test, with the reason, where programs or modules are not installed."""
    missing = [name for name in needed if program(name) is None]
    missing += [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(
            f"{', '.join(missing)} not installed: apt-get install postgresql mariadb-server, "
            "pip install -e '.[test]'"
        )


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyProxy]:
    """An S3 server with one bucket, behind a proxy that can be closed like a store that is away."""
    _require(modules=("moto", "boto3"))
    import boto3

    port = free_port()
    with (tmp_path_factory.mktemp("s3") / "log").open("wb") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | LOGIN)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_healthy(f"{address}/moto-api/", process)
            names = ("aws_access_key_id", "aws_secret_access_key", "region_name")
            login = dict(zip(names, LOGIN.values(), strict=True))
            client = boto3.client("s3", endpoint_url=address, **login)  # type: ignore[call-overload]
            client.create_bucket(Bucket=BUCKET)
            client.close()
            proxy = FaultyProxy(address)
            proxy.open()
            yield proxy
            proxy.close()
        finally:
            process.terminate()
            process.wait(timeout=60)


@dataclass(frozen=True)
class Team:
    """A tracking server and what stands behind it.

    Attributes:
        name: Of the database.
        address: Of the tracking server.
        s3: In front of the store of its artifacts.
    """

    name: str
    address: str
    s3: FaultyProxy


def _team(
    name: str, database: AbstractContextManager[str], s3: FaultyProxy, folder: Path
) -> Iterator[Team]:
    environment = LOGIN | {"MLFLOW_S3_ENDPOINT_URL": s3.address, "AWS_MAX_ATTEMPTS": "1"}
    with (
        database as uri,
        MlflowServer(
            folder,
            environment=environment,
            database=uri,
            artifacts=f"s3://{BUCKET}/{name}",
        ) as server,
    ):
        yield Team(name, server.address, s3)


@pytest.fixture(scope="session")
def team_on_postgresql(tmp_path_factory: pytest.TempPathFactory, s3: FaultyProxy) -> Iterator[Team]:
    _require("initdb", "postgres", "pg_isready", modules=("psycopg2",))
    yield from _team("postgresql", postgresql(), s3, tmp_path_factory.mktemp("postgresql"))


@pytest.fixture(scope="session")
def team_on_mariadb(tmp_path_factory: pytest.TempPathFactory, s3: FaultyProxy) -> Iterator[Team]:
    _require("mariadb-install-db", "mariadbd", modules=("pymysql",))
    yield from _team("mariadb", mariadb(), s3, tmp_path_factory.mktemp("mariadb"))


@pytest.fixture(params=["postgresql", "mariadb"])
def team(request: pytest.FixtureRequest) -> Team:
    made: Team = request.getfixturevalue(f"team_on_{request.param}")
    return made


@pytest.fixture(autouse=True)
def as_one_of_the_team(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, s3: FaultyProxy
) -> Iterator[None]:
    """The environment of who works with these servers, and journals of the test's own."""
    for name, value in LOGIN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", s3.address)
    monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(tmp_path / "home"))
    yield
    s3.inject()
    s3.close()
    s3.open()


@pytest.fixture(params=["proxied", "direct"])
def artifacts(request: pytest.FixtureRequest) -> str:
    """Who uploads: the tracking server, or the trainer itself."""
    return str(request.param)


@pytest.fixture
def project(
    team: Team, artifacts: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Team:
    """A team with an experiment for the test, which is chosen by MLflow's variables."""
    name = request.node.name
    place = f"s3://{BUCKET}/direct/{team.name}" if artifacts == "direct" else None
    experiment_id = mlflow.MlflowClient(team.address).create_experiment(name, place)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", team.address)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment_id)
    return team

"""Programs over a durable address: the record is the one that they make over the plain one."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import fluent

from mlflow_keras_adv.durable.store import DurableStore, open_store
from mlflow_keras_adv.tracking.run import track
from tests.durable.programs import PROGRAMS, Program
from tests.durable.record import differing, record_of
from tests.mlflow_server import MlflowServer


@dataclass(frozen=True)
class Stores:
    """Two stores of one kind: one that is written to as ever, one by a durable address."""

    plain: str
    behind: str

    @property
    def durable(self) -> str:
        return f"durable+{self.behind}"


@pytest.fixture(scope="module", params=["sqlite", "http"])
def stores(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stores]:
    folders = [tmp_path_factory.mktemp(name) for name in ("plain", "durable")]
    if request.param == "sqlite":
        yield Stores(*(f"sqlite:///{folder / 'mlflow.db'}" for folder in folders))
        return
    servers = [MlflowServer(folder) for folder in folders]
    for server in servers:
        server.launch()
    try:
        for server in servers:
            server.wait()
        yield Stores(*(server.address for server in servers))
    finally:
        for server in servers:
            server.stop()


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], MlflowClient]:
    """Has MLflow use a store, in a folder of its own, and gives a plain client of it."""
    monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(tmp_path / "home"))

    def use(uri: str) -> MlflowClient:
        folder = tmp_path / uri.partition(":")[0]
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)  # a sqlite store has its artifacts there
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        return MlflowClient(uri.removeprefix("durable+"))

    return use


@pytest.mark.filterwarnings("ignore:Starting with pandas version 4")  # in MLflow's datasets
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_the_record_is_that_of_the_plain_address(
    stores: Stores, at: Callable[[str], MlflowClient], program: Program, tmp_path: Path
) -> None:
    records = []
    for uri in (stores.plain, stores.durable):
        client = at(uri)
        before = record_of(client)
        program(Path.cwd())
        if uri == stores.durable:
            open_store(uri).bring_up_to_date()
        after = record_of(client)
        records.append({name: each for name, each in after.items() if name not in before})
    plain, durable = records
    assert durable == plain, differing(plain, durable)
    assert plain


CALLS: dict[str, Callable[[MlflowClient, str], object]] = {
    "metric name": lambda client, run_id: client.log_metric(run_id, "a@b", 1.0),
    "metric path": lambda client, run_id: client.log_metric(run_id, "../b", 1.0),
    "metric value": lambda client, run_id: client.log_metric(run_id, "m", "many"),  # type: ignore[arg-type]
    "param name": lambda client, run_id: client.log_param(run_id, "a@b", 1),
    "changed param": lambda client, run_id: client.log_param(run_id, "known", 2),
    "long param": lambda client, run_id: client.log_param(run_id, "long", "x" * 7000),
    "tag name": lambda client, run_id: client.set_tag(run_id, "a@b", "1"),
    "missing tag": lambda client, run_id: client.delete_tag(run_id, "missing"),
    "twice in a batch": lambda client, run_id: client.log_batch(
        run_id, params=[Param("a", "1"), Param("a", "2")]
    ),
    "changed in a batch": lambda client, run_id: client.log_batch(
        run_id, [Metric("never", 1.0, 1, 1)], [Param("known", "2")], [RunTag("t", "v")]
    ),
    "too many": lambda client, run_id: client.log_batch(
        run_id, [Metric("m", 1.0, 1, step) for step in range(1001)]
    ),
    "no such run": lambda client, run_id: client.log_metric("f" * 32, "m", 1.0),
    "no run id": lambda client, run_id: client.log_metric("f", "m", 1.0),
    "no such run to read": lambda client, run_id: client.get_run("f" * 32),
    "no such file": lambda client, run_id: client.log_artifact(run_id, "no such file"),
    "no such experiment": lambda client, run_id: client.create_run("987654321"),
    "known experiment": lambda client, run_id: client.create_experiment("Default"),
    "no such model": lambda client, run_id: client.get_logged_model("m-" + "f" * 32),
    "filter": lambda client, run_id: client.search_runs(["0"], "nonsense"),
    "registry": lambda client, run_id: client.get_registered_model("missing"),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_a_store_refuses_is_refused_at_once_with_its_words(
    stores: Stores, at: Callable[[str], MlflowClient], name: str
) -> None:
    said = []
    for uri in (stores.plain, stores.durable):
        at(uri)
        client = MlflowClient()
        run_id = client.create_run("0").info.run_id
        client.log_param(run_id, "known", 1)
        try:
            CALLS[name](client, run_id)
        except Exception as error:
            text = re.sub(r"\b\d{13}\b", "<time>", str(error)).replace(run_id, "<run>")
            said.append(f"{type(error).__name__}: {text}")
        else:
            said.append("")
        assert "never" not in client.get_run(run_id).data.metrics
        client.set_terminated(run_id)
    plain, durable = said
    assert durable == plain


def test_a_deleted_run_takes_nothing(stores: Stores, at: Callable[[str], MlflowClient]) -> None:
    at(stores.durable)
    client = MlflowClient()
    run_id = client.create_run("0").info.run_id
    client.log_metric(run_id, "m", 1.0)
    client.delete_run(run_id)
    with pytest.raises(MlflowException, match="must be in the 'active' state"):
        client.log_metric(run_id, "m", 2.0)
    client.restore_run(run_id)
    client.log_metric(run_id, "m", 3.0)
    assert client.get_run(run_id).data.metrics == {"m": 3.0}


def test_what_was_written_is_read_by_whoever_reads(
    stores: Stores, at: Callable[[str], MlflowClient]
) -> None:
    plain = at(stores.durable)
    with mlflow.start_run() as run:
        run_id = run.info.run_id
        for step in range(100):
            mlflow.log_metric("m", step, step=step)
        assert mlflow.get_run(run_id).data.metrics == {"m": 99.0}
        for step in range(100, 200):
            mlflow.log_metric("m", step, step=step)
        found = MlflowClient().get_metric_history(run_id, "m")
        assert [point.value for point in found] == list(range(200))
        mlflow.log_metric("m", 200, step=200)
        (row,) = MlflowClient().search_runs(["0"], f"attributes.run_id = '{run_id}'")
        assert row.data.metrics == {"m": 200.0}
        assert plain.get_run(run_id).data.metrics == {"m": 200.0}  # delivered for the search


def test_threads_that_begin_to_write_at_once_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(tmp_path / "home"))
    # Nobody has opened the store: what delivers to it is made for the first value, and takes long.
    uri = f"sqlite:///{tmp_path / 'fresh.db'}"
    client, together = MlflowClient(f"durable+{uri}"), threading.Barrier(8)
    run_id = client.create_run("0").info.run_id

    def write(number: int) -> None:
        together.wait()
        client.log_metric(run_id, f"m{number}", float(number))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    client.set_terminated(run_id)
    plain = MlflowClient(uri)
    assert plain.get_run(run_id).data.metrics == {f"m{number}": number for number in range(8)}
    assert plain.get_run(run_id).data.tags["points.produced"] == "8"


def test_a_run_of_track_has_one_journal_and_one_receipt(
    stores: Stores, at: Callable[[str], MlflowClient]
) -> None:
    plain = at(stores.durable)
    with track("tracked", log_system_metrics=False) as run:
        run.log_metrics({"ours": 1.0}, step=1)
        mlflow.log_metric("theirs", 2.0, step=1)
        mlflow.log_text("theirs", "theirs.txt")
        assert run.tracking_uri == stores.behind
        assert MlflowClient().get_run(run.run_id).data.metrics == {"ours": 1.0, "theirs": 2.0}
    found = plain.get_run(run.run_id)
    assert found.data.tags["points.produced"] == found.data.tags["points.delivered"] == "2"
    assert found.info.status == "FINISHED"


def test_a_model_goes_to_the_registry_and_comes_back(
    stores: Stores, at: Callable[[str], MlflowClient]
) -> None:
    from sklearn.linear_model import LinearRegression

    plain = at(stores.durable)
    fitted = LinearRegression().fit(np.eye(3), [1.0, 2.0, 3.0])
    with mlflow.start_run():
        mlflow.sklearn.log_model(
            fitted, name="line", registered_model_name="line", pip_requirements=["scikit-learn"]
        )
    loaded = mlflow.sklearn.load_model("models:/line/1")
    np.testing.assert_array_equal(loaded.predict(np.eye(3)), fitted.predict(np.eye(3)))
    assert plain.get_model_version("line", "1").status == "READY"


def test_every_method_of_a_store_is_there(tmp_path: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    public = {name for name in dir(SqlAlchemyStore) if not name.startswith("_")}
    store = open_store(f"durable+sqlite:///{tmp_path / 'mlflow.db'}")
    assert isinstance(store, DurableStore)
    assert [name for name in sorted(public) if not hasattr(store, name)] == []


def test_a_run_is_in_the_experiment_that_was_chosen(
    stores: Stores, at: Callable[[str], MlflowClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    at(stores.durable)
    monkeypatch.setattr(fluent, "_active_experiment_id", None)
    for variable in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):  # it sets them
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    name = f"of its own {time.monotonic_ns()}"
    chosen = mlflow.set_experiment(name)
    with mlflow.start_run() as run:
        mlflow.log_metric("m", 1.0)
    assert run.info.experiment_id == chosen.experiment_id
    assert len(mlflow.search_runs(experiment_names=[name])) == 1


@pytest.mark.quick
def test_without_tensorflow_and_keras() -> None:
    program = "import sys, mlflow_keras_adv.durable.artifacts; print(*sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert not set(shown.stdout.split()) & {"tensorflow", "keras", "tf_keras"}


@pytest.mark.parametrize("uri", ["durable+ftp://host", "durable+sqlite://nowhere"])
def test_an_address_that_is_none(uri: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="unsupported URI|sqlite|SQLite|Invalid"):
        MlflowClient(uri).search_experiments()


def test_a_journal_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("a file, no folder")
    monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(tmp_path / "home"))
    with pytest.raises(MlflowException, match="cannot be written.*MLFLOW_KERAS_ADV_HOME"):
        MlflowClient(f"durable+sqlite:///{tmp_path / 'other.db'}")

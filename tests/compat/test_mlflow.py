"""What differs between MLflow's releases, and the names of its that are private: each is there.

The release that is installed is one of them; what another one has is injected.
"""

import logging
import math
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient, environment_variables
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INTERNAL_ERROR
from mlflow.tracking import fluent

import mlflow_keras_adv as mka
from mlflow_keras_adv.compat import mlflow as compat
from mlflow_keras_adv.tracking import store
from mlflow_keras_adv.tracking.writer import RunWriter

NAN = float("nan")


@pytest.fixture
def run_id(client: MlflowClient, experiment: str) -> str:
    return client.create_run(experiment).info.run_id


# Values that a server before 3.16 refuses though it has them


def test_what_a_store_holds_is_told_from_what_it_refuses(
    client: MlflowClient, experiment: str, run_id: str
) -> None:
    model_id = client.create_logged_model(experiment, source_run_id=run_id).model_id
    held = [Metric("a", NAN, 5, 1), Metric("a", 2.0, 5, 2), Metric("b", 1.0, 5, 1, model_id)]
    client.log_batch(run_id, metrics=held)

    def refused(*entities: Any) -> list[int]:
        return compat.refused_though_stored(client, run_id, entities)

    sent = [Param("p", "1"), Metric("a", NAN, 5, 1), Metric("a", NAN, 5, 2), Metric("a", 2.0, 5, 2)]
    assert refused(*sent) == [1]  # of several, only NaN is looked at
    assert refused(Metric("a", 2.0, 5, 2)) == [0]
    assert refused(Metric("a", 2.0, 6, 2)) == []
    assert refused(Metric("b", 1.0, 5, 1, model_id)) == [0]
    assert refused(Metric("a", 2.0, 5, 2, model_id)) == []  # the run has it, the model has not
    assert refused(Param("p", "1")) == []


class OlderServer:
    """`log_batch` of a server before 3.16: all of a batch is refused for one NaN that is there."""

    def __init__(self, client: MlflowClient) -> None:
        self._log = client.log_batch
        self._held: set[tuple[str, int, int]] = set()

    def __call__(self, run_id: str, metrics: Any = (), *rest: Any, **named: Any) -> None:
        nans = [(each.key, each.step, each.timestamp) for each in metrics if math.isnan(each.value)]
        if len(set(nans)) < len(nans) or self._held & set(nans):
            raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed", BAD_REQUEST)
        self._log(run_id, metrics, *rest, **named)
        self._held |= set(nans)


def test_a_value_that_is_sent_again_has_arrived_whatever_the_server_says(
    client: MlflowClient,
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(client, "log_batch", OlderServer(client))
    client.log_batch(run_id, metrics=[Metric("a", NAN, 5, step) for step in range(1, 4)])
    writer = RunWriter(run_id, client)
    with caplog.at_level(logging.WARNING, "mlflow_keras_adv"):
        for _ in range(2):
            for step in range(1, 6):
                values = {"a": NAN if step < 4 else step}
                writer.log_series(
                    {key: [value] for key, value in values.items()},  # type: ignore[dict-item]
                    steps=[step],  # type: ignore[arg-type]
                    timestamps_ms=[5],  # type: ignore[arg-type]
                )
        assert writer.flush(30)
    points = client.get_metric_history(run_id, "a")
    assert sorted((each.step, str(each.value)) for each in points) == [
        *((step, "nan") for step in range(1, 4)),
        *((step, f"{step}.0") for step in (4, 5)),
    ]
    assert not writer.refused
    assert not caplog.records


# A creation whose answer is lost: MLflow's client does not repeat it from 3.18 on


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("arrived", [True, False])
def test_a_run_is_created_once_though_the_first_answer_is_lost(
    arrived: bool,
    nested: bool,
    client: MlflowClient,
    experiment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create, lost = MlflowClient.create_run, []

    def loses_one(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        if lost:
            return create(self, *args, **kwargs)
        lost.append(create(self, *args, **kwargs) if arrived else None)
        raise MlflowException("connection reset", INTERNAL_ERROR)

    with mka.track("parent", log_system_metrics=False) as parent:
        monkeypatch.setattr(MlflowClient, "create_run", loses_one)
        with parent.child("again") if nested else mka.track("again", nested=True) as run:
            run.log_metrics({"m": 1.0}, step=1)
    found = client.search_runs([experiment])
    assert {each.info.run_name: each.info.status for each in found} == {
        "parent": "FINISHED",
        "again": "FINISHED",
    }
    assert len(found) == 2
    assert len(lost) == 1


# Artifacts


@pytest.mark.parametrize("release", ["3.6", "of today"])
def test_a_file_goes_to_a_folder_of_a_model(
    release: str,
    client: MlflowClient,
    experiment: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "a.txt").write_text("hello")
    model_id = client.create_logged_model(experiment).model_id
    if release == "3.6":
        monkeypatch.setattr(client, "log_model_artifact", lambda model_id, local_path: None)
    compat.log_model_artifact(client, model_id, str(tmp_path / "a.txt"), "in/here")
    compat.log_model_artifact(client, model_id, str(tmp_path / "a.txt"), None)
    root = client.get_logged_model(model_id).artifact_location
    folder = Path(mlflow.artifacts.download_artifacts(root, dst_path=str(tmp_path / "down")))
    found = sorted(path.relative_to(folder) for path in folder.rglob("*.txt"))
    assert found == [Path("a.txt"), Path("in/here/a.txt")]


@pytest.mark.parametrize("release", ["3.6.0", mlflow.__version__])
def test_artifacts_go_to_the_store_of_the_client(
    release: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment names another one, as it does while a training is offline."""
    monkeypatch.setattr(mlflow, "__version__", release)
    client = compat.client_of(server)
    run = client.create_run("0").info.run_id
    model = client.create_logged_model("0", source_run_id=run).model_id
    (tmp_path / "a.txt").write_text("hello")
    client.log_text(run, "hello", "b.txt")
    compat.log_model_artifact(client, model, str(tmp_path / "a.txt"), None)
    assert [each.path for each in client.list_artifacts(run)] == ["b.txt"]
    assert [each.path for each in client.list_logged_model_artifacts(model)] == ["a.txt"]


# Other differences


@pytest.mark.parametrize(("allowed", "closed"), [(True, False), (False, True), (None, False)])
def test_the_file_store_is_closed_where_mlflow_closes_it(
    allowed: bool | None, closed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "MLFLOW_ALLOW_FILE_STORE"
    if allowed is None:  # MLflow before 3.13
        monkeypatch.delattr(environment_variables, name, raising=False)
    else:
        monkeypatch.setenv(name, str(allowed).lower())
        if not hasattr(environment_variables, name):
            pytest.skip("this MLflow has no such setting")
    if closed:
        with pytest.raises(mka.UserError, match="a folder of files"):
            store.require_store(tmp_path.as_uri())
    else:
        store.require_store(tmp_path.as_uri())


@pytest.mark.parametrize("separator", ["#", "~"])
def test_the_key_of_an_image_has_its_slashes_in_every_release(separator: str) -> None:
    assert compat.image_key(f"val{separator}grid") == "val/grid"


def test_a_monitor_is_made_with_what_this_mlflow_takes(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Older:
        def __init__(self, run_id: str, resume_logging: bool = False) -> None: ...

    assert set(compat.monitor_arguments(store)) <= {"tracking_uri"}
    compat.SystemMetricsMonitor("0" * 32, **compat.monitor_arguments(store))
    monkeypatch.setattr(compat, "SystemMetricsMonitor", Older)
    assert compat.monitor_arguments(store) == {}


# How often a server is asked


@pytest.fixture
def failing_server() -> Iterator[tuple[str, list[str]]]:
    """The address of a server that fails at everything, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            said = b'{"error_code": "INTERNAL_ERROR", "message": "no space left"}'
            self.send_response(500)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()


def test_a_server_is_asked_once_on_this_thread_and_says_why(
    failing_server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, asked = failing_server
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    client = compat.client_of(address)
    with compat.asking_once(5.0):
        with pytest.raises(MlflowException, match="no space left"):
            client.get_run("0")
        assert len(asked) == 1
        with ThreadPoolExecutor(1) as elsewhere:
            assert elsewhere.submit(client.get_run, "0").exception() is not None
        assert len(asked) == 1 + 3
    with pytest.raises(MlflowException, match="too many 500"):
        client.get_run("0")
    assert len(asked) == 1 + 3 + 3


def test_a_connection_that_the_server_has_closed_is_asked_again_once() -> None:
    """As one that fails at a file before it has read it: the next request finds it closed."""
    said = b'{"experiments": []}'
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        accepted = []

        def serve() -> None:
            for closes in (True, False):
                connection, _ = listening.accept()
                accepted.append(connection.recv(10_000))
                if not closes:
                    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(said)}\r\n\r\n"
                    connection.sendall(head.encode() + said)
                connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        endpoint = "/api/2.0/mlflow/experiments/search"
        assert compat.answer_of_server(address, endpoint, seconds=5.0).status_code == 200
        thread.join()
    assert len(accepted) == 2


# Private names: what breaks here says which of them a release of MLflow has changed


def test_each_private_name_of_mlflow_is_what_it_was(
    client: MlflowClient, experiment: str, store: str
) -> None:
    with mlflow.start_run() as run:
        assert [each.info.run_id for each in compat.active_runs()] == [run.info.run_id]
        assert any(list(each) == [run] for each in compat.active_runs_of_all_threads())
        client.log_metric(run.info.run_id, "m", 1.0, step=7)
    assert list(compat.active_runs()) == []
    found = list(compat.active_runs())
    compat.replace_active_runs(found)
    assert fluent._active_run_stack.get() is found
    compat.note_last_active_run(run.info.run_id)
    last = mlflow.last_active_run()
    assert last is not None
    assert last.info.run_id == run.info.run_id

    (metric,) = compat.last_metrics(client.get_run(run.info.run_id).data)
    assert (metric.key, metric.value, metric.step) == ("m", 1.0, 7)
    (point,) = compat.metric_intervals([run.info.run_id], "m", 10)
    assert (point.run_id, point.step, point.value) == (run.info.run_id, 7, 1.0)

    assert compat.active_experiment_id() == experiment
    assert compat.chosen_experiment_id() is None
    assert compat.chosen_tracking_uri() in (None, store)
    assert compat.monitors() is fluent.run_id_to_system_metrics_monitor


def test_a_store_can_be_built_where_mlflow_builds_one(client: MlflowClient, store: str) -> None:
    built = compat.tracking_store_of(store, None)
    assert built.get_experiment("0").name == "Default"
    name = f"built {time.monotonic_ns()}"
    client.create_registered_model(name)
    assert compat.registry_store_of(store, store).get_registered_model(name).name == name


def test_another_store_stands_in_the_place_of_one_for_mlflows_clients_alone(
    client: MlflowClient, store: str
) -> None:
    class Elsewhere:
        def get_experiment(self, experiment_id: str) -> str:
            return f"{experiment_id} of elsewhere"

    plain = compat.client_of(store)
    with compat.looks_up_stores(
        lambda uri, otherwise: Elsewhere() if uri == store else otherwise()
    ):
        assert client.get_experiment("0") == "0 of elsewhere"
        assert plain.get_experiment("0").name == "Default"
    assert client.get_experiment("0").name == "Default"


def test_what_every_store_refuses_is_known_without_one() -> None:
    metrics, params, tags = compat.checked_batch([Metric("m", 1.0, 1, 1)], [Param("p", "1")], [])
    assert ([each.key for each in metrics], [each.key for each in params]) == (["m"], ["p"])
    assert tags == []
    with pytest.raises(MlflowException, match="Names may only contain"):
        compat.check_metric(Metric("a@b", 1.0, 1, 1))
    with pytest.raises(MlflowException, match="Duplicate parameter keys"):
        compat.checked_batch([], [Param("p", "1"), Param("p", "2")], [])


def test_a_description_of_a_run_changes_in_what_is_said(client: MlflowClient, run_id: str) -> None:
    info = client.get_run(run_id).info
    changed = compat.with_changes(info, status="FAILED", end_time=7)
    assert (changed.status, changed.end_time) == ("FAILED", 7)
    assert dict(compat.with_changes(info)) == dict(info)


@pytest.mark.parametrize(("count", "kept"), [(2, 2), (3, 3), (4, 3)])
def test_a_curve_has_no_more_points_than_asked_for_and_its_ends(count: int, kept: int) -> None:
    curve = compat.picked({step: float(step) for step in reversed(range(count))}, 3)
    assert list(curve) == sorted(curve)
    assert (min(curve), max(curve), len(curve)) == (0, count - 1, kept)

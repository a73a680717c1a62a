import http.client
import math
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    ViewType,
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import (
    BAD_REQUEST,
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    REQUEST_LIMIT_EXCEEDED,
    UNAUTHENTICATED,
)
from urllib3.connectionpool import HTTPConnectionPool

from mlflow_keras_adv.compat.mlflow import client_of
from mlflow_keras_adv.tracking.copy_runs import (
    EXPERIMENT_ID_TAG,
    EXPERIMENT_NAME_TAG,
    Copied,
    copy_runs,
)
from mlflow_keras_adv.tracking.names import UID_TAG
from mlflow_keras_adv.tracking.records_of_run import CONTINUES_TAG

TEST_SET = Dataset(name="digits", digest="d1", source_type="local", source="{}")
NAN = float("nan")


@pytest.fixture(scope="module")
def source_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('offline') / 'offline.db'}"


@pytest.fixture
def source(source_uri: str) -> MlflowClient:
    return MlflowClient(source_uri)


@pytest.fixture
def here(source: MlflowClient, tmp_path: Path, experiment: str) -> str:
    """An experiment of the source whose runs belong to the test's own in the session's store."""
    return source.create_experiment(
        f"offline-{experiment}", (tmp_path / "offline").as_uri(), {EXPERIMENT_ID_TAG: experiment}
    )


class Search:
    """A search with two trials, recorded in the source: all that a run can hold."""

    def __init__(self, source: MlflowClient, experiment_id: str, folder: Path) -> None:
        self.source, self.experiment_id, self.folder = source, experiment_id, folder
        self.name = f"copied-{experiment_id}"
        self.parent = self._run("search", 1000, {})
        self.trials = [
            self._run(f"trial-{i}", 2000 + i, {"mlflow.parentRunId": self.parent}) for i in range(2)
        ]
        self.models = [self._model("baseline", self.trials[0], {})]
        self.models.append(
            self._model("pruned", self.trials[1], {"parent_model_id": self.models[0]})
        )
        self._measure()
        source.set_tag(self.parent, "winner", self.trials[1])
        source.set_tag(self.parent, "model", f"models:/{self.models[1]}, then runs:/{'0' * 32}/x")
        source.log_inputs(self.trials[1], models=[LoggedModelInput(self.models[0])])
        self.version = self._register()
        source.set_terminated(self.parent, "FINISHED", 9000)
        source.set_terminated(self.trials[0], "KILLED", 8000)
        self.run_ids = [*self.trials, self.parent]  # parents last: to be put right

    def _run(self, name: str, start: int, tags: dict[str, str]) -> str:
        tags = {**tags, "mlflow.user": "ann", "mlflow.note.content": f"**{name}**", "seed": "7"}
        run = self.source.create_run(self.experiment_id, start, tags, name)
        run_id = str(run.info.run_id)
        metrics = [Metric("train/loss", 1 / step, 5000 + step, step) for step in range(1, 6)]
        metrics += [Metric("val/loss", NAN, 5000, 1), Metric("val/loss", 0.0, 5000, 1)]
        params = [Param(f"p{i}", str(i)) for i in range(130)]  # more than fit one request
        self.source.log_batch(run_id, metrics, params)
        data = Dataset(name=name, digest="1", source_type="local", source="{}", schema="{}")
        context = InputTag("mlflow.data.context", "training")
        self.source.log_inputs(run_id, [DatasetInput(data, [context])])
        self.source.log_text(run_id, name, "notes.txt")
        self.source.log_text(run_id, "<svg/>", "images/a+step+1.svg")
        return run_id

    def _model(self, name: str, run_id: str, tags: dict[str, str]) -> str:
        params = {f"p{i}": str(i) for i in range(130)}
        model = self.source.create_logged_model(
            self.experiment_id, name, run_id, {**tags, "kind": name}, params, "classifier"
        )
        folder = self.folder / model.model_id
        (folder / "data").mkdir(parents=True)
        (folder / "data" / "weights.bin").write_bytes(bytes(range(256)))
        place = model.artifact_location
        described = Model(artifact_path=place, run_id=run_id, model_id=model.model_id)
        described.save(str(folder / "MLmodel"))
        self.source.log_model_artifacts(model.model_id, str(folder))
        self.source.finalize_logged_model(model.model_id, "READY")
        self.source.log_outputs(run_id, [LoggedModelOutput(model.model_id, 5)])
        return str(model.model_id)

    def _measure(self) -> None:
        """Trial 1 measures its own model, and that of trial 0 too; one value is a NaN."""
        with pytest.MonkeyPatch.context() as patch:
            # MLflow 3.6 takes the experiment of a model's metric from there, not from the run, and
            # looks for it in the current store.
            patch.setenv("MLFLOW_EXPERIMENT_ID", self.experiment_id)
            patch.setenv("MLFLOW_TRACKING_URI", self.source.tracking_uri)
            for model_id, value in zip(self.models, (NAN, 0.9), strict=True):
                metric = Metric("final/accuracy", value, 7000, 0, model_id, "digits", "d1")
                self.source.log_batch(self.trials[1], [metric])
            for model_id in self.models:
                size = Metric("final/size", 1.0, 7000, 0, model_id)
                self.source.log_batch(self.trials[1], [size])

    def _register(self) -> str:
        self.source.create_registered_model(self.name, {"task": "digits"}, "Digits")
        with pytest.MonkeyPatch.context() as patch:
            # MLflow looks for the source of a version in the current store.
            patch.setenv("MLFLOW_TRACKING_URI", self.source.tracking_uri)
            version = self.source.create_model_version(
                self.name,
                f"models:/{self.models[1]}",
                tags={"gate": "passed"},
                description="The best",
                model_id=self.models[1],
            )
            self.source.set_registered_model_alias(self.name, "champion", version.version)
            copy = self.source.copy_model_version(f"models:/{self.name}/1", f"prod.{self.name}")
            assert copy.source == f"models:/{self.name}/1"
        return str(version.version)


@pytest.fixture
def search(source: MlflowClient, here: str, tmp_path: Path) -> Search:
    return Search(source, here, tmp_path / "models")


class Faulty:
    """A client one of whose calls fails: before it is made, or with its answer lost."""

    def __init__(self, client: MlflowClient, at: int, lost: bool) -> None:
        self._client, self._at, self._lost = client, at, lost
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            fails = len(self.calls) == self._at
            if not fails:
                return method(*args, **kwargs)
            if self._lost:
                with suppress(MlflowException):  # that answer, too, is lost
                    method(*args, **kwargs)
            raise ConnectionError("cut")

        return call


def history(client: MlflowClient, run: Run) -> dict[str, list[tuple[int, int, str]]]:
    return {
        key: sorted(
            (point.step, point.timestamp, repr(point.value))
            for point in client.get_metric_history(run.info.run_id, key)
        )
        for key in run.data.metrics
    }


def files(client: MlflowClient, root: str, folder: Path) -> dict[str, bytes]:
    """What lies in an artifact root, read as a user would."""
    uri = client.tracking_uri
    folder = folder / root.replace("/", "_").replace(":", "_")
    folder.mkdir(parents=True)
    mlflow.artifacts.download_artifacts(root, dst_path=str(folder), tracking_uri=uri)
    found = {path: path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    # What is downloaded is the last folder of the root, or what is in it.
    return {
        place.as_posix().removeprefix("artifacts/"): path.read_bytes()
        for path, place in found.items()
        if path.name != "MLmodel"
    }


def content(
    client: MlflowClient, run_id: str, folder: Path, ids: dict[str, str] | None = None
) -> dict[str, Any]:
    """All that a run holds; ids are those of the target."""
    run, known = client.get_run(run_id), ids or {}

    def mapped(values: dict[str, str]) -> dict[str, str]:
        ours = (UID_TAG, "mlflow.modelVersions")
        changed = {key: text for key, text in values.items() if key not in ours}
        for here, there in known.items():
            changed = {key: text.replace(here, there) for key, text in changed.items()}
        return changed

    models = {}
    for output in run.outputs.model_outputs:
        model = client.get_logged_model(output.model_id)
        points = [
            (m.key, repr(m.value), m.timestamp, m.step, m.dataset_name, m.dataset_digest)
            for m in model.metrics or []
        ]
        models[known.get(model.model_id, model.model_id)] = (
            *(model.name, output.step, model.model_type, str(model.status), model.params),
            *(
                mapped(model.tags),
                sorted(points),
                known.get(model.source_run_id, model.source_run_id),
            ),
            files(client, model.artifact_location, folder / "model"),
        )
    datasets = {each.dataset.name: each for each in run.inputs.dataset_inputs}
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "time": (run.info.start_time, run.info.end_time),
        "user": run.info.user_id,
        "params": run.data.params,
        "tags": mapped(run.data.tags),
        "metrics": history(client, run),
        "datasets": {
            name: (each.dataset.to_dictionary(), [(tag.key, tag.value) for tag in each.tags])
            for name, each in datasets.items()
        },
        "inputs": [known.get(each.model_id, each.model_id) for each in run.inputs.model_inputs],
        "models": models,
        "files": files(client, run.info.artifact_uri, folder / "run"),
    }


def assert_arrived(search: Search, target: MlflowClient, ids: dict[str, str], folder: Path) -> None:
    """The target holds the search, whole and once."""
    for run_id in search.run_ids:
        expected = content(search.source, run_id, folder / "here", ids)
        assert content(target, ids[run_id], folder / "there") == expected
    experiment_id = target.get_run(ids[search.parent]).info.experiment_id
    assert len(target.search_runs([experiment_id])) == 3
    assert len(target.search_logged_models([experiment_id])) == 2
    for here, there in zip(search.models, (ids[model] for model in search.models), strict=True):
        model = target.get_logged_model(there)
        path = folder / there
        path.mkdir()
        mlflow.artifacts.download_artifacts(
            f"{model.artifact_location}/MLmodel",
            dst_path=str(path),
            tracking_uri=target.tracking_uri,
        )
        described = Model.load(str(path))
        assert (described.model_id, described.run_id) == (there, model.source_run_id)
        assert described.artifact_path == model.artifact_location
        assert here not in (path / "MLmodel").read_text()
    (version,) = target.search_model_versions(f"name = '{search.name}'")
    assert version.source == f"models:/{ids[search.models[1]]}"
    assert (version.run_id, version.description) == (ids[search.trials[1]], "The best")
    assert version.tags["gate"] == "passed"
    registered = target.get_registered_model(search.name)
    aliases = {alias: str(number) for alias, number in registered.aliases.items()}
    assert aliases == {"champion": str(version.version)}
    assert (registered.tags, registered.description) == ({"task": "digits"}, "Digits")
    (copy,) = target.search_model_versions(f"name = 'prod.{search.name}'")
    assert copy.source == f"models:/{search.name}/{version.version}"
    linked = target.get_logged_model(ids[search.models[1]]).tags["mlflow.modelVersions"]
    assert linked.count('"name"') == 1
    assert f'"{search.name}"' in linked


def test_all_of_a_search_arrives_at_a_server(
    search: Search, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = search.source, client_of(server)
    source.delete_experiment_tag(search.experiment_id, EXPERIMENT_ID_TAG)
    source.set_experiment_tag(search.experiment_id, EXPERIMENT_NAME_TAG, search.name)
    ids: dict[str, str] = {}
    calls: list[None] = []
    results = list(copy_runs(source, target, search.run_ids, ids, lambda: calls.append(None)))

    assert [each.run_id for each in results] == [search.parent, *search.trials]
    for each in results:
        assert each == Copied(each.run_id, ids[each.run_id], points=each.points)
    assert [each.points for each in results] == [7, 7, 7 + 3]
    assert target.get_run(ids[search.parent]).data.tags["winner"] == ids[search.trials[1]]
    assert (
        target.get_experiment_by_name(search.name)
        .tags.keys()
        .isdisjoint({EXPERIMENT_ID_TAG, EXPERIMENT_NAME_TAG})
    )
    assert_arrived(search, target, ids, tmp_path / "first")

    made = len(calls)
    target.set_registered_model_alias(search.name, "champion", "1")
    assert (
        list(copy_runs(source, target, search.run_ids, ids, lambda: calls.append(None))) == results
    )
    assert len(calls) - made < made
    assert_arrived(search, target, ids, tmp_path / "second")


@pytest.mark.slow
@pytest.mark.parametrize("lost", [False, True], ids=["call failed", "answer lost"])
def test_a_copy_may_break_off_at_any_call(
    search: Search, client: MlflowClient, experiment: str, tmp_path: Path, lost: bool
) -> None:
    expected = history(search.source, search.source.get_run(search.parent))
    attempts, results = 0, None
    while results is None:
        attempts += 1
        target = Faulty(client, attempts, lost)
        ids: dict[str, str] = {}  # the map was lost as well
        try:
            results = list(copy_runs(search.source, target, search.run_ids, ids))  # type: ignore[arg-type]
        except ConnectionError:
            assert len(target.calls) == attempts
            parents = client.search_runs([experiment], "attributes.status = 'FINISHED'")
            for parent in parents:  # whole, if it is finished
                assert history(client, parent) == expected
    assert attempts > len(target.calls) > 30
    assert [each.refused for each in results] == [{}, {}, {}]
    assert_arrived(search, client, ids, tmp_path / "arrived")


@pytest.fixture
def answers_get_lost(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The answer to every change of the server is lost once; MLflow's HTTP client asks again."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    make_request = HTTPConnectionPool._make_request
    lost: list[str] = []
    again = False

    def unreliable(self: Any, conn: Any, method: str, url: str, **kwargs: Any) -> Any:
        nonlocal again
        response = make_request(self, conn, method, url, **kwargs)
        again = method != "GET" and not again and "search" not in url
        if again:
            lost.append(url)
            raise http.client.RemoteDisconnected("cut")
        return response

    monkeypatch.setattr(HTTPConnectionPool, "_make_request", unreliable)
    yield lost
    monkeypatch.undo()


def test_a_request_that_mlflow_sends_twice_makes_no_twin(
    search: Search, server: str, tmp_path: Path, answers_get_lost: list[str]
) -> None:
    source, target = search.source, client_of(server)
    source.delete_experiment_tag(search.experiment_id, EXPERIMENT_ID_TAG)
    ids: dict[str, str] = {}
    results = list(copy_runs(source, target, search.run_ids, ids))
    assert [each.refused for each in results] == [{}, {}, {}]
    assert sum(url.endswith("runs/create") for url in answers_get_lost) == 3
    assert sum(url.endswith("model-versions/create") for url in answers_get_lost) == 2
    assert_arrived(search, target, ids, tmp_path / "arrived")


@pytest.mark.slow
def test_a_long_history_arrives_whole(
    source: MlflowClient, here: str, client: MlflowClient
) -> None:
    run_id = source.create_run(here).info.run_id
    points = [Metric("batch/loss", step / 7, 1000 + step, step) for step in range(30_000)]
    source.log_batch(run_id, points)
    ids: dict[str, str] = {}
    # A call is lost half-way: the next one sends the rest.
    with pytest.raises(ConnectionError):
        list(copy_runs(source, Faulty(client, 20, lost=True), [run_id], ids))  # type: ignore[arg-type]
    target = Faulty(client, 0, lost=False)
    (copied,) = copy_runs(source, target, [run_id], ids)  # type: ignore[arg-type]
    assert (copied.points, copied.refused_points) == (30_000, 0)
    assert 10 < target.calls.count("log_batch") < 30
    arrived = client.get_metric_history(ids[run_id], "batch/loss")
    assert [(m.step, m.timestamp, m.value) for m in arrived] == [
        (m.step, m.timestamp, m.value) for m in points
    ]
    assert client.get_run(ids[run_id]).info.status == "RUNNING"


def test_a_run_is_merged_into_the_one_that_it_continues(
    source: MlflowClient, here: str, client: MlflowClient, experiment: str, tmp_path: Path
) -> None:
    there = client.create_run(experiment, 100, run_name="digits").info.run_id
    client.log_batch(there, [Metric("loss", 2.0, 1, 1)], [Param("lr", "1e-1"), Param("n", "1")])
    client.set_tag(there, "mlflow.loggedArtifacts", '[{"path": "a.json", "type": "table"}]')
    client.set_terminated(there, "KILLED", 200)
    tags = {CONTINUES_TAG: there, "mlflow.loggedArtifacts": '[{"path": "b.json", "type": "table"}]'}
    first = source.create_run(here, 300, tags).info.run_id
    source.log_batch(first, [Metric("loss", 1.0, 2, 2)], [Param("lr", "0.1"), Param("n", "2")])
    source.set_terminated(first, "FAILED", 400)
    second = source.create_run(here, 350, {CONTINUES_TAG: first}).info.run_id
    source.log_batch(second, [Metric("loss", 0.5, 3, 3)])
    source.set_terminated(second, "FINISHED", 500)

    results = list(copy_runs(source, client, [second, first], ids := {}))
    assert ids == {first: there, second: there}
    assert results == [Copied(first, there, 1), Copied(second, there, 1)]
    (run,) = client.search_runs([experiment])
    assert (run.info.run_name, run.info.start_time, run.info.end_time) == ("digits", 100, 500)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "1e-1", "n": "1"}
    assert run.data.tags["param.n.changed"] == "2"
    assert run.data.tags["mlflow.loggedArtifacts"].count('"path"') == 2
    assert run.data.tags.keys().isdisjoint({CONTINUES_TAG, "param.lr.changed"})
    assert [step for step, _, _ in history(client, run)["loss"]] == [1, 2, 3]


class Picky:
    """A client that rejects what it is asked for by `rejects`, for good."""

    def __init__(
        self,
        client: MlflowClient,
        rejects: Callable[..., bool],
        code: int = INVALID_PARAMETER_VALUE,
    ) -> None:
        self._client, self._rejects, self._code = client, rejects, code

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._rejects(name, *args, **kwargs):
                raise MlflowException("bad name", self._code)
            return getattr(self._client, name)(*args, **kwargs)

        return call


@pytest.mark.quick
def test_what_is_rejected_is_refused_by_name_and_the_rest_arrives(
    search: Search, client: MlflowClient
) -> None:
    def rejects(method: str, *args: Any, **kwargs: Any) -> bool:
        if method == "log_batch":
            entities = (*kwargs["metrics"], *kwargs["tags"])
            return any(each.key in ("val/loss", "seed") for each in entities)
        if method == "create_logged_model":
            return bool(kwargs["name"] == "baseline")
        return method == "log_artifact" and args[1].endswith("notes.txt")

    ids: dict[str, str] = {}
    target = Picky(client, rejects)
    parent, first, second = copy_runs(search.source, target, search.run_ids, ids)  # type: ignore[arg-type]
    assert (parent.points, parent.refused_points) == (5, 2)
    assert parent.refused.keys() == {"val/loss", "seed", "notes.txt"}
    assert parent.refused["seed"] == "bad name"
    assert first.refused.keys() == {
        *parent.refused,
        "model baseline",
        f"output model {search.models[0]}",
    }
    assert f"final/accuracy of model {search.models[0]}" in second.refused
    run = client.get_run(ids[search.trials[1]])
    assert run.data.metrics["final/accuracy"] == 0.9
    assert len(client.get_metric_history(run.info.run_id, "final/accuracy")) == 2
    assert client.get_run(ids[search.parent]).info.status == "FINISHED"
    assert [output.model_id for output in run.outputs.model_outputs] == [ids[search.models[1]]]


def test_a_missing_right_is_left_for_later(
    search: Search, client: MlflowClient, tmp_path: Path
) -> None:
    ids: dict[str, str] = {}
    registers = "create_registered_model"
    denied = Picky(client, lambda method, *_, **__: method == registers, PERMISSION_DENIED)
    copying = copy_runs(search.source, denied, search.run_ids, ids)  # type: ignore[arg-type]
    assert [next(copying).run_id for _ in range(2)] == [search.parent, search.trials[0]]
    with pytest.raises(MlflowException, match="bad name"):
        next(copying)
    left = [search.trials[1]]
    assert [each.refused for each in copy_runs(search.source, client, left, ids)] == [{}]
    assert_arrived(search, client, ids, tmp_path / "arrived")


@pytest.mark.parametrize(
    "error",
    [
        MlflowException("the server has failed"),
        MlflowException("too many requests", REQUEST_LIMIT_EXCEEDED),
        MlflowException("who are you?", UNAUTHENTICATED),
        MlflowException("QueuePool limit of size 5 overflow 10 reached", BAD_REQUEST),
        requests.ConnectionError("cut"),
        RuntimeError("of an unknown kind"),
    ],
    ids=str,
)
def test_what_may_pass_is_no_refusal(
    source: MlflowClient, here: str, client: MlflowClient, error: Exception
) -> None:
    run_id = source.create_run(here).info.run_id
    source.log_text(run_id, "text", "notes.txt")

    def fails(method: str, *_: Any, **__: Any) -> bool:
        if method == "log_artifact":
            raise error
        return False

    with pytest.raises(type(error), match=re.escape(str(error))):
        list(copy_runs(source, Picky(client, fails), [run_id], {}))  # type: ignore[arg-type]


def test_a_run_that_was_deleted_there_is_not_created_again(
    source: MlflowClient, here: str, client: MlflowClient, experiment: str
) -> None:
    run_id = source.create_run(here, run_name="gone").info.run_id
    ids: dict[str, str] = {}
    list(copy_runs(source, client, [run_id], ids))
    client.delete_run(ids[run_id])
    for known in (ids, {}):
        (copied,) = copy_runs(source, client, [run_id], known)
        assert copied.target_run_id is None
        assert "deleted" in copied.refused["run gone"]
    assert len(client.search_runs([experiment], run_view_type=ViewType.ALL)) == 1


def test_an_experiment_that_is_not_there_is_a_refusal(
    source: MlflowClient, tmp_path: Path, client: MlflowClient
) -> None:
    tags = {EXPERIMENT_ID_TAG: "987654"}
    experiment_id = source.create_experiment("nowhere", tmp_path.as_uri(), tags)
    run_id = source.create_run(experiment_id, run_name="lost").info.run_id
    (copied,) = copy_runs(source, client, [run_id], {})
    assert copied.target_run_id is None
    assert "987654" in copied.refused["run lost"]


def test_a_uid_and_an_unknown_parent_are_kept(
    source: MlflowClient, here: str, client: MlflowClient
) -> None:
    tags = {UID_TAG: "search-1", "mlflow.parentRunId": "f" * 32}
    run_id = source.create_run(here, tags=tags).info.run_id
    list(copy_runs(source, client, [run_id], ids := {}))
    there = client.get_run(ids[run_id])
    assert there.data.tags.items() >= tags.items()
    list(copy_runs(source, client, [run_id], again := {}))
    assert again == ids


def test_a_value_is_that_of_a_model_even_if_it_is_none(
    search: Search, client: MlflowClient
) -> None:
    list(copy_runs(search.source, client, search.run_ids, ids := {}))
    history = client.get_metric_history(ids[search.trials[1]], "final/accuracy")
    assert sorted(math.isnan(point.value) for point in history) == [False, True]
    # MLflow keeps the NaN of a model as 0, in the source too.
    for model_id, value in zip(search.models, (0.0, 0.9), strict=True):
        metrics = client.get_logged_model(ids[model_id]).metrics
        assert {m.key: m.value for m in metrics} == {"final/accuracy": value, "final/size": 1.0}

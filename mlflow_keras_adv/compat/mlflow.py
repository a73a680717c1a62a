"""MLflow 3.6 to 3.17, and servers of these releases."""

import functools
import inspect
import math
import shutil
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import requests
from mlflow import MlflowClient, environment_variables
from mlflow.entities import FileInfo, Metric, Param, RunData, RunInfo, RunTag
from mlflow.entities.metric import MetricWithRunId
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import fluent
from mlflow.tracking._model_registry import utils as model_registry
from mlflow.tracking._tracking_service import utils as tracking_service
from mlflow.tracking._tracking_service.client import TrackingServiceClient
from mlflow.tracking.fluent import ActiveRun
from mlflow.utils import file_utils, name_utils, rest_utils, validation
from mlflow.utils.credentials import get_default_host_creds

from mlflow_keras_adv.replacing import Replacement


def file_store_is_closed() -> bool:
    """Whether MLflow takes no runs in a folder of files. Needless from 3.13 on, where it is asked.

    Before 3.13 such a store is open.
    """
    allowed = getattr(environment_variables, "MLFLOW_ALLOW_FILE_STORE", None)
    return allowed is not None and not allowed.get()


def client_of(tracking_uri: str) -> MlflowClient:
    """A client of a store, which prints nothing and whose artifacts go there too.

    MLflow's client would print two lines for each run that it ends on a server, nested ones too,
    with the password that the address holds. The artifacts of a run it would bring to where the
    first client of the process that had to do with the run did: MLflow keeps one place for a run,
    whatever store it is asked of. Clients before 3.14 look for their server in the environment.
    """
    client = MlflowClient(tracking_uri)
    client._tracking_client = _PlainClient(tracking_uri)
    return client


class _PlainClient(TrackingServiceClient):
    """MLflow's client of a store, which uses that store and nothing in its place."""

    def __init__(self, tracking_uri: str) -> None:
        self._repositories: dict[str, ArtifactRepository] = {}
        super().__init__(tracking_uri)

    @property
    def store(self) -> Any:
        return tracking_service._tracking_store_registry.get_store(self.tracking_uri)

    def _log_url(self, run_id: str) -> None:
        """Says nothing."""

    def _get_artifact_repo(self, resource_id: str, *, resource: str = "run") -> ArtifactRepository:
        if resource_id not in self._repositories:
            if resource == "run":
                location = self.get_run(resource_id).info.artifact_uri
            else:
                location = self.get_logged_model(resource_id).artifact_location
            build: Callable[..., ArtifactRepository] = get_artifact_repository
            if location.startswith("mlflow-artifacts:"):
                build = MlflowArtifactsRepository
            repository = build(location, tracking_uri=self.tracking_uri)
            self._repositories[resource_id] = repository
        return self._repositories[resource_id]

    def list_artifacts(self, run_id: str, path: str | None = None) -> list[FileInfo]:
        return list(self._get_artifact_repo(run_id).list_artifacts(path))


def log_model_artifact(
    client: MlflowClient, model_id: str, path: str, artifact_path: str | None
) -> None:
    """Uploads a file to a LoggedModel. Needless from 3.16 on, where it is a method of the client.

    Args:
        client: The store.
        model_id: The model.
        path: The file.
        artifact_path: The folder among the model's artifacts; None for their root.
    """
    if "artifact_path" in inspect.signature(client.log_model_artifact).parameters:
        upload: Callable[..., None] = client.log_model_artifact
        upload(model_id, path, artifact_path)
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, artifact_path or "", Path(path).name)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        client.log_model_artifacts(model_id, folder)


def log_model_files(
    client: MlflowClient, model_id: str, folder: str, artifact_path: str | None
) -> None:
    """Uploads the files of a folder to a LoggedModel; see `log_model_artifact`."""
    if artifact_path is None:
        client.log_model_artifacts(model_id, folder)
    elif "artifact_path" in inspect.signature(client.log_model_artifacts).parameters:
        upload: Callable[..., None] = client.log_model_artifacts
        upload(model_id, folder, artifact_path)
    else:
        with tempfile.TemporaryDirectory() as around:
            shutil.copytree(folder, Path(around, artifact_path))
            client.log_model_artifacts(model_id, around)


def monitor_arguments(tracking_uri: str) -> dict[str, Any]:
    """Arguments for `SystemMetricsMonitor`, by name. Needless from 3.7 on, which knows the store.

    Before, it asks that of the environment where a run goes on.
    """
    known = inspect.signature(SystemMetricsMonitor.__init__).parameters
    return {"tracking_uri": tracking_uri} if "tracking_uri" in known else {}


def refused_though_stored(
    client: MlflowClient, run_id: str, entities: Sequence[Metric | Param | RunTag]
) -> list[int]:
    """The metric values that a store has refused in one call and holds all the same.

    Servers before 3.16 refuse a value that they hold if it is NaN, or if it comes twice in one call
    (for the run and for a model of it, say): needless when no such server is met any more. In
    a call with several entities only NaN is looked at; what came twice is found when they are sent
    one by one.

    Args:
        client: The store.
        run_id: The run.
        entities: What was sent.

    Returns:
        Their indices.
    """
    alone = len(entities) == 1
    by_key = defaultdict(list)
    for index, entity in enumerate(entities):
        if isinstance(entity, Metric) and (alone or math.isnan(entity.value)):
            by_key[entity.key].append((index, entity))
    stored: list[int] = []
    models: dict[str, set[object]] = {}
    for key, wanted in by_key.items():
        held = {_identity(point) for point in client.get_metric_history(run_id, key)}
        for index, metric in wanted:
            model_id = metric.model_id
            if model_id is not None and model_id not in models:
                points = client.get_logged_model(model_id).metrics or []
                models[model_id] = {(each.key, each.step, each.timestamp) for each in points}
            at = (key, metric.step, metric.timestamp)
            if _identity(metric) in held and (model_id is None or at in models[model_id]):
                stored.append(index)
    return stored


def _identity(metric: Metric) -> tuple[int, int, float | None]:
    """Step, time and value; the value is None for NaN, which equals nothing."""
    return metric.step, metric.timestamp, None if math.isnan(metric.value) else metric.value


def image_key(name: str) -> str:
    """The key of an image by the name that `log_image` gives its file.

    MLflow writes `~` for `/` from 3.12 on, and `#` up to 3.10.1: needless when no run of these is
    compared any more.
    """
    return name.replace("~", "/").replace("#", "/")


def picked(values: Mapping[int, float], points: int) -> dict[int, float]:
    """A curve by its steps, in their order, of at most so many points; the last is kept.

    Needless from 3.12 on: an older server answers one point more than it is asked for.
    """
    steps = sorted(values)
    return {step: values[step] for step in [*steps[:-1][: points - 1], *steps[-1:]]}


# What follows are private names of MLflow, for which it has no public ones.


def active_runs() -> MutableSequence[ActiveRun]:
    """MLflow's stack of the active runs of this thread, the innermost last."""
    return fluent._active_run_stack.get()


def replace_active_runs(stack: MutableSequence[ActiveRun]) -> None:
    """Puts another list in the place of the stack of this thread."""
    fluent._active_run_stack.set(stack)


def active_runs_of_all_threads() -> list[MutableSequence[ActiveRun]]:
    """The stacks of all threads."""
    return list(fluent._active_run_stack.get_all_thread_values().values())


def note_last_active_run(run_id: str) -> None:
    """Makes a run that of `mlflow.last_active_run()` in this thread."""
    fluent._last_active_run_id.set(run_id)


def monitors() -> dict[str, SystemMetricsMonitor]:
    """The monitors of the machine's load by the id of their run; `mlflow.end_run()` ends them."""
    return fluent.run_id_to_system_metrics_monitor


class Monitor(SystemMetricsMonitor):
    """MLflow's monitor of the machine's load, with names for what its methods share."""

    @property
    def shutdown(self) -> threading.Event:
        """Set once it is to end."""
        return self._shutdown_event

    @property
    def prefix(self) -> str:
        """Stands before each name."""
        return self._metrics_prefix

    def next_step(self) -> int:
        """The step of the next values: each is given once."""
        self._logging_step += 1
        return self._logging_step - 1

    def taken_thread(self) -> threading.Thread | None:
        """Its thread, of which it knows nothing from then on."""
        thread, self._process = self._process, None
        return thread


def is_made_up(name: str) -> bool:
    """Whether a run's name is one that MLflow makes where the user gives none: `bold-auk-217`."""
    parts = name.split("-")
    return (
        len(parts) == 3
        and parts[0] in {each.lower() for each in name_utils._GENERATOR_PREDICATES}
        and parts[1] in {each.lower() for each in name_utils._GENERATOR_NOUNS}
        and parts[2].isdigit()
    )


def chosen_experiment_id() -> str | None:
    """The experiment that was chosen by `mlflow.set_experiment` in this process."""
    return fluent._active_experiment_id


def active_experiment_id() -> str:
    """The experiment of `mlflow.start_run`, which is created if only the environment names it.

    By MLflow itself, and of two processes that find it missing the second one fails: by then it
    exists.
    """
    try:
        return str(fluent._get_experiment_id())
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return str(fluent._get_experiment_id())


def chosen_tracking_uri() -> str | None:
    """The store that was chosen by `mlflow.set_tracking_uri` in this process."""
    return tracking_service._tracking_uri


def last_metrics(data: RunData) -> list[Metric]:
    """The last value of each metric of a run, with its step."""
    return list(data._metric_objs)


def metric_intervals(run_ids: Sequence[str], key: str, points: int) -> Iterator[MetricWithRunId]:
    """Evenly picked values of several runs, of a store that is no server."""
    store = tracking_service._get_store()
    yield from store.get_metric_history_bulk_interval(list(run_ids), key, points, None, None)


def load_evaluation_artifact(artifact: Any, path: str) -> None:
    """Has an artifact of an evaluation read its content from a file."""
    artifact._load(path)


def tracking_store_of(uri: str, artifact_uri: str | None) -> AbstractStore:
    """A new tracking store, for a builder of one.

    MLflow holds a lock while it builds a store, so that a builder cannot ask it for another.

    Args:
        uri: Its address.
        artifact_uri: Where the artifacts of its experiments are, if not where they are by default.
    """
    build = tracking_service._tracking_store_registry.get_store_builder(uri)
    return build(store_uri=uri, artifact_uri=artifact_uri)


def looks_up_stores(look_up: Callable[[str, Callable[[], Any]], Any]) -> Replacement:
    """What has a function say which tracking store MLflow's clients use.

    Args:
        look_up: Is given the tracking URI, and what gives the store that MLflow has for it.
    """
    found = tracking_service._get_store

    def answer(store_uri: str | None = None, artifact_uri: str | None = None) -> Any:
        uri = tracking_service._resolve_tracking_uri(store_uri)
        return look_up(uri, lambda: found(store_uri, artifact_uri))

    return Replacement(tracking_service, "_get_store", answer)


def forget_artifact_repository(owner_id: str) -> None:
    """Has MLflow's clients look anew where the artifacts of a run or a model are."""
    tracking_service._artifact_repos_cache.pop(owner_id, None)


def registry_store_of(uri: str, tracking_uri: str) -> Any:
    """A new store of the model registry, for a builder of one; see `tracking_store_of`."""
    build = model_registry._get_store_registry().get_store_builder(uri)
    given = {"store_uri": uri, "tracking_uri": tracking_uri}
    names = inspect.signature(build).parameters
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in names.values())
    return build(**{name: value for name, value in given.items() if takes_all or name in names})


def checked_batch(
    metrics: Sequence[Metric], params: Sequence[Param], tags: Sequence[RunTag]
) -> tuple[list[Metric], list[Param], list[RunTag]]:
    """What a store takes of a batch: texts that are too long are cut, as MLflow does.

    Raises:
        mlflow.exceptions.MlflowException: A store refuses it, whatever run it is for.
    """
    checked = validation._validate_batch_log_data(metrics, params, tags)
    validation._validate_batch_log_limits(*checked)
    validation._validate_param_keys_unique(checked[1])
    return checked


def check_metric(metric: Metric) -> None:
    """Raises what a store does if it refuses the value, whatever run it is for.

    Raises:
        mlflow.exceptions.MlflowException: The name, the value, the time or the step is no such.
    """
    validation._validate_metric(metric.key, metric.value, metric.timestamp, metric.step)


def with_changes(info: RunInfo, **changes: Any) -> RunInfo:
    """The description of a run, some of it changed."""
    known = inspect.signature(RunInfo.__init__).parameters
    return RunInfo(
        **{name: each for name, each in {**dict(info), **changes}.items() if name in known}
    )


@contextmanager
def asking_once(connect_seconds: float, answer_seconds: float = math.inf) -> Iterator[None]:
    """A block in which MLflow's HTTP client asks a server once, on this thread.

    By itself it asks again for minutes, and then says that it has, in the place of what the server
    has answered; other threads, and users of MLflow, have it so still.

    Args:
        connect_seconds: How long to wait for a connection.
        answer_seconds: How long to wait for an answer, if not as long as ever.
    """
    module: Any = rest_utils
    if not hasattr(module._get_http_response_with_retries, "asks_once"):
        answer = _once_or_again(module._get_http_response_with_retries)
        module._get_http_response_with_retries = answer
    token = _patience.set((connect_seconds, answer_seconds))
    try:
        yield
    finally:
        _patience.reset(token)


# Seconds to wait for a connection and for an answer, on threads that ask once.
_patience: ContextVar[tuple[float, float] | None] = ContextVar("patience", default=None)


def _once_or_again(request: Callable[..., Any]) -> Callable[..., Any]:
    """MLflow's function for all requests to a server, which asks once inside of `asking_once`."""
    signature = inspect.signature(request)

    @functools.wraps(request)
    def answer(*arguments: Any, **named: Any) -> Any:
        seconds = _patience.get()
        if seconds is None:
            return request(*arguments, **named)
        bound = signature.bind(*arguments, **named)
        bound.arguments |= {"max_retries": 0, "raise_on_status": False}
        options = bound.arguments.get("kwargs", {})
        if isinstance(longest := options.get("timeout"), int | float):
            options["timeout"] = tuple(min(each, longest) for each in seconds)
        try:
            return request(*bound.args, **bound.kwargs)
        except requests.ConnectionError as error:
            # A server that answers before it has read all, as when it fails at a file, closes the
            # connection, which the next request may have taken from the pool by then.
            if "Connection aborted" not in str(error):
                raise
            return request(*bound.args, **bound.kwargs)

    answer.asks_once = True  # type: ignore[attr-defined]
    return answer


def delete_artifact(client: MlflowClient, run_id: str, artifact_file: str) -> None:
    """Deletes an artifact of a run, for which MLflow has a command and no method of the client."""
    client._tracking_client._get_artifact_repo(run_id).delete_artifacts(artifact_file)


def answer_of_server(
    uri: str, endpoint: str, *, seconds: float, params: Mapping[str, object] | None = None
) -> Any:
    """A server's response to one GET, with the login that MLflow has for it.

    Args:
        uri: A tracking URI.
        endpoint: The path.
        seconds: How long to wait.
        params: The query.

    Returns:
        A `requests.Response`.

    Raises:
        mlflow.exceptions.MlflowException: It does not answer.
    """
    with asking_once(seconds, seconds):
        return rest_utils.http_request(
            get_default_host_creds(uri), endpoint, "GET", params=params, timeout=seconds
        )


def raise_what_it_says(response: Any, endpoint: str) -> None:
    """Raises what a server's answer says, if that is an error."""
    rest_utils.verify_rest_response(response, endpoint)


def local_path(uri: str) -> Path:
    """The path of a local folder, by its URI."""
    return Path(file_utils.local_file_uri_to_path(uri))

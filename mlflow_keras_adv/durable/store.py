"""DurableStore: MLflow's interface to a store, which loses nothing while the store is away."""

import functools
import math
import shutil
import tempfile
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from mlflow.entities import (
    DatasetInput,
    Experiment,
    LifecycleStage,
    LoggedModel,
    LoggedModelInput,
    LoggedModelOutput,
    LoggedModelParameter,
    LoggedModelStatus,
    LoggedModelTag,
    Metric,
    Param,
    Run,
    RunInfo,
    RunStatus,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME
from mlflow.utils.uri import is_http_uri

from mlflow_keras_adv.compat.mlflow import (
    asking_once,
    check_metric,
    checked_batch,
    tracking_store_of,
)
from mlflow_keras_adv.durable.answers import ANSWER_SECONDS, AwayError
from mlflow_keras_adv.durable.models import WaitingModel
from mlflow_keras_adv.durable.offline_runs import OfflineRuns, is_offline_id, of_experiment
from mlflow_keras_adv.durable.runs import DurableRun, Place
from mlflow_keras_adv.tracking import active, offline
from mlflow_keras_adv.tracking.addresses import run_page, say_where
from mlflow_keras_adv.tracking.durable_address import plain_uri
from mlflow_keras_adv.tracking.ending import end
from mlflow_keras_adv.tracking.names import UID_TAG
from mlflow_keras_adv.tracking.paths import journals_folder
from mlflow_keras_adv.tracking.process_end import Stage, at
from mlflow_keras_adv.tracking.records import (
    GivenParams,
    Input,
    ModelFields,
    ModelFiles,
    ModelInput,
    ModelOutput,
    Record,
    TagDeletion,
    Tags,
)
from mlflow_keras_adv.tracking.store import probe
from mlflow_keras_adv.tracking.sync import catch_up
from mlflow_keras_adv.tracking.texts import safe
from mlflow_keras_adv.tracking.verdict import may_succeed_later

_S = TypeVar("_S", bound=AbstractStore)
_T = TypeVar("_T")


def _records_of(params: Sequence[Param], tags: Sequence[RunTag]) -> list[Record]:
    """What is handed in for params and tags; raises what any store refuses."""
    _, params, tags = checked_batch([], params, tags)
    records: list[Record] = []
    if params:
        records.append(GivenParams({each.key: each.value for each in params}))
    if tags:
        records.append(Tags({each.key: each.value for each in tags}))
    return records


# These put what they are given through `log_batch` of the class.
_QUEUED = {name for name in vars(AbstractStore) if "async" in name}


def _forwarded(name: str) -> Callable[..., Any]:
    """A method that the store behind answers, which sees all that was handed in."""

    @functools.wraps(getattr(AbstractStore, name))
    def forward(self: "DurableStore", *arguments: Any, **named: Any) -> Any:
        self.bring_up_to_date()
        ask = functools.partial(getattr(self._place.store, name), *arguments, **named)
        return self._ask(ask)

    return forward


def _forwards_the_rest(store: type[_S]) -> type[_S]:
    """Has the store behind answer what a class does not define, in each version of MLflow."""
    for name in dir(AbstractStore):
        own = name in vars(store) or name in _QUEUED or name.startswith("__")
        if not own and callable(getattr(AbstractStore, name)):
            setattr(store, name, _forwarded(name))
    return store


@_forwards_the_rest
class DurableStore(AbstractStore):
    """A store whose writes to runs go to a journal of this machine, and from there to another.

    Metric values are handed in and never waited for. Other writes to a run are made at once while
    the other store answers, so that what it refuses is refused where it is called; if it is away
    they are handed in too. Reads see what this process has written. What cannot be kept for later
    (searches, traces, the registry) goes straight through.

    Args:
        uri: The plain tracking URI of the other store.
        inner: The other store.
    """

    def __init__(self, uri: str, inner: AbstractStore) -> None:
        super().__init__()
        self._place = Place(inner, uri)
        self._offline = OfflineRuns(uri)
        self._runs: dict[str, DurableRun] = {}
        self._experiments: dict[str, Experiment] = {}
        self._models: dict[str, WaitingModel] = {}
        self._makers: dict[str, DurableRun] = {}  # of models that a store has
        self._made: dict[str, LoggedModel] = {}  # the same, as they were seen last
        self._begun: set[str] = set()  # ids of runs that this process has begun
        self._uploaded: set[str] = set()  # ids of those that have files in the store

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_place":
            raise AttributeError(name)
        return getattr(self._place.store, name)  # what not every store has

    @property
    def is_away(self) -> bool:
        """Whether the store did not answer when it was last asked."""
        return self._place.answers.is_away

    # Runs.

    def create_run(
        self,
        experiment_id: str,
        user_id: str | None,
        start_time: int | None,
        tags: Sequence[RunTag] | None,
        run_name: str | None,
    ) -> Run:
        """Creates a run: in the store, or on this machine while that is away."""
        tags = list(tags or [])
        texts = {tag.key: tag.value for tag in tags}
        experiment_id = self._true_experiment(experiment_id)
        parent = texts.get(MLFLOW_PARENT_RUN_ID)
        inside = parent is not None and offline.waits_here(parent)
        if not (offline.is_wanted() or inside or is_offline_id(experiment_id)):
            if is_http_uri(self._place.uri) and UID_TAG not in texts:
                texts[UID_TAG] = uuid.uuid4().hex  # by which it is found if the answer is lost
                tags.append(RunTag(UID_TAG, texts[UID_TAG]))
            try:
                run: Run = self._place.answers.attempt(
                    lambda: self._place.store.create_run(
                        experiment_id, user_id, start_time, tags, run_name
                    )
                )
            except AwayError:
                pass
            else:
                self._begun.add(run.info.run_id)
                self._runs[run.info.run_id] = DurableRun(run.info.run_id, self._place, run)
                return run
        run = self._offline.create_run(experiment_id, start_time, texts, run_name)
        run = of_experiment(run, experiment_id)
        begun = self._runs[run.info.run_id] = DurableRun(run.info.run_id, self._offline.place, run)
        begun.writer.will_end_run()  # nobody takes it for one that is done
        return run

    def get_run(self, run_id: str) -> Run:
        """A run, with all that was handed in."""
        return self._run(run_id).get()

    def update_run_info(
        self, run_id: str, run_status: int | None, end_time: int | None, run_name: str | None
    ) -> RunInfo:
        """Changes status and name of a run; its end comes after all that was handed in."""
        run = self._run(run_id)
        store = run.place.store
        change = functools.partial(store.update_run_info, run.run_id)

        def renamed() -> list[Record]:
            return [Tags({MLFLOW_RUN_NAME: run_name})] if run_name else []

        if run_status is None or not RunStatus.is_terminated(run_status):
            run.call(lambda: change(run_status, end_time, run_name), otherwise=renamed)
            return run.get().info
        if run_name:
            run.call(lambda: change(None, None, run_name), otherwise=renamed)
        for waiting in self._models.values():
            if waiting.run is run:
                waiting.hand_in_metrics()
        run.end(run_status, end_time, lambda: change(run_status, end_time, None))
        info = run.get().info
        if run.place is not self._place:
            self._runs.pop(run_id, None)  # it may be in the store under another id soon
        self._say_where(info)
        if not any(each.place is not self._place for each in self._runs.values()):
            catch_up()
        return info

    def delete_run(self, run_id: str) -> None:
        """Deletes a run."""
        run = self._run(run_id)
        run.is_delivered()
        run.place.store.delete_run(run.run_id)
        self._runs.pop(run_id, None)

    def log_metric(self, run_id: str, metric: Metric) -> None:
        """Hands in a value."""
        run = self._writable(run_id)
        try:
            check_metric(metric)
        except MlflowException as error:
            self._refuse(run, error, "log_metric", metric)
        else:
            self._log_metrics(run, [metric])

    def log_param(self, run_id: str, param: Param) -> None:
        """Logs a param."""
        run = self._writable(run_id)
        self._call(run, "log_param", param, otherwise=lambda: _records_of([param], []))

    def set_tag(self, run_id: str, tag: RunTag) -> None:
        """Sets a tag."""
        run = self._writable(run_id)
        self._call(run, "set_tag", tag, otherwise=lambda: _records_of([], [tag]))

    def delete_tag(self, run_id: str, key: str) -> None:
        """Deletes a tag."""
        run = self._writable(run_id)
        self._call(run, "delete_tag", key, otherwise=lambda: [TagDeletion(key)])

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Metric],
        params: Sequence[Param],
        tags: Sequence[RunTag],
    ) -> None:
        """Logs params and tags, and hands in values."""
        run = self._writable(run_id)
        try:
            values, _, _ = checked_batch(metrics, params, tags)
        except MlflowException as error:
            self._refuse(run, error, "log_batch", metrics, params, tags)
            return
        if params or tags:
            self._call(
                run, "log_batch", [], params, tags, otherwise=lambda: _records_of(params, tags)
            )
        if values:
            self._log_metrics(run, values)

    def log_inputs(
        self,
        run_id: str,
        datasets: list[DatasetInput] | None = None,
        models: list[LoggedModelInput] | None = None,
    ) -> None:
        """Notes what a run uses."""
        run = self._writable(run_id)
        known = [each for each in models or [] if each.model_id not in self._models]

        def later() -> list[Record]:
            inputs = [Input(each) for each in datasets or []]
            return [*inputs, *(ModelInput(each.model_id) for each in known)]

        self._call(run, "log_inputs", datasets, known, otherwise=later)

    def log_outputs(self, run_id: str, models: list[LoggedModelOutput]) -> None:
        """Notes which models a run has made."""
        run = self._writable(run_id)
        known = []
        for each in models:
            if (waiting := self._models.get(each.model_id)) is not None:
                waiting.step = int(each.step)
            else:
                known.append(each)
        if known:
            later = [ModelOutput(each.model_id, int(each.step)) for each in known]
            self._call(run, "log_outputs", known, otherwise=lambda: later)

    def get_metric_history(self, run_id: str, metric_key: str, *page: Any, **named: Any) -> Any:
        """The values of a metric; while the store is away, those that it does not have yet."""
        run = self._run(run_id)
        if run.is_delivered():
            ask = functools.partial(run.place.store.get_metric_history, run.run_id, metric_key)
            try:
                return run.place.answers.attempt(lambda: ask(*page, **named))
            except AwayError:
                pass
        return PagedList(run.waiting_history(metric_key), None)

    # Experiments.

    def get_experiment(self, experiment_id: str) -> Experiment:
        """An experiment; while the store is away, as it was seen, or a stand-in."""
        if is_offline_id(experiment_id):
            return self._offline.experiment(experiment_id)
        store = self._place.store
        try:
            found = self._place.answers.attempt(lambda: store.get_experiment(experiment_id))
        except AwayError:
            return self._experiments.get(experiment_id) or self._offline.experiment(experiment_id)
        self._experiments[experiment_id] = found
        return found

    def get_experiment_by_name(self, experiment_name: str) -> Experiment | None:
        """An experiment by its name; while the store is away, as it was seen, or a stand-in."""
        store = self._place.store
        try:
            found = self._place.answers.attempt(
                lambda: store.get_experiment_by_name(experiment_name)
            )
        except AwayError:
            seen = [each for each in self._experiments.values() if each.name == experiment_name]
            return seen[0] if seen else self._offline.experiment_named(experiment_name)
        if found is not None:
            self._experiments[found.experiment_id] = found
        return found

    def create_experiment(
        self, name: str, artifact_location: str | None = None, tags: Any = None
    ) -> str:
        """Creates an experiment; while the store is away it is created with its first run."""
        store = self._place.store
        try:
            return str(
                self._place.answers.attempt(
                    lambda: store.create_experiment(name, artifact_location, tags)
                )
            )
        except AwayError as away:
            if artifact_location is not None or tags:  # which could not be kept
                raise away.__cause__ or away from None
            return self._offline.experiment_named(name).experiment_id

    # Models.

    def create_logged_model(
        self,
        experiment_id: str,
        name: str | None = None,
        source_run_id: str | None = None,
        tags: list[LoggedModelTag] | None = None,
        params: list[LoggedModelParameter] | None = None,
        model_type: str | None = None,
    ) -> LoggedModel:
        """Creates a model of a run; while the store is away it gathers on this machine."""
        if source_run_id is None:
            return self._place.store.create_logged_model(
                experiment_id, name, None, tags, params, model_type
            )
        run = self._run(source_run_id)
        if run.place is not self._place:
            experiment_id = self._offline.experiment_of(experiment_id)
        store = run.place.store
        made = run.call(
            lambda: store.create_logged_model(
                experiment_id, name, run.run_id, tags, params, model_type
            ),
            otherwise=tuple,
        )
        if made is not None:
            self._makers[made.model_id], self._made[made.model_id] = run, made
            return made
        waiting = WaitingModel(run, experiment_id, name, tags or (), params or (), model_type)
        self._models[waiting.entity.model_id] = waiting
        return waiting.entity

    def get_logged_model(self, model_id: str, allow_deleted: bool = False) -> LoggedModel:
        """A model."""
        if (waiting := self._models.get(model_id)) is not None:
            return waiting.entity
        options = {"allow_deleted": True} if allow_deleted else {}
        ask = functools.partial(self._store_of_model(model_id).get_logged_model, model_id)
        run = self._makers.get(model_id)
        if run is None:
            self.bring_up_to_date()
            return self._ask(lambda: ask(**options))
        run.is_delivered()
        with suppress(AwayError):
            self._made[model_id] = run.place.answers.attempt(lambda: ask(**options))
        return self._made[model_id]

    def finalize_logged_model(self, model_id: str, status: LoggedModelStatus) -> LoggedModel:
        """Sets the status of a model."""
        if (waiting := self._models.get(model_id)) is not None:
            waiting.finalize(LoggedModelStatus(status))
            return waiting.entity
        text = LoggedModelStatus(status).value
        done = self._change_model(model_id, "finalize_logged_model", status, status=text)
        return done if done is not None else self.get_logged_model(model_id)

    def set_logged_model_tags(self, model_id: str, tags: list[LoggedModelTag]) -> None:
        """Sets tags of a model."""
        texts = {tag.key: tag.value for tag in tags}
        if (waiting := self._models.get(model_id)) is not None:
            waiting.set_tags(texts)
        else:
            self._change_model(model_id, "set_logged_model_tags", tags, tags=texts)

    def log_logged_model_params(self, model_id: str, params: list[LoggedModelParameter]) -> None:
        """Logs params of a model."""
        texts = {param.key: param.value for param in params}
        if (waiting := self._models.get(model_id)) is not None:
            waiting.add_params(texts)
        else:
            self._change_model(model_id, "log_logged_model_params", params, params=texts)

    # Artifacts.

    def upload(
        self, owner: str, path: Path, artifact_path: str | None, call: Callable[[], object]
    ) -> None:
        """Uploads a file, or the files of a folder, now or later.

        Args:
            owner: Id of the run or the model that they belong to.
            path: The file or folder.
            artifact_path: The folder of the owner's artifacts to put it in.
            call: Uploads it now.
        """
        run = self._owner(owner)
        if run is None:  # a model that somebody else has made
            call()
            return
        with suppress(AwayError):
            self.ask_for_files(owner, call)
            self._uploaded.add(owner)
            return
        if owner in self._makers:
            copy = Path(tempfile.mkdtemp(prefix="mlflow-model-", dir=run.writer.folder()), "files")
            if path.is_dir():
                shutil.copytree(path, copy)
            else:
                copy.mkdir()
                shutil.copyfile(path, copy / path.name)
            run.writer.hand_in(ModelFiles(copy, owner, artifact_path))
            return
        for each in sorted(path.iterdir()) if path.is_dir() else [path]:
            run.writer.log_artifact(each, artifact_path)

    def ask_for_files(self, owner: str, call: Callable[[], _T]) -> _T:
        """What a call about the artifacts of a run or a model returns, after all handed in.

        Raises:
            AwayError: The store is away.
        """
        run = self._owner(owner)
        answers = self._place.answers if run is None else run.place.answers
        if run is not None and (not run.is_delivered() or run.writer.puts_off):
            raise AwayError("it does not have all that was handed in before")
        answers.attempt(lambda: probe(self._place.uri))
        try:
            with asking_once(ANSWER_SECONDS):
                return call()
        except Exception as error:  # the server answers: it may be the store behind it
            if not may_succeed_later(error):
                raise
            raise AwayError(str(error)) from error

    def waiting_files(self, owner: str) -> dict[str, Path] | None:
        """The files of a run that stand in the journal, by their paths in the run.

        Returns:
            None if the store may have others, which cannot be asked for now.
        """
        run = self._owner(owner)
        if run is None or owner in self._uploaded or owner not in self._begun:
            return None
        return run.waiting_files()

    def bring_up_to_date(self, owner: str | None = None) -> None:
        """Waits, if the store answers, until it has what was handed in.

        Args:
            owner: For a run or a model of that id; None for all.
        """
        for run_id, run in list(self._runs.items()):
            maker = self._makers.get(owner or "")
            if owner is None or run_id == owner or run is maker:
                run.is_delivered()

    def end_active(self, error: BaseException | None) -> None:
        """Ends the runs that are still active, as MLflow would at the end of the process."""
        ours = [run_id for run_id in active.all_active() if run_id in self._runs]
        for run_id in ours:
            active.forget(run_id)
            end(self._runs.pop(run_id).writer, error, None)

    def _run(self, run_id: str) -> DurableRun:
        known = self._runs.get(run_id)
        if known is not None:
            return known
        place, seen = self._place, None
        recorded = offline.recorded_run(run_id)
        if recorded is not None:
            delivered = recorded.data.tags.get(offline.DELIVERED_TAG)
            if delivered is not None:
                return self._run(delivered)
            place, seen = self._offline.place, recorded
        return self._runs.setdefault(run_id, DurableRun(run_id, place, seen))

    def _owner(self, owner: str) -> DurableRun | None:
        """The run of artifacts, or that has made the model that they are of, if it is known."""
        return self._makers.get(owner) or (None if owner.startswith("m-") else self._run(owner))

    def _ask(self, call: Callable[[], _T]) -> _T:
        """What the store answers; what it is to be asked is not worth waiting for a dead one."""
        try:
            return self._place.answers.attempt(call, seconds=math.inf)
        except AwayError as away:
            raise away.__cause__ or away from None

    def _writable(self, run_id: str) -> DurableRun:
        """A run that takes values, as far as its store can be asked."""
        known = self._runs.get(run_id)
        if known is not None and known.was_asked_for:
            return known
        run = self._run(run_id)
        try:
            if run.get().info.lifecycle_stage == LifecycleStage.ACTIVE:
                return run
        except MlflowException:
            if run.is_away:
                return run
            self._runs.pop(run_id, None)
            raise
        self._runs.pop(run_id, None)
        raise MlflowException.invalid_parameter_value(
            f"The run {run_id} must be in the 'active' state. Current state is deleted."
        )

    def _call(
        self,
        run: DurableRun,
        method: str,
        *arguments: Any,
        otherwise: Callable[[], Sequence[Record]],
    ) -> None:
        call = functools.partial(getattr(run.place.store, method), run.run_id, *arguments)
        run.call(call, otherwise=otherwise)

    def _log_metrics(self, run: DurableRun, metrics: Sequence[Metric]) -> None:
        if not self._models:
            run.log_metrics(list(metrics))
            return
        for waiting in self._models.values():
            waiting.log_metrics([each for each in metrics if each.model_id == waiting.model_id])
        own = [each for each in metrics if each.model_id not in self._models]
        if own:
            run.log_metrics(own)

    def _refuse(
        self, run: DurableRun, error: MlflowException, method: str, *arguments: Any
    ) -> None:
        """Has the store say why it refuses what no store takes, if it can be asked."""

        def refuse() -> Sequence[Record]:
            raise error

        self._call(run, method, *arguments, otherwise=refuse)

    def _change_model(self, model_id: str, method: str, argument: Any, **fields: Any) -> Any:
        run = self._makers.get(model_id)
        call = getattr(self._store_of_model(model_id), method)
        if run is None:
            return call(model_id, argument)
        later = ModelFields(model_id, **{"tags": {}, "params": {}, "status": None} | fields)
        model = self._made[model_id]
        model.tags.update(later.tags)
        model.params.update(later.params)
        return run.call(lambda: call(model_id, argument), otherwise=lambda: [later])

    def _store_of_model(self, model_id: str) -> Any:
        run = self._makers.get(model_id)
        return self._place.store if run is None else run.place.store

    def _true_experiment(self, experiment_id: str) -> str:
        """The id in the store of an experiment that was chosen while it was away, if it is back."""
        if not is_offline_id(experiment_id):
            return str(experiment_id)
        name = self._offline.name_of(experiment_id)
        found = self.get_experiment_by_name(name)
        return self.create_experiment(name) if found is None else str(found.experiment_id)

    def _say_where(self, info: RunInfo) -> None:
        if is_http_uri(self._place.uri):  # of others MLflow says nothing
            page = run_page(info.experiment_id, info.run_id)
            say_where(f"Run {safe(info.run_name)}", self._place.uri, {"": page})


_stores: dict[tuple[str, str | None], DurableStore] = {}


def open_store(address: str, artifact_uri: str | None = None) -> DurableStore:
    """The tracking store of a durable address, the same each time.

    Args:
        address: Such as `durable+http://127.0.0.1:5000`; the plain address means the same here.
        artifact_uri: Where MLflow puts the artifacts of new experiments.

    Raises:
        mlflow.exceptions.MlflowException: The journal cannot be written, or the store behind
            cannot be opened.
    """
    folder, uri = journals_folder(), plain_uri(address)
    if (known := _stores.get((uri, artifact_uri))) is not None:
        return known
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise MlflowException(
            f"The journal of {address!r} cannot be written: {error.strerror} ({folder}). Set "
            "MLFLOW_KERAS_ADV_HOME to a folder that can be."
        ) from error
    build: Any = DurableStore  # what looks abstract of it is forwarded
    store: DurableStore = build(uri, tracking_store_of(uri, artifact_uri))
    return _stores.setdefault((uri, artifact_uri), store)


@at(Stage.RUNS)
def _end_active(error: BaseException | None) -> None:
    for store in _stores.values():
        store.end_active(error)

"""Copies whole runs from a store of this machine to another, each exactly once.

MLflow itself drops a metric value or a dataset that it holds already. Runs, models and versions
get a tag with the uid of what they were made from, and are looked for by it before they are
created; params and outputs are sent if the target does not show them. So a call may break off
anywhere, or lose an answer, and the next one finishes its work.
"""

import tempfile
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS, MLFLOW_PARENT_RUN_ID, MLFLOW_USER

from mlflow_keras_adv.compat.mlflow import log_model_artifact
from mlflow_keras_adv.tracking.delivery import Delivery, prove
from mlflow_keras_adv.tracking.logged_models import (
    Version,
    ensure_model,
    ensure_version,
    fill_model,
)
from mlflow_keras_adv.tracking.names import UID_TAG, Translation
from mlflow_keras_adv.tracking.records_of_run import (
    CONTINUES_TAG,
    Links,
    MorePoints,
    RecordsOfRun,
    files_of,
    links_of,
)
from mlflow_keras_adv.tracking.retry import Retry
from mlflow_keras_adv.tracking.target import Target, pages
from mlflow_keras_adv.tracking.verdict import RejectedError

# Of an experiment in the source: which one of the target its runs belong to.
EXPERIMENT_ID_TAG = "mlflow_keras_adv.experiment_id"
EXPERIMENT_NAME_TAG = "mlflow_keras_adv.experiment_name"

_LOGGED_MODEL = "models:/m-"


@dataclass
class Copied:
    """What became of one run.

    Attributes:
        run_id: Its id in the source.
        target_run_id: Its id in the target, or None if the run as a whole was rejected.
        points: Metric values that the target holds.
        refused_points: Metric values that it rejected.
        refused: Why, by the name of each thing that it rejected.
    """

    run_id: str
    target_run_id: str | None = None
    points: int = 0
    refused_points: int = 0
    refused: dict[str, str] = field(default_factory=dict)

    def refuse(self, name: str, reason: object, points: int = 0) -> None:
        """Notes the name of something that the target rejected, and how many values it is."""
        self.refused[name] = str(reason)
        self.refused_points += points


def copy_runs(
    source: MlflowClient,
    target: MlflowClient,
    run_ids: Sequence[str],
    ids: MutableMapping[str, str],
    progress: Callable[[], object] = lambda: None,
) -> Iterator[Copied]:
    """Copies runs, with their models and registered versions, to another store.

    Nothing happens before the first result is asked for. All runs are created before the first of
    them is filled, parents first. The status of a run is written after everything else of it, and
    before its versions are registered; a run that is RUNNING in the source stays so. A run with
    the tag `mlflow_keras_adv.continues` is merged into that run of the target. Ids in tags, in
    MLmodel files and in the sources of versions become those of the target.

    Not copied: traces, models without a run, and the times at which models and versions were
    created.

    Args:
        source: A store whose artifacts lie in folders of this machine.
        target: Any store.
        run_ids: Runs of the source. The parent of a run, and the runs whose models it measures,
            belong in the same call, or in one before.
        ids: Id in the target by id in the source, of runs, models and versions. Changed at once
            when something was created; keep it for the next call.
        progress: Called after each call to the target, answered or not.

    Yields:
        One result for each run, as soon as all of it is in the target or refused by name.

    Raises:
        Exception: From a call to the target that may succeed later: an error of the connection or
            the server, a missing right. Call again then, with the runs that are left.
    """
    experiments = [each.experiment_id for each in pages(source.search_experiments)]
    search = source.search_logged_models
    models = list(pages(search, experiment_ids=experiments)) if experiments else []
    copying = _Copying(source, Target(target, ids, progress), models, progress)
    runs = _parents_first([source.get_run(run_id) for run_id in run_ids])
    for run, copied in [(run, copying.open(run)) for run in runs]:
        if copied.target_run_id is not None:
            copying.fill(run, copied)
        yield copied


class _Copying:
    """Copies run by run.

    Args:
        source: Where they are.
        target: Where they go.
        models: All models of the source.
        progress: Called after each call to the target.
    """

    def __init__(
        self,
        source: MlflowClient,
        target: Target,
        models: Sequence[LoggedModel],
        progress: Callable[[], object],
    ) -> None:
        self._source = source
        self._target = target
        self._progress = progress
        self._links = links_of(models)
        self._models: dict[str, list[LoggedModel]] = defaultdict(list)
        for model in models:
            self._models[str(model.source_run_id)].append(model)
        self._experiments: dict[str, str] = {}

    def open(self, run: Run) -> Copied:
        """Finds or creates a run and its models, with hardly more than their names."""
        copied, ids = Copied(run.info.run_id), self._target.ids
        try:
            there = self._open_run(run)
        except RejectedError as error:
            copied.refuse(f"run {run.info.run_name}", error)
            return copied
        ids[run.info.run_id] = copied.target_run_id = there.info.run_id
        for model in self._models[run.info.run_id]:
            if model.model_id in ids:
                continue
            try:
                ids[model.model_id] = ensure_model(
                    self._target,
                    there.info.experiment_id,
                    model.tags.get(UID_TAG, model.model_id),
                    name=model.name,
                    run_id=there.info.run_id,
                    model_type=model.model_type,
                ).model_id
            except RejectedError as error:
                copied.refuse(f"model {model.name}", error)
        return copied

    def fill(self, run: Run, copied: Copied) -> None:
        """Brings all that a run holds, then its status, then its registered versions."""
        target, run_id = self._target, str(copied.target_run_id)
        translation = Translation(target.ids)
        try:
            there = target.active_run(run_id)
            translation.places[run.info.artifact_uri] = there.info.artifact_uri
            for model in self._models[run.info.run_id]:
                self._fill_model(model, translation, copied)
            links = self._links.get(run.info.run_id, Links())
            self._apply_records(
                RecordsOfRun(
                    self._source,
                    run,
                    target=target,
                    there=there,
                    translation=translation,
                    links=links,
                ),
                copied,
            )
            if copied.refused:
                target.active_run(run_id)
        except RejectedError as error:
            copied.refuse(f"run {run.info.run_name}", error)
            copied.target_run_id = None
            return
        self._register_versions(run.info.run_id, translation, copied)

    def _apply_records(self, records: RecordsOfRun, copied: Copied) -> None:
        target, run_id = self._target, str(copied.target_run_id)
        counts = True

        def refuse(name: str, reason: str, points: int) -> None:
            copied.refuse(name, reason, points if counts else 0)

        retry = Retry(
            run_id,
            prove=lambda: prove(target, run_id, uuid.uuid4().hex),
            progress=self._progress,
            patient=False,
        )
        delivery = Delivery(run_id, target, retry, refuse)
        for record in records:
            counts = not isinstance(record, MorePoints)
            record.apply(delivery)
        copied.points = records.points - copied.refused_points

    def _fill_model(self, model: LoggedModel, translation: Translation, copied: Copied) -> None:
        target, client = self._target, self._target.client
        if model.model_id not in target.ids:
            return

        def upload() -> None:
            with tempfile.TemporaryDirectory() as folder:
                for file, parent in files_of(model.artifact_location, Path(folder), translation):
                    try:
                        target.ask(log_model_artifact, client, there.model_id, str(file), parent)
                    except RejectedError as error:
                        place = file.name if parent is None else f"{parent}/{file.name}"
                        copied.refuse(f"model {model.name}: {place}", error)

        try:
            there = target.ask(client.get_logged_model, target.ids[model.model_id])
            translation.places[model.artifact_location] = there.artifact_location
            tags = {
                key: translation.of(text)
                for key, text in model.tags.items()
                if key not in (UID_TAG, MLFLOW_MODEL_VERSIONS)
            }
            status = LoggedModelStatus(model.status)
            fill_model(target, there, params=model.params, tags=tags, upload=upload, status=status)
        except RejectedError as error:
            copied.refuse(f"model {model.name}", error)

    def _register_versions(self, run_id: str, translation: Translation, copied: Copied) -> None:
        """Registers what was registered of a run, in its order, with aliases."""
        target = self._target
        found = pages(self._source.search_model_versions, filter_string=f"run_id = '{run_id}'")
        for version in sorted(found, key=_age):
            here = f"models:/{version.name}/{version.version}"
            if here in target.ids:  # and its aliases may have moved on
                continue
            try:
                number = ensure_version(target, self._version(version, translation))
                read = self._source.get_model_version(version.name, version.version)
                for alias in read.aliases:
                    set_alias = target.client.set_registered_model_alias
                    target.ask(set_alias, version.name, alias, number)
                target.ids[here] = f"models:/{version.name}/{number}"
            except RejectedError as error:
                copied.refuse(f"version {version.version} of {version.name}", error)

    def _version(self, version: ModelVersion, translation: Translation) -> Version:
        """A version of the source, as it is to be in the target."""
        here, ids = str(version.source), self._target.ids
        place = ids.get(here, translation.of(here))
        if place == here and here not in ids:  # the same words would mean another model there
            raise RejectedError(f"Its source {here} was not copied.")
        made_of_model = place.startswith(_LOGGED_MODEL)
        registered = self._source.get_registered_model(version.name)
        return Version(
            version.name,
            uid=version.tags.get(UID_TAG, f"{version.run_id}/{version.name}/{version.version}"),
            source=place,
            run_id=ids[str(version.run_id)],
            model_id=place.removeprefix("models:/") if made_of_model else None,
            tags={key: translation.of(text) for key, text in version.tags.items()},
            description=version.description,
            registered_model={"tags": registered.tags, "description": registered.description},
        )

    def _open_run(self, run: Run) -> Run:
        target, tags = self._target, run.data.tags
        known = target.ids.get(run.info.run_id)
        if known is None and CONTINUES_TAG in tags:
            known = target.ids.get(tags[CONTINUES_TAG], tags[CONTINUES_TAG])
        if known is not None:
            return target.active_run(known)
        experiment_id = self._experiment(run.info.experiment_id)
        uid, translation = tags.get(UID_TAG, run.info.run_id), Translation(target.ids)
        first = {
            key: translation.of(tags[key])
            for key in (MLFLOW_PARENT_RUN_ID, MLFLOW_USER)
            if key in tags
        }
        return target.ensure_run(
            experiment_id,
            uid,
            lambda: target.ask(
                target.client.create_run,
                experiment_id,
                start_time=run.info.start_time,
                tags={**first, UID_TAG: uid},
                run_name=run.info.run_name,
            ),
        )

    def _experiment(self, experiment_id: str) -> str:
        if experiment_id not in self._experiments:
            here = self._source.get_experiment(experiment_id)
            tags = {key: text for key, text in here.tags.items() if key != EXPERIMENT_NAME_TAG}
            self._experiments[experiment_id] = here.tags.get(
                EXPERIMENT_ID_TAG
            ) or self._target.ensure_experiment(here.tags.get(EXPERIMENT_NAME_TAG, here.name), tags)
        return self._experiments[experiment_id]


def _age(version: ModelVersion) -> tuple[int, int]:
    return version.creation_timestamp, int(version.version)


def _parents_first(runs: Sequence[Run]) -> list[Run]:
    """Runs by their start, each after its parent and after the run that it continues."""
    waiting = {run.info.run_id: run for run in sorted(runs, key=lambda run: run.info.start_time)}
    ordered: list[Run] = []

    def place(run: Run) -> None:
        for tag in (MLFLOW_PARENT_RUN_ID, CONTINUES_TAG):
            if (before := waiting.pop(run.data.tags.get(tag, ""), None)) is not None:
                place(before)
        ordered.append(run)

    while waiting:
        place(waiting.pop(next(iter(waiting))))
    return ordered

"""LoggedModels, their registered versions, and how a model that was saved here becomes one."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric, RunOutputs
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model as ModelFolder
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from mlflow_keras_adv.tracking.names import UID_TAG
from mlflow_keras_adv.tracking.target import Target, of_uid
from mlflow_keras_adv.tracking.verdict import RejectedError, of_artifacts

# The ids of models that the store does not know yet begin so.
UID_PREFIX = "pending-"
# The tag by which a run or a model names the model that it comes from.
PARENT_TAG = "parent_model_id"
# Why a file or a model cannot be delivered whose copy should be in the journal.
COPY_IS_GONE = "its copy in the journal is gone, and the store has none"


class ModelIds:
    """The ids that the store has given to models that had none when they were logged.

    Args:
        client: The store.
        run_id: The run that the models are outputs of.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self._run_id = run_id
        self._known: dict[str, str] = {}

    def true(self, text: str) -> str:
        """The store's id for the id of a model that it did not know; any other text as it is."""
        if not text.startswith(UID_PREFIX):
            return text
        if text not in self._known:
            experiment_id = self._client.get_run(self._run_id).info.experiment_id
            found = models_of(Target(self._client, {}), experiment_id, text)
            if not found:  # rejected, or deleted since
                return text
            self._known[text] = found[0].model_id
        return self._known[text]

    def of(self, metric: Metric) -> Metric:
        """A metric value, with the store's id for its model."""
        if metric.model_id is None or not metric.model_id.startswith(UID_PREFIX):
            return metric
        return of_model(metric, self.true(metric.model_id))


def of_model(point: Metric, model_id: str, *, measured_on: Metric | None = None) -> Metric:
    """A metric value of a run as that of a model.

    Args:
        point: The value.
        model_id: The model.
        measured_on: A value that says on which dataset; default: `point`.
    """
    on = measured_on or point
    measured = (on.dataset_name, on.dataset_digest)
    return Metric(point.key, point.value, point.timestamp, point.step, model_id, *measured)


def models_of(target: Target, experiment_id: str, uid: str) -> list[LoggedModel]:
    """The LoggedModels of a uid."""
    search = target.client.search_logged_models
    found = target.ask(search, [experiment_id], filter_string=of_uid(uid))
    return sorted(found, key=lambda model: model.model_id)


def ensure_model(
    target: Target, experiment_id: str, uid: str, *, name: str, run_id: str, model_type: str | None
) -> LoggedModel:
    """The LoggedModel of a uid, found or created by name and uid alone.

    Args:
        target: The store.
        experiment_id: The experiment of its run.
        uid: In its tag `names.UID_TAG`.
        name: Its name.
        run_id: The run that it is an output of.
        model_type: For example "classifier".

    Raises:
        RejectedError: It cannot be created.
    """
    client = target.client
    return target.find_or_create(
        lambda: models_of(target, experiment_id, uid),
        lambda: target.ask(
            client.create_logged_model,
            experiment_id,
            name=name,
            source_run_id=run_id,
            tags={UID_TAG: uid},
            model_type=model_type,
        ),
        lambda duplicate: target.ask(client.delete_logged_model, duplicate.model_id),
    )


def fill_model(
    target: Target,
    there: LoggedModel,
    *,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    upload: Callable[[], object],
    status: LoggedModelStatus,
) -> None:
    """Brings all that a LoggedModel holds, then its status; what it holds already is left alone.

    Args:
        target: The store.
        there: The model.
        params: Its params.
        tags: Its tags.
        upload: Brings its files.
        status: Its status; PENDING leaves it as it is.

    Raises:
        RejectedError: The model is not there any more, or takes no values.
    """
    client, model_id = target.client, there.model_id
    _fill_params(target, there, params)
    if not tags.items() <= there.tags.items():
        target.ask(client.set_logged_model_tags, model_id, dict(tags))
    upload()
    if status not in (LoggedModelStatus.PENDING, there.status):
        target.ask(client.finalize_logged_model, model_id, status)


def _fill_params(target: Target, there: LoggedModel, params: Mapping[str, str]) -> None:
    """Logs what is missing: MLflow refuses a param that a model has, be it with an equal value."""
    client, model_id = target.client, there.model_id
    missing = {key: text for key, text in params.items() if key not in there.params}
    while missing:
        try:
            target.ask(client.log_model_params, model_id, missing)
            return
        except RejectedError:  # MLflow's HTTP client may have sent some of them twice
            known = target.ask(client.get_logged_model, model_id).params
            if known.keys().isdisjoint(missing):
                raise
            missing = {key: text for key, text in missing.items() if key not in known}


def ensure_output(target: Target, run_id: str, model_id: str, step: int) -> None:
    """Notes that a run has made a model; MLflow refuses to do so again.

    Raises:
        RejectedError: It is refused, and not there.
    """

    def is_noted() -> bool:
        outputs = target.ask(target.client.get_run, run_id).outputs or RunOutputs([])
        return model_id in {output.model_id for output in outputs.model_outputs}

    if is_noted():
        return
    output = LoggedModelOutput(model_id=model_id, step=step)
    try:
        target.ask(target.client.log_outputs, run_id, [output])
    except RejectedError:  # MLflow's HTTP client has sent it twice
        if not is_noted():
            raise


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        name: The registered model.
        uid: In its tag `names.UID_TAG`.
        source: What it was made of, `models:/…`.
        run_id: The run that has made that.
        model_id: The LoggedModel that it was made of, if it was one.
        tags: Its tags.
        description: Its description.
        registered_model: Tags and description of the registered model, if there is none yet.
    """

    name: str
    uid: str
    source: str
    run_id: str
    model_id: str | None
    tags: Mapping[str, str]
    description: str | None = None
    registered_model: Mapping[str, object] = field(default_factory=dict)


def ensure_version(target: Target, wanted: Version) -> str:
    """The number of a version, found or created.

    Raises:
        RejectedError: It cannot be created.
    """
    client, name = target.client, wanted.name
    deleted: list[str] = []

    def find() -> list[ModelVersion]:
        condition = f"name = '{name}' AND {of_uid(wanted.uid)}"
        found = target.ask(client.search_model_versions, condition)
        # A copy of a version has its tags, but another source.
        same = (version for version in found if version.source == wanted.source)
        return sorted(same, key=lambda version: int(version.version))

    def create() -> None:
        target.ensure_registered_model(name, **wanted.registered_model)
        target.ask(
            client.create_model_version,
            name,
            wanted.source,
            run_id=wanted.run_id,
            tags={**wanted.tags, UID_TAG: wanted.uid},
            description=wanted.description,
            await_creation_for=0,
            model_id=wanted.model_id,
        )

    def delete(duplicate: ModelVersion) -> None:
        deleted.append(str(duplicate.version))
        target.ask(client.delete_model_version, name, duplicate.version)

    number = str(target.find_or_create(find, create, delete).version)
    if wanted.model_id is not None:
        _link(target, wanted.model_id, name, number, deleted)
    return number


def _link(target: Target, model_id: str, name: str, number: str, deleted: list[str]) -> None:
    """Notes a version at its model; a server does so itself, if nothing interrupts it."""
    there = target.ask(target.client.get_logged_model, model_id)
    noted = json.loads(there.tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    versions = [
        each for each in noted if each["name"] != name or str(each["version"]) not in deleted
    ]
    if not any(each["name"] == name and str(each["version"]) == number for each in versions):
        versions.append({"name": name, "version": number})
    if versions != noted:
        target.ask(
            target.client.set_logged_model_tags,
            model_id,
            {MLFLOW_MODEL_VERSIONS: json.dumps(versions)},
        )


@dataclass(frozen=True)
class SavedModel:
    """A folder in MLflow's model format on this machine, which is to become a LoggedModel.

    Attributes:
        uid: Id until the store has given one; in the model's tags afterwards.
        path: The folder, alone in a folder of its own.
        name: Name of the LoggedModel.
        params: Its params.
        tags: Its tags.
        model_type: For example "classifier".
        step: Training step that it comes from.
        registered_model_name: Registered model to make a version of.
    """

    uid: str
    path: Path
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    model_type: str | None
    step: int
    registered_model_name: str | None


def deliver_model(
    target: Target, run_id: str, model: SavedModel, *, ask: Callable[[], object]
) -> None:
    """Makes a LoggedModel of its run. To do so again completes the one that was made.

    Args:
        target: The store.
        run_id: The run that the model is an output of.
        model: The model.
        ask: Raises if the store of the artifacts does not answer.

    Raises:
        ArtifactStoreError: All is done but what the store of the artifacts does not take for now.
        RejectedError: The store rejects it, or the copy of the folder is gone, and the store does
            not have all of it.
    """
    client = target.client
    run = target.ask(client.get_run, run_id)
    experiment_id = run.info.experiment_id
    if not model.path.exists():
        found = models_of(target, experiment_id, model.uid)
        if any(each.status == LoggedModelStatus.READY for each in found):
            return  # by a process that deleted the copy, and could not write that down
        raise RejectedError(COPY_IS_GONE)
    there = ensure_model(
        target,
        experiment_id,
        model.uid,
        name=model.name,
        run_id=run_id,
        model_type=model.model_type,
    )
    _correct_references(target, experiment_id, model.uid, there.model_id)
    ensure_output(target, run_id, there.model_id, model.step)
    _link_metrics(target, run_id, there.model_id, model.step)
    _write_ids(model.path, run_id, there)

    def upload() -> None:
        with of_artifacts():
            ask()
            target.ask(client.log_model_artifacts, there.model_id, str(model.path))

    fill_model(
        target,
        there,
        params={**run.data.params, **model.params},
        tags=model.tags,
        upload=upload,
        status=LoggedModelStatus.READY,
    )
    if model.registered_model_name is not None:
        ensure_version(
            target,
            Version(
                model.registered_model_name,
                uid=model.uid,
                source=f"models:/{there.model_id}",
                run_id=run_id,
                model_id=there.model_id,
                tags=model.tags,
            ),
        )


def _correct_references(target: Target, experiment_id: str, uid: str, model_id: str) -> None:
    """Gives the store's id to those who named the model and were delivered before it."""
    client, condition = target.client, f"tags.`{PARENT_TAG}` = '{uid}'"
    found = target.ask(client.search_logged_models, [experiment_id], filter_string=condition)
    for child in found:
        target.ask(client.set_logged_model_tags, child.model_id, {PARENT_TAG: model_id})
    for run in target.ask(client.search_runs, [experiment_id], condition):
        target.ask(client.set_tag, run.info.run_id, PARENT_TAG, model_id)


def _link_metrics(target: Target, run_id: str, model_id: str, step: int) -> None:
    """Has the model show the values of its run at its step, as `Model.log` does.

    A store keeps equal points of a run once.
    """
    client = target.client
    linked = [
        of_model(point, model_id)
        for key in target.ask(client.get_run, run_id).data.metrics
        for point in target.ask(client.get_metric_history, run_id, key)
        if point.step == step and point.model_id is None
    ]
    if linked:
        target.ask(client.log_batch, run_id, metrics=linked)


def _write_ids(folder: Path, run_id: str, there: LoggedModel) -> None:
    """MLflow's description of a model holds the ids that the store gave."""
    description = ModelFolder.load(str(folder))
    description.run_id = run_id
    description.model_uuid = there.model_id
    description.model_id = there.model_id
    description.artifact_path = there.artifact_location
    description.save(str(folder / "MLmodel"))

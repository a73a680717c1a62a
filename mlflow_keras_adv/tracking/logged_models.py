"""How a model that was saved on this machine becomes a LoggedModel of its run."""

from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model as ModelFolder
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

from mlflow_keras_adv.tracking.items import Model, Points, Series
from mlflow_keras_adv.tracking.names import UID_TAG

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
            found = _models_of(self._client, experiment_id, text)
            if not found:  # rejected, or deleted since
                return text
            self._known[text] = found[0].model_id
        return self._known[text]

    def values(self, item: Points | Series) -> Points | Series:
        """Metric values, with the store's ids for their models."""
        if isinstance(item, Series):  # they belong to no model
            return item
        return Points([self._metric(metric) for metric in item])

    def _metric(self, metric: Metric) -> Metric:
        if metric.model_id is None or not metric.model_id.startswith(UID_PREFIX):
            return metric
        model_id, on = self.true(metric.model_id), (metric.dataset_name, metric.dataset_digest)
        return Metric(metric.key, metric.value, metric.timestamp, metric.step, model_id, *on)


def deliver_model(client: MlflowClient, run_id: str, model: Model) -> None:
    """Makes a LoggedModel of its run. To do so again completes the one that was made.

    Args:
        client: The store.
        run_id: The run that the model is an output of.
        model: The model.

    Raises:
        FileNotFoundError: If the copy of the folder is gone, and the store does not have all of it.
    """
    run = client.get_run(run_id)
    found = _models_of(client, run.info.experiment_id, model.uid)
    if not model.path.exists():
        if any(each.status == LoggedModelStatus.READY for each in found):
            return  # by a process that deleted the copy, and could not write that down
        raise FileNotFoundError(COPY_IS_GONE)
    if not found:
        client.create_logged_model(
            run.info.experiment_id,
            name=model.name,
            source_run_id=run_id,
            tags={**model.tags, UID_TAG: model.uid},
            params={**run.data.params, **model.params},
            model_type=model.model_type,
        )
        found = _models_of(client, run.info.experiment_id, model.uid)
    (model_id, *twins) = [each.model_id for each in found]
    for twin in twins:  # MLflow sends a request again when its answer was lost
        client.delete_logged_model(twin)
    _correct_references(client, run.info.experiment_id, model.uid, model_id)
    outputs = run.outputs.model_outputs if run.outputs else []
    if model_id not in {output.model_id for output in outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, model.step)])
    _link_metrics(client, run_id, model_id, model.step)
    _write_ids(model.path, client, run_id, model_id)
    client.log_model_artifacts(model_id, str(model.path))
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    if model.registered_model_name is not None:
        _register(client, model.registered_model_name, run_id, model_id, model)


def _correct_references(client: MlflowClient, experiment_id: str, uid: str, model_id: str) -> None:
    """Gives the store's id to those who named the model and were delivered before it."""
    condition = f"tags.`{PARENT_TAG}` = '{uid}'"
    for child in client.search_logged_models([experiment_id], filter_string=condition):
        client.set_logged_model_tags(child.model_id, {PARENT_TAG: model_id})
    for run in client.search_runs([experiment_id], condition):
        client.set_tag(run.info.run_id, PARENT_TAG, model_id)


def _link_metrics(client: MlflowClient, run_id: str, model_id: str, step: int) -> None:
    """Has the model show the values of its run at its step, as `Model.log` does.

    A store keeps equal points of a run once.
    """
    linked = [
        Metric(
            point.key,
            point.value,
            point.timestamp,
            point.step,
            model_id,
            point.dataset_name,
            point.dataset_digest,
            run_id,
        )
        for key in client.get_run(run_id).data.metrics
        for point in client.get_metric_history(run_id, key)
        if point.step == step and point.model_id is None
    ]
    if linked:
        client.log_batch(run_id, metrics=linked)


def _models_of(client: MlflowClient, experiment_id: str, uid: str) -> list[LoggedModel]:
    condition = f"tags.`{UID_TAG}` = '{uid}'"
    found = client.search_logged_models([experiment_id], filter_string=condition)
    return sorted(found, key=lambda model: model.model_id)


def _write_ids(folder: Path, client: MlflowClient, run_id: str, model_id: str) -> None:
    """MLflow's description of a model holds the ids that the store gave."""
    description = ModelFolder.load(str(folder))
    description.run_id = run_id
    description.model_uuid = model_id
    description.model_id = model_id
    description.artifact_path = client.get_logged_model(model_id).artifact_location
    description.save(str(folder / "MLmodel"))


def _register(client: MlflowClient, name: str, run_id: str, model_id: str, model: Model) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
    versions = client.search_model_versions(f"name = '{name}'")
    if not any(version.tags.get(UID_TAG) == model.uid for version in versions):
        client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=run_id,
            tags={**model.tags, UID_TAG: model.uid},
            model_id=model_id,
        )

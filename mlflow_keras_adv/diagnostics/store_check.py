"""Checks a store by creating, reading and deleting a small run, model and version."""

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient, artifacts
from mlflow.entities import LoggedModelStatus, Metric, Param, RunTag
from mlflow.environment_variables import MLFLOW_EXPERIMENT_ID, MLFLOW_EXPERIMENT_NAME
from mlflow.models import Model

from mlflow_keras_adv.compat.mlflow import delete_artifact

_DEFAULT_EXPERIMENT_ID = "0"
_FILE = "doctor.txt"
_ALIAS = "doctor"
_VALUE = 0.5


@dataclass(frozen=True)
class Check:
    """One thing to try.

    Attributes:
        name: For the table.
        call: The step itself.
        needs: The step that must have worked before.
        right: The right that a store with logins has to grant.
        required: Whether a training needs it.
    """

    name: str
    call: Callable[[], object]
    needs: str | None
    right: str
    required: bool = True


class StoreCheck:
    """Its steps and their cleanup. All objects share a unique name, by which cleanup finds them.

    Args:
        client: The store.
        folder: For local files.
    """

    def __init__(self, client: MlflowClient, folder: Path) -> None:
        self._client = client
        self._folder = folder
        self._name = f"mlflow-keras-adv-doctor-{uuid.uuid4().hex[:12]}"
        self._experiment_id = _DEFAULT_EXPERIMENT_ID
        self._run_id = ""
        self._model_id = self._model_location = ""
        self._begun: set[str] = set()

    def steps(self) -> Iterator[Check]:
        """The steps, in order."""
        edit, register = "EDIT on the experiment", "the right to register models"
        reach, run, model = "reach the store", "create a run", "log a model"
        yield Check("find the experiment", self._find_experiment, reach, "READ on the experiment")
        yield Check(run, self._create_run, "find the experiment", edit)
        yield Check("log metric, param, tag", self._log, run, edit)
        yield Check("read them back", self._read, "log metric, param, tag", edit)
        yield Check("upload an artifact", self._upload, run, edit)
        yield Check("download it", self._download, "upload an artifact", edit)
        yield Check(model, self._log_model, run, edit)
        yield Check("register a version", self._register, model, register)
        yield Check("set an alias", self._set_alias, "register a version", register)
        yield Check("download by the alias", self._load, "set an alias", register)
        yield Check("end the run", self._end, run, edit)

    def deletions(self) -> Iterator[Check]:
        """Deletes the objects of every step that was begun, since an answer may have been lost."""
        delete = "the right to delete (MANAGE)"
        for begun, name, call in (
            ("artifact", "delete the artifact", self._delete_artifact),
            ("version", "delete the version", self._delete_version),
            ("model", "delete the model", self._delete_models),
            ("run", "delete the run", self._delete_runs),
        ):
            if begun in self._begun:
                yield Check(name, call, None, delete, required=False)

    def _find_experiment(self) -> None:
        found = None
        if name := MLFLOW_EXPERIMENT_NAME.get():
            found = self._client.get_experiment_by_name(name)
        elif experiment_id := MLFLOW_EXPERIMENT_ID.get():
            found = self._client.get_experiment(experiment_id)
        found = found or self._client.get_experiment(_DEFAULT_EXPERIMENT_ID)
        self._experiment_id = found.experiment_id

    def _create_run(self) -> None:
        self._begun.add("run")
        self._run_id = self._client.create_run(self._experiment_id, run_name=self._name).info.run_id

    def _log(self) -> None:
        metric = Metric("doctor", _VALUE, int(1000 * time.time()), 1)
        self._client.log_batch(
            self._run_id, [metric], [Param("doctor", self._name)], [RunTag("doctor", self._name)]
        )

    def _read(self) -> None:
        (point,) = self._client.get_metric_history(self._run_id, "doctor")
        data = self._client.get_run(self._run_id).data
        read = (point.value, point.step, data.params["doctor"], data.tags["doctor"])
        _require_equal(read, (_VALUE, 1, self._name, self._name))

    def _upload(self) -> None:
        self._begun.add("artifact")
        self._client.log_text(self._run_id, self._name, _FILE)

    def _download(self) -> None:
        path = self._client.download_artifacts(self._run_id, _FILE, str(self._folder))
        _require_equal(Path(path).read_text(), self._name)

    def _log_model(self) -> None:
        self._begun.add("model")
        model = self._client.create_logged_model(
            self._experiment_id, self._name, source_run_id=self._run_id
        )
        self._model_id, self._model_location = model.model_id, model.artifact_location
        folder = self._folder / "model"
        folder.mkdir()
        Model(run_id=self._run_id, model_id=self._model_id).save(str(folder / "MLmodel"))
        self._client.log_model_artifacts(self._model_id, str(folder))
        self._client.finalize_logged_model(self._model_id, LoggedModelStatus.READY)

    def _register(self) -> None:
        self._begun.add("version")
        self._client.create_registered_model(self._name)
        self._client.create_model_version(
            self._name, self._model_location, self._run_id, model_id=self._model_id
        )

    def _set_alias(self) -> None:
        self._client.set_registered_model_alias(self._name, _ALIAS, "1")

    def _load(self) -> None:
        version = self._client.get_model_version_by_alias(self._name, _ALIAS)
        place = self._client.get_model_version_download_uri(self._name, version.version)
        # Not by models:/…, which MLflow looks up in the registry of the environment.
        path = artifacts.download_artifacts(
            place,
            dst_path=str(self._folder / "loaded"),
            tracking_uri=self._client.tracking_uri,
        )
        _require_equal(Model.load(path).model_id, self._model_id)

    def _end(self) -> None:
        self._client.set_terminated(self._run_id)
        _require_equal(self._client.get_run(self._run_id).info.status, "FINISHED")

    def _delete_artifact(self) -> None:
        delete_artifact(self._client, self._run_id, _FILE)

    def _delete_version(self) -> None:
        self._client.delete_registered_model(self._name)

    def _delete_models(self) -> None:
        named = f"name = '{self._name}'"
        for model in self._client.search_logged_models([self._experiment_id], named):
            self._client.delete_logged_model(model.model_id)

    def _delete_runs(self) -> None:
        named = f"run_name = '{self._name}'"
        for run in self._client.search_runs([self._experiment_id], named):
            self._client.delete_run(run.info.run_id)


def _require_equal(read: object, written: object) -> None:
    if read != written:
        raise ValueError(f"the store gave back {read!r} for {written!r}")

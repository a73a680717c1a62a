"""The one way in which a finished Keras model becomes an MLflow LoggedModel, and back.

What is logged is an MLflow model folder:

    data/keras/model.keras             the model, without optimizer and compile arguments
    data/keras/loading.json            where its custom objects are, what its inputs are called
    code/mlflow_keras_adv_loader.py    loads it; a copy of `training/loading.py`
    code/…                             the source of its custom objects

`mlflow.pyfunc.load_model` and `mlflow models serve` need only Keras and MLflow to be installed,
and so does `mlflow.keras.load_model` where there are no custom objects. There is one layout for all
models: with `mlflow.keras` as loader of the plain ones they would be 5 kB smaller, but it cannot
return several outputs and prints a progress bar for every request.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import keras
import mlflow
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.models import Model, ModelSignature
from mlflow.models.model import ModelInfo

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.model_signature import inputs_of, signature_of
from mlflow_keras_adv.random_state import keeps_random_state
from mlflow_keras_adv.tracking.run import Run, current_run, known_run
from mlflow_keras_adv.tracking.store import answers
from mlflow_keras_adv.training import loading
from mlflow_keras_adv.training.custom_objects import custom_objects, sources
from mlflow_keras_adv.training.saving import check_round_trip, save_without_optimizer

_FOLDER = "keras"
_LOADER = "mlflow_keras_adv_loader"
_NOT_IN_NAMES = "/:.%\"'"


@keeps_random_state()
def log_model(
    model: keras.Model,
    *,
    name: str,
    run_id: str | None = None,
    input_example: Any = None,
    signature: ModelSignature | None = None,
    code_paths: Sequence[str | Path] = (),
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, object] | None = None,
    metadata: dict[str, Any] | None = None,
    step: int = 0,
    model_type: str | None = None,
    pip_requirements: Sequence[str] | None = None,
    registered_model_name: str | None = None,
) -> ModelInfo:
    """Logs a finished model, uncompiled, as a LoggedModel of a run.

    Before anything is created in the store, the model is saved, loaded again and compared on the
    input example.

    Args:
        model: A built model. It stays as it is: compiled, with its optimizer.
        name: What to call it, without any of `/ : . % " '`.
        run_id: The run that made it; default: the active run of this thread. The model goes to the
            run's experiment. Without any run it has none, and goes where MLflow would put it.
        input_example: A few samples, shape (samples, …), of the dtype that callers will send; for a
            model with several inputs a dict of such arrays by name, or a list. Stored as JSON.
        signature: Default: that of the input example and of what the model answers; the number of
            samples is free, and so is every other axis that the model leaves free.
        code_paths: Files and package folders to take along. The modules of custom objects, and the
            local modules that these import, are taken along anyway.
        params: Params of the model, beside those of the run, over which they win.
        tags: Tags of the model.
        metadata: Kept in the MLmodel file.
        step: The training step that the model comes from. MLflow links those metrics of the run to
            it that were logged at this step.
        model_type: For example "classifier".
        pip_requirements: Default: the installed mlflow, tensorflow, keras and numpy, and the
            installed distributions that custom objects come from.
        registered_model_name: Registers a version of this model too.

    Returns:
        MLflow's description of the model, with `model_id` and `model_uri`. In a run of `track`
        whose server does not answer, an id that becomes the true one in the metrics and tags of
        that run, when the server is back and the model is delivered.

    Raises:
        ValueError: A bad name, a model without weights, no input example and no signature.
        UserError: Who loads the model could not import a custom object, or Keras cannot load what
            was saved, or the loaded model answers differently.
        mlflow.exceptions.MlflowException: From the store; a LoggedModel made before is FAILED.
    """
    _check_name(name)
    if input_example is None and signature is None:
        raise ValueError(
            "log_model needs an input_example (a few samples, such as x[:2]) or a signature"
        )
    places = [_existing(path) for path in code_paths]
    inputs, example, list_inputs = inputs_of(model, input_example)
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary, _FOLDER)
        data.mkdir()
        file = data / loading.MODEL_FILE
        save_without_optimizer(model, file)
        signature = signature or signature_of(model, inputs, example)
        objects = custom_objects(model, file, places)
        known = {each.name: each.value for each in objects if each.value is not None}
        check_round_trip(model, file, inputs, custom_objects=known)
        description = {
            "custom_objects": {each.name: each.place for each in objects},
            "list_inputs": list_inputs,
        }
        (data / loading.LOADING_FILE).write_text(json.dumps(description, indent=2))
        loader = shutil.copy(loading.__file__, Path(temporary, f"{_LOADER}.py"))
        modules = {each.module for each in objects}
        given = {place.name for place in places}
        found = [source for source in sources(modules) if source.name not in given]
        folder = {
            "loader_module": _LOADER,
            "data_path": str(data),
            "code_paths": [str(path) for path in (loader, *places, *found)],
            "signature": signature,
            "input_example": example,
            "pip_requirements": list(pip_requirements or _requirements(modules, found)),
        }
        run = current_run() if run_id is None else known_run(run_id)
        if run is not None and not answers(run.tracking_uri):
            return _hand_in(
                run,
                folder,
                Path(temporary, "model"),
                metadata=metadata,
                name=name,
                params=params,
                tags=tags,
                model_type=model_type,
                step=step,
                registered_model_name=registered_model_name,
            )
        logged = _create(name, run_id, params=params, tags=tags, model_type=model_type)
        try:
            return Model.log(
                artifact_path=None,
                flavor=_KerasFlavor,
                run_id=logged.source_run_id,
                model_id=logged.model_id,
                step=step,
                metadata=metadata,
                registered_model_name=registered_model_name,
                # It would import the copies of modules that this process has already.
                validate_serving_input=False,
                **folder,
            )
        except BaseException as error:
            # Model.log has marked the model FAILED after an Exception, but not after Ctrl-C.
            if not isinstance(error, Exception):
                client = mlflow.MlflowClient()
                client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
            raise


@keeps_random_state()
def load_model(model_uri: str) -> keras.Model:
    """Loads a Keras model that was logged by `log_model` or by `mlflow.keras`.

    Args:
        model_uri: `models:/m-…`, `models:/name/version`, `runs:/<run id>/<name>` or a folder.

    Returns:
        The model, uncompiled.

    Raises:
        UserError: What lies there is not a Keras model.
        mlflow.exceptions.MlflowException: Nothing lies there.
    """
    folder = mlflow.artifacts.download_artifacts(artifact_uri=str(model_uri))
    flavors = Model.load(folder).flavors
    if "keras" not in flavors:
        raise UserError(
            f"{model_uri} is not a Keras model: its flavors are {', '.join(flavors)}. "
            "Load it with mlflow.pyfunc.load_model."
        )
    code = flavors.get(mlflow.pyfunc.FLAVOR_NAME, {}).get(mlflow.pyfunc.CODE)
    if code:  # for good, as MLflow does: a module may import another when it runs
        sys.path.insert(0, str(Path(folder, code)))
    return loading.load(Path(folder, flavors["keras"]["data"]))


class _KerasFlavor:
    """What `Model.log` has the folder written by: python_function, and Keras' flavor beside it."""

    @staticmethod
    def save_model(path: str, mlflow_model: Model, **arguments: Any) -> None:
        arguments.pop("validate_serving_input", None)  # meant for Model.log, which hands it on
        mlflow_model.add_flavor(
            "keras",
            data=f"data/{_FOLDER}",
            keras_version=keras.__version__,
            keras_backend=keras.backend.backend(),
            save_exported_model=False,
        )
        mlflow.pyfunc.save_model(path, mlflow_model=mlflow_model, **arguments)


def _hand_in(
    run: Run,
    folder: dict[str, Any],
    path: Path,
    *,
    metadata: dict[str, Any] | None,
    name: str,
    params: Mapping[str, object] | None,
    tags: Mapping[str, object] | None,
    **logged: Any,
) -> ModelInfo:
    """Leaves the model to the journal of its run, whose store does not answer."""
    described = Model(run_id=run.run_id, metadata=metadata)
    _KerasFlavor.save_model(str(path), described, **folder)
    described.model_id = run.log_model_folder(
        path, name=name, params=_texts(params), tags=_texts(tags), **logged
    )
    now = time.time_ns() // 1_000_000
    pending = LoggedModel(
        run.experiment_id,
        described.model_id,
        name,
        artifact_location=str(path),
        creation_timestamp=now,
        last_updated_timestamp=now,
        status=LoggedModelStatus.PENDING,
    )
    return described.get_model_info(pending)


def _texts(values: Mapping[str, object] | None) -> dict[str, str]:
    return {key: str(value) for key, value in (values or {}).items()}


def _create(
    name: str,
    run_id: str | None,
    *,
    params: Mapping[str, object] | None,
    tags: Mapping[str, object] | None,
    model_type: str | None,
) -> LoggedModel:
    """A PENDING LoggedModel.

    Left to `Model.log` it would be in the current experiment even if the run is in another, and the
    run's params would win over those given.
    """
    active = mlflow.active_run()
    if run_id is None and active is not None:
        run_id = active.info.run_id
    run = None if run_id is None else mlflow.get_run(run_id)
    all_params = {**(run.data.params if run else {}), **(params or {})}
    return mlflow.initialize_logged_model(
        name=name,
        source_run_id=run_id,
        experiment_id=run.info.experiment_id if run else None,
        params=_texts(all_params),
        tags=_texts(tags),
        model_type=model_type,
    )


def _check_name(name: str) -> None:
    if not name:
        raise ValueError("a model needs a name; got an empty one")
    bad = sorted(set(name) & set(_NOT_IN_NAMES))
    if bad:
        raise ValueError(
            f"a model cannot be called {name!r}: MLflow refuses {' '.join(bad)} in names. "
            "Use '-' instead."
        )


def _existing(path: str | Path) -> Path:
    if not Path(path).exists():
        raise UserError(f"code_paths: there is no file or folder {str(path)!r}")
    return Path(path).resolve()


def _requirements(modules: Iterable[str], shipped: Iterable[Path]) -> list[str]:
    """Pinned as installed; found out without running the model in a subprocess, as MLflow would."""
    tops = {module.partition(".")[0] for module in modules} - {path.stem for path in shipped}
    owners = packages_distributions() if tops else {}  # it reads all that is installed: a second
    custom = [owners[top][0] for top in sorted(tops) if top in owners]
    names = ["mlflow", "tensorflow", "keras", "numpy", *custom]
    return [f"{name}=={version(name)}" for name in names]

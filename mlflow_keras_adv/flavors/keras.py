"""Logs a finished Keras model as an MLflow LoggedModel, and loads it again.

What is logged is an MLflow model folder:

    data/keras/model.keras               the model, without optimizer and compile arguments
    data/keras/loading.json              where its custom objects are, how its inputs are fed
    data/keras/criteria.json             what it was compiled with: what it is scored by
    data/keras/code/…                    the modules of its custom objects
    code/mlflow_keras_adv_loader_….py    loads it; a copy of `serialization/loading.py`

`mlflow.pyfunc.load_model` and `mlflow models serve` need only Keras and MLflow to be installed,
and so does `mlflow.keras.load_model` where there are no custom objects. There is one layout for all
models: with `mlflow.keras` as loader of the plain ones they would be 5 kB smaller, but it cannot
return several outputs and prints a progress bar for every request. Its own code is not where MLflow
would put it on `sys.path`: each model is loaded with the code that it brought along.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import keras
import mlflow
from mlflow.models import Model, ModelSignature
from mlflow.models.model import ModelInfo

from mlflow_keras_adv.compat.keras import layers_of
from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.errors import UserError, not_a_run
from mlflow_keras_adv.flavors.keras_signature import Arrays, Taken, inputs_of, signature_of
from mlflow_keras_adv.flavors.logging import LoggedAs, fetched, log_saved
from mlflow_keras_adv.flavors.served import TOLERANCE, check_served
from mlflow_keras_adv.metrics.criteria import Criteria, criteria_of, keep
from mlflow_keras_adv.serialization import loading
from mlflow_keras_adv.serialization.custom_objects import (
    CustomObject,
    code_files,
    custom_objects,
    with_own_names,
)
from mlflow_keras_adv.serialization.saving import save_without_optimizer
from mlflow_keras_adv.tracking.run import Run, id_of

_logger = logging.getLogger(__name__)

_FOLDER = "keras"
_HALF = {"float16", "bfloat16"}
_LONGEST_LIST = 2000  # characters


@keeps_random_state()
def log_model(
    model: keras.Model,
    *,
    name: str,
    run: Run | str | None = None,
    input_example: Any = None,
    signature: ModelSignature | None = None,
    code_paths: Sequence[str | Path] = (),
    package_data: Sequence[str] = (),
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, object] | None = None,
    metadata: dict[str, Any] | None = None,
    step: int = 0,
    model_type: str | None = None,
    pip_requirements: Sequence[str] | None = None,
    registered_model_name: str | None = None,
    criteria: Criteria | None = None,
    tolerance: float | None = None,
) -> ModelInfo:
    """Logs a finished model, uncompiled, as a LoggedModel of a run.

    Before anything is created in the store, the model is saved, loaded by `mlflow.pyfunc` with the
    code that it takes along, and compared on the input example, in Python and over JSON.

    The model takes its own code along: the modules of its custom objects and those that they
    import, unless they are installed. The tag `code` lists them.

    Args:
        model: A built model. It stays as it is: compiled, with its optimizer.
        name: Name of the model, without any of `/ : . % " '`.
        run: The run that made it, or its id. Default: the current run. The model goes to the run's
            experiment. Without a run it goes to the experiment that MLflow would choose.
        input_example: A few samples, shape (samples, …), of the dtype that callers will send:
            numbers, texts or bytes, as an array, tensor, Series, DataFrame or nested list; for a
            model with several inputs a dict of these by name, a DataFrame with a column for each
            input, or a list. Stored as JSON.
        signature: Default: inferred from the input example and the model's output; the number of
            samples is free, and so is every other axis that the model leaves free. For texts and
            ragged rows it says `object`, with which MLflow accepts every shape.
        code_paths: Files to take along, and package folders all of whose modules are taken along.
            Needed where an import cannot be read from the source.
        package_data: Patterns of other files that the code reads, such as "net/vocab/*.txt",
            relative to the folder of its packages. By default only modules are taken along.
        params: Params of the model, beside those of the run, which they override.
        tags: Tags of the model.
        metadata: Kept in the MLmodel file.
        step: The training step that the model comes from. MLflow links those metrics of the run to
            it that were logged at this step.
        model_type: For example "classifier".
        pip_requirements: Default: the installed mlflow, tensorflow, keras and numpy, and the
            installed distributions that custom objects come from.
        registered_model_name: Registers a version of this model too.
        criteria: Losses and metrics to score it by when it is promoted. Default: those that it was
            compiled with, except for custom ones.
        tolerance: Largest accepted difference between the outputs of the loaded and of the given
            model, relative to the largest output. Default: 0.001; 0.03 for models that compute in
            16 bits. Int8 layers with LoRA need more, because Keras rounds them again on saving.

    Returns:
        MLflow's description of the model, with `model_id` and `model_uri`. In a run of `track`
        whose server does not answer, an id that becomes the true one in the metrics and tags of
        that run, when the server is back and the model is delivered.

    Raises:
        TypeError: The run is no run.
        ValueError: A bad name, a model without weights, no input example and no signature.
        UserError: A custom object could not be imported where the model is loaded, Keras cannot
            load the saved file, or the loaded model fails or gives different outputs.
        mlflow.exceptions.MlflowException: From the store; a LoggedModel that exists by then is
            FAILED.
    """
    not_a_run("model", model, "log_model(model, name=…, run=run)")
    run_id = None if run is None else id_of(run, "log_model")
    wanted = LoggedAs(
        name, run_id, params or {}, tags or {}, step, model_type, registered_model_name, metadata
    )
    if input_example is None and signature is None:
        raise ValueError(
            "log_model needs an input_example (a few samples, such as x[:2]) or a signature"
        )
    places = [_existing(path) for path in code_paths]
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary, _FOLDER)
        data.mkdir()
        file = data / loading.MODEL_FILE
        save_without_optimizer(model, file)
        taken = inputs_of(model, input_example, signature)
        signature = signature or signature_of(model, taken)
        objects = custom_objects(model, file, places)
        with_own_names(file, objects)
        code = code_files(objects, places, package_data)
        for path, source in code.items():
            target = data / loading.CODE_FOLDER / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        description = {
            "custom_objects": {each.name: each.place for each in objects},
            "feeds": taken.feeds,
        } | ({"code": loading.CODE_FOLDER} if code else {})
        (data / loading.LOADING_FILE).write_text(json.dumps(description, indent=2))
        own = criteria_of(model, _answers(model, taken))
        keep(own if criteria is None else replace(criteria, outputs=own.outputs), data)
        if code:
            said = _said(code)
            _logger.info("The model %s takes along %s", name, said)
            wanted = replace(wanted, tags={"code": said, **wanted.tags})
        save = partial(
            _save,
            data=data,
            signature=signature,
            input_example=taken.example,
            pip_requirements=list(pip_requirements or _requirements(objects, code)),
        )
        folder, described = Path(temporary, "model"), Model(metadata=metadata)
        save(folder, described)
        _check(model, folder, taken, tolerance)
        return log_saved(save, folder, described, wanted)


@keeps_random_state()
def load_model(model_uri: str, *, custom_objects: Mapping[str, Any] | None = None) -> keras.Model:
    """Loads a Keras model that was logged by `log_model` or by `mlflow.keras`.

    Its custom layers come from the code that was logged with it, even if this program has imported
    a module of the same name: their classes are not the program's.

    Args:
        model_uri: `models:/m-…`, `models:/<name>/<version>`, `models:/<name>@<alias>`,
            `runs:/<run id>/<name>` or a folder.
        custom_objects: Classes and functions of this program to use instead, by their names in
            Keras: `{"package>Scale": Scale}`, or `{"Scale": Scale}` if `Scale` is not registered
            with Keras.

    Returns:
        The model, uncompiled.

    Raises:
        UserError: There is no model, or it is not a Keras model.
    """
    folder, flavors = fetched(str(model_uri))
    if "keras" not in flavors:
        raise UserError(
            f"{model_uri} is not a Keras model: its flavors are {', '.join(flavors)}. "
            "Load it with mlflow.pyfunc.load_model."
        )
    data, code = Path(folder, flavors["keras"]["data"]), None
    if not (data / loading.CODE_FOLDER).is_dir():  # logged by version 0.1, or by mlflow.keras
        code = flavors.get(mlflow.pyfunc.FLAVOR_NAME, {}).get(mlflow.pyfunc.CODE)
    return loading.load(data, code and Path(folder, code), custom_objects)


def _save(path: Path, described: Model, *, data: Path, **arguments: Any) -> None:
    """Writes the model folder with the flavors python_function and keras."""
    described.add_flavor(
        "keras",
        data=f"data/{_FOLDER}",
        keras_version=keras.__version__,
        keras_backend=keras.backend.backend(),
        save_exported_model=False,
    )
    loader = f"mlflow_keras_adv_loader_{loading.DIGEST[:12]}"
    with tempfile.TemporaryDirectory() as temporary:
        mlflow.pyfunc.save_model(
            str(path),
            loader_module=loader,
            data_path=str(data),
            code_paths=[str(shutil.copy(loading.__file__, Path(temporary, f"{loader}.py")))],
            mlflow_model=described,
            **arguments,
        )


def _check(model: keras.Model, folder: Path, taken: Taken, tolerance: float | None) -> None:
    def answer() -> Arrays:
        return loading.named_outputs(model, model(taken.inputs, training=False))

    half = any(layer.compute_dtype in _HALF for layer in layers_of(model))
    if tolerance is None:
        tolerance = 30 * TOLERANCE if half else TOLERANCE
    try:
        check_served(folder, taken.sent, answer, tolerance=tolerance)
    except UserError as error:
        raise UserError(
            f"{model.name!r}: {error}\nDo get_config() and build() of its custom layers say all "
            "that it takes to make them? What a module reads or imports in ways that cannot be "
            "seen in its source is taken along by code_paths and package_data."
        ) from error.__cause__


def _answers(model: keras.Model, taken: Taken) -> Any:
    """The model's output for its example; None if it fails, which is reported later."""
    try:
        return model(taken.inputs, training=False)
    except Exception:  # what a model raises has no end
        return None


def _said(code: Mapping[str, Path]) -> str:
    """A sentence about the modules that are logged with the model."""
    size = sum(file.stat().st_size for file in code.values())
    listed = ", ".join(code)
    if len(listed) > _LONGEST_LIST:
        listed = f"{listed[:_LONGEST_LIST].rpartition(',')[0]}, …"
    return f"{len(code)} files, {size / 1000:.1f} kB: {listed}"


def _existing(path: str | Path) -> Path:
    if not Path(path).exists():
        raise UserError(f"code_paths: there is no file or folder {str(path)!r}")
    return Path(path).resolve()


def _requirements(objects: Iterable[CustomObject], code: Iterable[str]) -> list[str]:
    """Pinned as installed; found out without running the model in a subprocess, as MLflow would."""
    shipped = {path.partition("/")[0].partition(".")[0] for path in code}
    tops = {each.module.partition(".")[0] for each in objects} - shipped
    owners = packages_distributions() if tops else {}  # it reads all that is installed: a second
    custom = [owners[top][0] for top in sorted(tops) if top in owners]
    own = ["lazy-loader"] if __name__.partition(".")[0] in shipped else []  # this package needs it
    names = ["mlflow", "tensorflow", "keras", "numpy", *own, *custom]
    return [f"{name}=={version(name)}" for name in names]

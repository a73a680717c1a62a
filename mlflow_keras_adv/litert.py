"""An MLflow flavor for `.tflite` files, which LiteRT runs without TensorFlow.

What is logged is an MLflow model folder:

    data/litert/model.tflite           the file as it was given
    data/litert/model.json             its sha256, which every loader checks
    code/mlflow_keras_adv_litert.py    loads and runs it; a copy of `compression/runtime.py`

`mlflow.pyfunc.load_model`, `mlflow models predict` and `mlflow models serve` need MLflow, NumPy and
ai-edge-litert, neither TensorFlow nor this package. Callers send and get real numbers also where
the file computes with integers. Nothing is pickled. `mlflow.models.evaluate` takes one number a
sample: log a classifier that it is to evaluate with `predict_params={"output": "class"}`.

Example:
    ```python
    info = mka.litert.log_model(Path("model.tflite").read_bytes(), name="digits-int8")
    mlflow.pyfunc.load_model(info.model_uri).predict(images, params={"num_threads": 2})
    ```
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModelStatus
from mlflow.models import Model, ModelSignature
from mlflow.models.model import ModelInfo

from mlflow_keras_adv.compression import runtime
from mlflow_keras_adv.compression.runtime import LiteRTModel
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.extras import extra
from mlflow_keras_adv.litert_signature import described, example_of, signature_of
from mlflow_keras_adv.random_state import keeps_random_state

FLAVOR_NAME = "litert"
_FOLDER = "litert"
_LOADER = "mlflow_keras_adv_litert"
_NOT_IN_NAMES = "/:.%\"'"


def get_default_pip_requirements() -> list[str]:
    """What a model needs to be loaded and run, pinned as installed."""
    with extra("compression"):
        return [f"{name}=={version(name)}" for name in ("mlflow", "numpy", "ai-edge-litert")]


@keeps_random_state()
def save_model(
    model: bytes | str | Path,
    path: str | Path,
    *,
    signature: ModelSignature | None = None,
    input_example: Any = None,
    predict_params: Mapping[str, Any] | None = None,
    code_paths: Sequence[str | Path] = (),
    conda_env: Mapping[str, Any] | str | None = None,
    pip_requirements: Sequence[str] | str | None = None,
    extra_pip_requirements: Sequence[str] = (),
    metadata: dict[str, Any] | None = None,
    mlflow_model: Model | None = None,
) -> None:
    """Saves a `.tflite` file as an MLflow model.

    The file is run once, on the input example or on zeros, before anything is written.

    Args:
        model: The file's content or its path.
        path: A folder that does not exist yet, or is empty.
        signature: Default: the names, dtypes and shapes that the file itself gives, float32 where
            integers only encode real numbers, with the params of `LiteRTModel.predict`. With a
            DataFrame of one feature a column as input example: these columns.
        input_example: A few samples: an array, a dict of arrays by name, or a DataFrame. Default:
            a sample of zeros, unless the file leaves an axis beside the samples' free.
        predict_params: Defaults for what `LiteRTModel.predict` takes beside the data, as
            {"num_threads": 2}. With {"output": "class"} the model predicts classes, which is what
            `mlflow.models.evaluate` takes from a classifier; {"output": "value"}, of a regressor.
        code_paths: Files and folders to take along.
        conda_env: Instead of the requirements.
        pip_requirements: Default: the installed mlflow, numpy and ai-edge-litert.
        extra_pip_requirements: Beside the default.
        metadata: Kept in the MLmodel file.
        mlflow_model: The description that this flavor is added to.

    Raises:
        ValueError: `model` is not a `.tflite` file, is damaged, LiteRT cannot run it, or the
            example or the params do not fit it.
        UserError: There is no such file.
    """
    content = _content(model)
    runner = LiteRTModel(content, **(predict_params or {}))
    example = example_of(runner, input_example, signature)
    signature = signature or signature_of(runner, example)
    digest = hashlib.sha256(content).hexdigest()
    mlflow_model = mlflow_model or Model()
    mlflow_model.add_flavor(
        FLAVOR_NAME,
        data=f"data/{_FOLDER}",
        sha256=digest,
        size_bytes=len(content),
        ai_edge_litert_version=version("ai-edge-litert"),
        inputs=[described(tensor) for tensor in runner.inputs],
        outputs=[described(tensor) for tensor in runner.outputs],
    )
    if conda_env is None and pip_requirements is None:
        pip_requirements = [*get_default_pip_requirements(), *extra_pip_requirements]
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary, _FOLDER)
        data.mkdir()
        (data / runtime.MODEL_FILE).write_bytes(content)
        description = {
            "sha256": digest,
            "size_bytes": len(content),
            "params": dict(predict_params or {}),
        }
        (data / runtime.DESCRIPTION_FILE).write_text(json.dumps(description))
        loader = shutil.copy(runtime.__file__, Path(temporary, f"{_LOADER}.py"))
        mlflow.pyfunc.save_model(
            str(path),
            loader_module=_LOADER,
            data_path=str(data),
            code_paths=[str(each) for each in (loader, *code_paths)],
            conda_env=conda_env,
            pip_requirements=pip_requirements,
            mlflow_model=mlflow_model,
            signature=signature,
            input_example=example,
            metadata=metadata,
        )


@keeps_random_state()
def log_model(
    model: bytes | str | Path,
    *,
    name: str,
    run_id: str | None = None,
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, object] | None = None,
    step: int = 0,
    model_type: str | None = None,
    registered_model_name: str | None = None,
    metadata: dict[str, Any] | None = None,
    **arguments: Any,
) -> ModelInfo:
    """Logs a `.tflite` file as a LoggedModel of a run.

    Before anything is created in the store, the file is run once.

    Args:
        model: The file's content or its path.
        name: What to call it, without any of `/ : . % " '`.
        run_id: The run that made it; default: the active run of this thread. The model goes to the
            run's experiment. Without any run it has none, and goes where MLflow would put it.
        params: Params of the model, beside those of the run, over which they win.
        tags: Tags of the model.
        step: The training step that the model comes from. MLflow links those metrics of the run to
            it that were logged at this step.
        model_type: For example "classifier".
        registered_model_name: Registers a version of this model too.
        metadata: Kept in the MLmodel file.
        **arguments: Of `save_model`: signature, input_example, predict_params, code_paths,
            conda_env, pip_requirements, extra_pip_requirements.

    Returns:
        MLflow's description of the model, with `model_id` and `model_uri`.

    Raises:
        ValueError: A bad name, or what `save_model` refuses.
        UserError: There is no such file.
        mlflow.exceptions.MlflowException: From the store; a LoggedModel made before is FAILED.
    """
    bad = sorted(set(name) & set(_NOT_IN_NAMES))
    if bad or not name:
        raise ValueError(
            f"a model cannot be called {name!r}: MLflow refuses {' '.join(bad) or 'empty names'}. "
            "Use letters, digits, '-' and '_'."
        )
    with tempfile.TemporaryDirectory() as temporary:  # what is refused leaves no model behind
        save_model(model, Path(temporary, "model"), **arguments)
    active = mlflow.active_run()
    if run_id is None and active is not None:
        run_id = active.info.run_id
    run = None if run_id is None else mlflow.get_run(run_id)
    # Left to Model.log the model would be in the current experiment even if the run is in another,
    # and the run's params would win over those given.
    all_params = {**(run.data.params if run else {}), **(params or {})}
    logged = mlflow.initialize_logged_model(
        name=name,
        source_run_id=run_id,
        experiment_id=run.info.experiment_id if run else None,
        params={key: str(value) for key, value in all_params.items()},
        tags={key: str(value) for key, value in (tags or {}).items()},
        model_type=model_type,
    )
    try:
        return Model.log(
            artifact_path=None,
            flavor=_Flavor,
            run_id=run_id,
            model_id=logged.model_id,
            step=step,
            metadata=metadata,
            registered_model_name=registered_model_name,
            model=model,
            # It would import the copy of the loader into this process.
            validate_serving_input=False,
            **arguments,
        )
    except BaseException as error:
        # Model.log has marked the model FAILED after an Exception, but not after Ctrl-C.
        if not isinstance(error, Exception):
            client = mlflow.MlflowClient()
            client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
        raise


@keeps_random_state()
def load_model(model_uri: str, dst_path: str | Path | None = None) -> LiteRTModel:
    """Loads a model that was logged by `log_model` or saved by `save_model`.

    Args:
        model_uri: `models:/m-…`, `models:/name/version`, `models:/name@alias`,
            `runs:/<run id>/<name>` or a folder.
        dst_path: Where to download it to; default: a temporary folder.

    Returns:
        The model, with the file in `content` and `predict`.

    Raises:
        UserError: What lies there is not a LiteRT model.
        ValueError: It is damaged.
        mlflow.exceptions.MlflowException: Nothing lies there.
    """
    destination = None if dst_path is None else str(dst_path)
    folder = mlflow.artifacts.download_artifacts(artifact_uri=str(model_uri), dst_path=destination)
    flavors = Model.load(folder).flavors
    if FLAVOR_NAME not in flavors:
        raise UserError(
            f"{model_uri} is not a LiteRT model: its flavors are {', '.join(flavors)}. "
            "Load it with mlflow.pyfunc.load_model."
        )
    return runtime.load(Path(folder, flavors[FLAVOR_NAME]["data"]))


def _load_pyfunc(path: str) -> LiteRTModel:
    """MLflow's hook; a logged model uses the one of the copy that it carries."""
    return runtime.load(path)


class _Flavor:
    """What `Model.log` has the folder written by."""

    @staticmethod
    def save_model(path: str, mlflow_model: Model, **arguments: Any) -> None:
        arguments.pop("validate_serving_input")  # meant for Model.log, which hands it on
        save_model(arguments.pop("model"), path, mlflow_model=mlflow_model, **arguments)


def _content(model: bytes | str | Path) -> bytes:
    if isinstance(model, (bytes, bytearray, memoryview)):
        return bytes(model)
    if not isinstance(model, (str, Path)):
        raise ValueError(
            f"expected the content of a .tflite file or its path; got a {type(model).__name__}"
        )
    try:
        return Path(model).read_bytes()
    except OSError as error:
        raise UserError(
            f"{model} cannot be read ({error.strerror}); give a .tflite file"
        ) from error

"""An MLflow flavor for `.tflite` files, which LiteRT runs without TensorFlow.

What is logged is an MLflow model folder:

    data/litert/model.tflite             the file as it was given
    data/litert/model.json               its sha256, which every loader checks
    data/litert/criteria.json            what it is scored by, if its source is given
    code/mlflow_keras_adv_litert_….py    loads and runs it; a copy of `compression/runtime.py`

`mlflow.pyfunc.load_model`, `mlflow models predict` and `mlflow models serve` need MLflow, NumPy and
ai-edge-litert, but neither TensorFlow nor this package. Callers send and get real numbers even if
the file computes with integers. Nothing is pickled. `mlflow.models.evaluate` expects one number per
sample: log a classifier for it with `predict_params={"output": "class"}`.

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
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.models import Model, ModelSignature
from mlflow.models.model import ModelInfo

from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.errors import UserError, not_a_run
from mlflow_keras_adv.extras import extra
from mlflow_keras_adv.flavors.litert_signature import described, example_of, signature_of
from mlflow_keras_adv.flavors.logging import LoggedAs, fetched, log_saved
from mlflow_keras_adv.flavors.served import check_served
from mlflow_keras_adv.keywords import answers_keywords
from mlflow_keras_adv.tflite import runtime
from mlflow_keras_adv.tflite.runtime import LiteRTModel
from mlflow_keras_adv.tracking.run import Run, id_of

if TYPE_CHECKING:
    from mlflow_keras_adv.metrics.criteria import Criteria

FLAVOR_NAME = "litert"
_FOLDER = "litert"
# Named after its content: in one process each model is run by its own copy.
_DIGEST = hashlib.sha256(Path(runtime.__file__).read_bytes()).hexdigest()
_LOADER = f"mlflow_keras_adv_litert_{_DIGEST[:12]}"


def get_default_pip_requirements() -> list[str]:
    """Requirements for loading and running a model, pinned to the installed releases."""
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
    criteria: "Criteria | None" = None,
) -> None:
    """Saves a `.tflite` file as an MLflow model.

    The file is run once, on the input example or on zeros, before anything is written.

    Args:
        model: The file's content or its path.
        path: A folder that does not exist yet, or is empty.
        signature: Default: the names, dtypes and shapes in the file, float32 where integers only
            encode real numbers, with the params of `LiteRTModel.predict`. With a DataFrame as input
            example that has a column per feature: these columns.
        input_example: A few samples: an array, a dict of arrays by name, or a DataFrame. Default:
            a sample of zeros, unless the file leaves an axis beside the samples' free.
        predict_params: Defaults of the params of `LiteRTModel.predict`, such as
            {"num_threads": 2}. `mlflow.models.evaluate` needs {"output": "class"} for a classifier
            and {"output": "value"} for a regressor.
        code_paths: Files and folders to take along.
        conda_env: A conda environment instead of pip requirements.
        pip_requirements: Default: the installed mlflow, numpy and ai-edge-litert.
        extra_pip_requirements: Added to the default.
        metadata: Kept in the MLmodel file.
        mlflow_model: The description that this flavor is added to.
        criteria: Losses and metrics to score the file by, usually those of the model that it was
            made from: `metrics.criteria.criteria_of(model)`.

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
        if criteria is not None:
            from mlflow_keras_adv.metrics.criteria import keep  # takes Keras, the rest does not

            keep(criteria, data)
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
    run: Run | str | None = None,
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, object] | None = None,
    step: int = 0,
    model_type: str | None = None,
    registered_model_name: str | None = None,
    metadata: dict[str, Any] | None = None,
    **arguments: Any,
) -> ModelInfo:
    """Logs a `.tflite` file as a LoggedModel of a run.

    Before anything is created in the store, the file is run once, and once each as a caller of
    `mlflow.pyfunc` and as a scoring server runs it.

    Args:
        model: The file's content or its path.
        name: Name of the model, without any of `/ : . % " '`.
        run: The run that made it, or its id. Default: the current run. The model goes to the run's
            experiment. Without a run it goes to the experiment that MLflow would choose.
        params: Params of the model, beside those of the run, which they override.
        tags: Tags of the model.
        step: The training step that the model comes from. MLflow links those metrics of the run to
            it that were logged at this step.
        model_type: For example "classifier".
        registered_model_name: Registers a version of this model too.
        metadata: Kept in the MLmodel file.
        **arguments: Those of `save_model`: signature, input_example, predict_params, code_paths,
            conda_env, pip_requirements, extra_pip_requirements, criteria.

    Returns:
        MLflow's description of the model, with `model_id` and `model_uri`. In a run of `track`
        whose server does not answer, an id that becomes the true one in the metrics and tags of
        that run, when the server is back and the model is delivered.

    Raises:
        TypeError: The run is no run.
        ValueError: A bad name, or as `save_model`.
        UserError: There is no such file, or the output for the example differs over JSON.
        mlflow.exceptions.MlflowException: From the store; a LoggedModel that exists by then is
            FAILED.
    """
    not_a_run("model", model, "litert.log_model(file, name=…, run=run)")
    run_id = None if run is None else id_of(run, "log_model")
    wanted = LoggedAs(
        name, run_id, params or {}, tags or {}, step, model_type, registered_model_name, metadata
    )
    save = partial(_save, _content(model), arguments)
    with tempfile.TemporaryDirectory() as temporary:  # what is refused leaves no model behind
        folder, described = Path(temporary, "model"), Model(metadata=metadata)
        save(folder, described)
        example = described.load_input_example(str(folder))
        answer = partial(runtime.load(folder / "data" / _FOLDER).predict, example)
        check_served(folder, example, answer)
        return log_saved(save, folder, described, wanted)


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
        UserError: There is no model, or it is not a LiteRT model.
        ValueError: It is damaged.
    """
    destination = None if dst_path is None else str(dst_path)
    folder, flavors = fetched(str(model_uri), destination)
    if FLAVOR_NAME not in flavors:
        raise UserError(
            f"{model_uri} is not a LiteRT model: its flavors are {', '.join(flavors)}. "
            "Load it with mlflow.pyfunc.load_model."
        )
    return runtime.load(Path(folder, flavors[FLAVOR_NAME]["data"]))


def _load_pyfunc(path: str) -> LiteRTModel:
    """MLflow's hook; a logged model uses the one of the copy that it carries."""
    return runtime.load(path)


def _save(content: bytes, arguments: Mapping[str, Any], path: Path, described: Model) -> None:
    save_model(content, path, mlflow_model=described, **arguments)


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


for _public in (save_model, log_model, load_model):
    answers_keywords(_public)

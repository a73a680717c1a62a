"""The evaluator `keras_adv` of `mlflow.models.evaluate`, for Keras and LiteRT models.

MLflow imports this module wherever this package is installed and a model is evaluated. So Keras is
imported only when the evaluator is asked for.

Example:
    ```python
    result = mlflow.models.evaluate(
        "models:/digits@champion",
        x_test.reshape(len(x_test), -1),  # MLflow takes rows of numbers
        targets=y_test,
        model_type="classifier",
        evaluators="keras_adv",
        evaluator_config={"reference": "models:/digits/1"},
    )
    result.metrics["final/ece"]
    ```
"""

import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.models.evaluation.artifacts import CsvEvaluationArtifact, ImageEvaluationArtifact
from mlflow.models.evaluation.base import EvaluationArtifact, EvaluationResult, ModelEvaluator

from mlflow_keras_adv.compat.mlflow import load_evaluation_artifact
from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.evaluation.options import NAME, Options
from mlflow_keras_adv.tracking.directions import TAG as DIRECTIONS
from mlflow_keras_adv.tracking.directions import note

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_logger = logging.getLogger(__name__)

TASK_TAG = "task.evaluation"
_FOLDER = "keras_adv"


class KerasEvaluator(ModelEvaluator):
    """Adds a model's size, latency, scores, figures and tables to an evaluation.

    It runs only if its config holds at least one of its `Options`, or if the model type is
    "keras_adv". MLflow asks every evaluator about every model and does not say whether the user
    named it, so `evaluators="keras_adv"` alone, without a config, is not enough.

    For every model the metrics are those of `metrics.footprint.footprint`, or of
    `file_footprint` for a `.tflite` file, as `final/…`: size, gzip size, parameters, sparsity,
    latency. With targets, there are also the metrics of Keras' `evaluate` for a compiled model, or
    those of the option `metrics`, and those of the task: `final/accuracy` and `final/ece` (expected
    calibration error, Guo et al. 2017) of a classifier, `final/mae`, `final/rmse`, `final/r2`, … of
    a regressor; `final/<output>/…` of several outputs. The folder `keras_adv` holds the tables and
    figures that `Predictions` shows too, and the tag `task.evaluation` names the task.

    Images are given as flat rows, as MLflow takes arrays of two axes only, or as a DataFrame with a
    column of arrays. `extra_metrics` and `custom_artifacts` are left to MLflow's own evaluators.
    """

    @classmethod
    def can_evaluate(
        cls, *, model_type: str | None, evaluator_config: Mapping[str, Any] | None, **_: Any
    ) -> bool:
        """Whether this evaluator was asked for; see the class."""
        named = NAME in (evaluator_config or {})
        return (
            model_type == NAME
            or named
            or not set(Options.known()).isdisjoint(evaluator_config or {})
        )

    @keeps_random_state()
    def evaluate(
        self,
        *,
        model_type: str | None,
        dataset: Any,
        run_id: str,
        evaluator_config: Mapping[str, Any] | None,
        model: Any = None,
        model_id: str | None = None,
        **kwargs: Any,
    ) -> EvaluationResult:
        """Measures the model; called by MLflow.

        Raises:
            UserError: An unknown option, a model of another kind, or data that do not fit it.
        """
        options = Options.read(evaluator_config)
        from mlflow_keras_adv.evaluation.evaluation import Evaluation  # Keras takes seconds

        done = Evaluation.of(model, model_type, dataset, options)
        if done.kinds:
            MlflowClient().set_tag(run_id, TASK_TAG, done.kinds)
        if done.directions:
            tagged = {f"final/{key}": mode for key, mode in done.directions.items()}
            MlflowClient().set_tag(run_id, f"{DIRECTIONS}evaluation", note(tagged))
        for sentence in done.unseen:
            _logger.warning("Left out of this evaluation: %s", sentence)
        artifacts = _log_artifacts(run_id, done.contents) if done.contents else {}
        metrics = {f"final/{name}": value for name, value in done.measured.items()}
        if model_id is None:  # else `mlflow.models.evaluate` logs them, linked to the model
            _log_metrics(run_id, metrics, dataset)
        return EvaluationResult(metrics, artifacts, run_id)


def _log_metrics(run_id: str, metrics: Mapping[str, float], dataset: Any) -> None:
    now = time.time_ns() // 1_000_000
    origin = {"dataset_name": dataset.name, "dataset_digest": dataset.digest}
    points = [Metric(key, value, now, 0, **origin) for key, value in metrics.items()]
    MlflowClient().log_batch(run_id, metrics=points)


def _log_artifacts(
    run_id: str, contents: Mapping[str, "pd.DataFrame | Callable[[], Figure]"]
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        artifacts: dict[str, Any] = {}
        for name, content in contents.items():
            table = isinstance(content, pd.DataFrame)
            file = Path(folder, f"{name}.csv" if table else f"{name}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            uri = f"runs:/{run_id}/{_FOLDER}/{file.relative_to(folder).as_posix()}"
            if isinstance(content, pd.DataFrame):
                content.to_csv(file, index=False)
                artifact: EvaluationArtifact = CsvEvaluationArtifact(uri, content)
            else:
                content().savefig(file)
                artifact = ImageEvaluationArtifact(uri)
                load_evaluation_artifact(artifact, str(file))
            artifacts[f"{_FOLDER}/{name}"] = artifact
        MlflowClient().log_artifacts(run_id, folder, _FOLDER)
    return artifacts

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

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.models.evaluation.artifacts import CsvEvaluationArtifact, ImageEvaluationArtifact
from mlflow.models.evaluation.base import EvaluationArtifact, EvaluationResult, ModelEvaluator

from mlflow_keras_adv.compat.mlflow import load_evaluation_artifact
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.random_state import keeps_random_state

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "keras_adv"
_FOLDER = "keras_adv"


@dataclass(frozen=True)
class Options:
    """What `evaluator_config` may hold.

    Attributes:
        reference: URI of a Keras or LiteRT model of the same classes: `final/agreement` says how
            often both choose the same class.
        class_names: Names of the classes, in the order of the scores. Labels may be such names.
        bins: Of the calibration error; 15 in the paper.
        from_logits: Whether the scores are logits; see `classification.probabilities`.
        repeats: Calls whose latency is measured.
    """

    reference: str | None = None
    class_names: Sequence[str] | None = None
    bins: int = 15
    from_logits: bool | None = None
    repeats: int = 200

    @classmethod
    def known(cls) -> list[str]:
        """The names of the options."""
        return [field.name for field in fields(cls)]

    @classmethod
    def read(cls, config: Mapping[str, Any] | None) -> "Options":
        """The options in an `evaluator_config`, which may hold them under the evaluator's name.

        Raises:
            UserError: There is an unknown one among them.
        """
        options = _own(config)
        if not isinstance(options, Mapping) or set(options) - set(cls.known()):
            raise UserError(
                f"evaluator_config of {NAME} may hold {', '.join(cls.known())}; got {options!r}."
            )
        return cls(**options)


class KerasEvaluator(ModelEvaluator):
    """Adds to an evaluation what a model weighs and takes, and how it answers.

    It answers only where it is meant: its config holds at least one of its `Options`, or the model
    type is "keras_adv". MLflow asks every evaluator about every model and tells none of them
    whether the user named it, so `evaluators="keras_adv"` alone, without a config, is not enough.

    For every model the metrics are those of `compression.footprint.footprint`, or of
    `file_footprint` for a `.tflite` file, as `final/…`: size, gzip size, parameters, sparsity,
    latency. With targets, unless the model type is "regressor", also `final/accuracy`, `final/ece`
    (expected calibration error, Guo et al. 2017) and, in the folder `keras_adv`, `per_class.csv`,
    `confusion_counts.csv`, `confusion.png`, `calibration.csv`, `reliability.png`.

    Images are given as flat rows, as MLflow takes arrays of two axes only, or as a DataFrame with a
    column of arrays. `extra_metrics` and `custom_artifacts` are left to MLflow's own evaluators.
    """

    @classmethod
    def can_evaluate(
        cls, *, model_type: str | None, evaluator_config: Mapping[str, Any] | None, **_: Any
    ) -> bool:
        """Whether this evaluator is meant; see the class."""
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
            ValueError: Scores or labels that are not those of a classifier.
        """
        options = Options.read(evaluator_config)
        from mlflow_keras_adv.plugins.subject import subject_of  # Keras takes seconds

        subject, features = subject_of(model), dataset.features_data
        if not len(features):
            raise UserError("There is nothing to evaluate on: the data have no samples.")
        measured: dict[str, float] = {}
        artifacts: dict[str, Any] = {}
        classifies = model_type != "regressor" and dataset.labels_data is not None
        if classifies or options.reference is not None:
            scores = subject.scores(features)
            if options.reference is not None:
                measured["agreement"] = _agreement(scores, options.reference, features)
            if classifies:
                found, tables = _classification(scores, dataset.labels_data, options)
                measured.update(found)
                artifacts = _log_artifacts(run_id, tables)
        measured.update(subject.footprint(features, repeats=options.repeats))
        metrics = {f"final/{name}": value for name, value in measured.items()}
        if model_id is None:  # else `mlflow.models.evaluate` logs them, linked to the model
            _log_metrics(run_id, metrics, dataset)
        return EvaluationResult(metrics, artifacts, run_id)


def _own(config: Mapping[str, Any] | None) -> Any:
    return (config or {}).get(NAME, config or {})


def _agreement(scores: Any, reference: str, features: Any) -> float:
    import mlflow

    from mlflow_keras_adv.metrics.agreement import agreement
    from mlflow_keras_adv.plugins.subject import subject_of

    other = subject_of(mlflow.pyfunc.load_model(reference)).scores(features)
    return float(agreement(scores, np.asarray(other), "classification") or 0)


def _classification(
    scores: Any, labels: Any, options: Options
) -> tuple[dict[str, float], dict[str, "pd.DataFrame | Figure"]]:
    from mlflow_keras_adv.callbacks.prediction_figures import confusion_figure
    from mlflow_keras_adv.metrics.task import classes_of
    from mlflow_keras_adv.plugins.classification import (
        calibration_table,
        confusion_counts,
        expected_calibration_error,
        per_class_table,
        probabilities,
    )
    from mlflow_keras_adv.plugins.reliability_figure import reliability_figure

    chosen = np.where(np.isnan(scores).any(axis=-1), -1, scores.argmax(axis=-1))
    classes = scores.shape[-1]
    names = _names(options.class_names, classes)
    y = _integers(np.asarray(labels), names)
    found = {"accuracy": float(np.mean(chosen == classes_of(y, scores)))}
    y, chosen = y.reshape(-1).astype(int), chosen.reshape(-1)
    if y.max() >= classes:
        raise UserError(f"The labels go up to {y.max()}; the model has {classes} classes, from 0.")
    sure = probabilities(scores.reshape(-1, classes), from_logits=options.from_logits).max(axis=1)
    bins = calibration_table(sure, chosen == y, bins=options.bins)
    found["ece"] = expected_calibration_error(bins)
    counts = confusion_counts(y, chosen, classes)
    return found, {
        "per_class.csv": per_class_table(y, chosen, names),
        "confusion_counts.csv": pd.DataFrame(counts, columns=names).assign(label=names),
        "confusion.png": confusion_figure(counts, names),
        "calibration.csv": bins,
        "reliability.png": reliability_figure(bins, found["ece"]),
    }


def _names(given: Sequence[str] | None, classes: int) -> list[str]:
    names = [str(name) for name in given or range(classes)]
    if len(names) != classes or len(set(names)) != classes:
        raise UserError(f"class_names needs {classes} different names; got {names}.")
    return names


def _integers(labels: np.ndarray, names: list[str]) -> np.ndarray:
    """Labels as integers, where they are names of classes."""
    if labels.dtype.kind in "biuf":
        return labels
    unknown = sorted({str(label) for label in labels.flat} - set(names))
    if unknown:
        raise UserError(
            f"The labels {', '.join(unknown[:5])} are none of the classes {', '.join(names)}. Give "
            "evaluator_config={'class_names': […]} in the order of the model's scores."
        )
    place = {name: position for position, name in enumerate(names)}
    return np.vectorize(lambda label: place[str(label)], otypes=[int])(labels)


def _log_metrics(run_id: str, metrics: Mapping[str, float], dataset: Any) -> None:
    now = time.time_ns() // 1_000_000
    origin = {"dataset_name": dataset.name, "dataset_digest": dataset.digest}
    points = [Metric(key, value, now, 0, **origin) for key, value in metrics.items()]
    MlflowClient().log_batch(run_id, metrics=points)


def _log_artifacts(run_id: str, contents: Mapping[str, "pd.DataFrame | Figure"]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        artifacts: dict[str, Any] = {}
        for name, content in contents.items():
            file, uri = Path(folder, name), f"runs:/{run_id}/{_FOLDER}/{name}"
            if isinstance(content, pd.DataFrame):
                content.to_csv(file, index=False)
                artifact: EvaluationArtifact = CsvEvaluationArtifact(uri, content)
            else:
                content.savefig(file)
                artifact = ImageEvaluationArtifact(uri)
                load_evaluation_artifact(artifact, str(file))
            artifacts[f"{_FOLDER}/{Path(name).stem}"] = artifact
        MlflowClient().log_artifacts(run_id, folder, _FOLDER)
    return artifacts

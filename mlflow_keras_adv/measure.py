"""What a finished model scores, weighs and takes, on record beside the model itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from mlflow.models.model import ModelInfo

from mlflow_keras_adv.compression.footprint import footprint
from mlflow_keras_adv.models import log_model
from mlflow_keras_adv.random_state import keeps_random_state
from mlflow_keras_adv.tracking.run import Run
from mlflow_keras_adv.tracking.values import Dataset


@dataclass(frozen=True)
class FinishedModel:
    """A model on record.

    Attributes:
        info: What MLflow knows of it, with `model_id` and `model_uri`.
        final: Its measurements; see `compression.footprint.footprint`.
    """

    info: ModelInfo
    final: Mapping[str, float]


@keeps_random_state()
def log_finished_model(
    run: Run,
    model: keras.Model,
    x: Any,
    y: np.ndarray | None = None,
    *,
    name: str,
    scores: Mapping[str, float] | None = None,
    dataset: Dataset | None = None,
    reference: keras.Model | None = None,
    parent_model_id: str | None = None,
) -> FinishedModel:
    """Logs a finished model as a LoggedModel, with its `final/…` metrics on the test split.

    The metrics stand at step 0 of the run, so that MLflow draws them as bars, and are linked to the
    model and the dataset, so that they stand in the table of models too.

    Args:
        run: The run that made the model.
        model: A built model; with `y` or `reference` a classifier.
        x: Test samples, shape [n, ...], or a list or dict of such arrays; two of them become the
            model's input example.
        y: Integer labels, shape [n]. Without them there is no `final/accuracy`.
        name: What to call the model.
        scores: What else it scores, by name, measured by the caller: a generator, an embedding or a
            model with several outputs has no accuracy of its own.
        dataset: Name and digest of the data.
        reference: A model of the same classes; `final/agreement` says how often both agree.
        parent_model_id: Id of the LoggedModel that this one comes from: teacher, unpruned, float.
    """
    lineage = {} if parent_model_id is None else {"parent_model_id": parent_model_id}
    tags: dict[str, Any] = {**lineage, "variant": name}
    example = keras.tree.map_structure(lambda array: array[:2], x)
    info = log_model(model, name=name, run_id=run.run_id, input_example=example, tags=tags)
    run.set_tags(lineage)
    final = {**footprint(model, x, y, reference=reference), **(scores or {})}
    named = {f"final/{key}": value for key, value in final.items()}
    run.log_metrics(named, step=0, model_id=info.model_id, dataset=dataset)
    return FinishedModel(info, final)

"""log_finished_file(): logs a `.tflite` file with its scores, size and latency."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np
import pandas as pd

from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.errors import not_a_run
from mlflow_keras_adv.evaluation.finished_model import (
    FLOPS_TAG,
    FinishedModel,
    beside,
    few_of,
    on_record,
    scored,
)
from mlflow_keras_adv.flavors import litert
from mlflow_keras_adv.metrics.criteria import Criteria, criteria_of
from mlflow_keras_adv.metrics.score import score
from mlflow_keras_adv.tflite.footprint import file_footprint_and_said, weight_table
from mlflow_keras_adv.tflite.runtime import LiteRTModel
from mlflow_keras_adv.tflite.score import score_file
from mlflow_keras_adv.tracking.run import Run, run_of
from mlflow_keras_adv.tracking.values import Dataset


@keeps_random_state()
def log_finished_file(
    content: bytes,
    x: Any,
    y: Any = None,
    *,
    name: str,
    run: Run | str | None = None,
    sample_weight: Any = None,
    metrics: Any = None,
    scores: Mapping[str, float] | None = None,
    dataset: Dataset | None = None,
    reference: Any = None,
    parent_model_id: str | None = None,
) -> FinishedModel:
    """Logs a `.tflite` file as a LoggedModel, with its `final/…` metrics on the test split.

    It is scored by the losses and metrics that its `reference`, the Keras model it was made from,
    was compiled with. The metrics have the same names and steps as those of `log_finished_model`,
    so that the file lines up with that model; only `final/loss` lacks the regularization of the
    weights. The table `weights.json` lists the weights of the file.

    Args:
        content: The file.
        x: Test samples; see `log_finished_model`, which has the other arguments too.
        y: Labels, in the structure of the outputs of the reference.
        name: Name of the model.
        run: The run that made the file, or its id. Default: the current run.
        sample_weight: As in `evaluate`.
        metrics: Metrics to score by instead of those of the reference. They are kept with the file.
        scores: Further scores by name, measured by the caller.
        dataset: Name and digest of the data.
        reference: A Keras model or `.tflite` file to compare the outputs with: `final/difference`
            is their relative difference, `final/agreement` the share of equal decisions.
        parent_model_id: Id of the LoggedModel that this one comes from.

    Returns:
        The model's entry in the store (`info`) and its metrics without `final/` (`final`).

    Raises:
        TypeError: The run is no run.
        UserError: No run is open. Or the file does not take the samples, or cannot be served.
    """
    not_a_run("content", content, "log_finished_file(content, x, y, name=…, run=run)")
    model = LiteRTModel(content)  # says which extra it needs, before anything else
    run = run_of(run, "log_finished_file")
    of_keras = isinstance(reference, keras.Model)
    criteria = criteria_of(reference) if of_keras else Criteria(name)
    if metrics is not None:
        criteria = replace(criteria, configured={"metrics": metrics})
    found = scored(partial(score_file, model, criteria), x, y, sample_weight, metrics)
    measured = dict(found.values)
    if reference is not None:
        if of_keras:
            other = score(reference, x, metrics=[])
        else:
            other = score_file(LiteRTModel(reference), criteria, x, metrics=[])
        measured |= beside(found, other, criteria.configured.get("loss"))
    few = criteria.named(few_of(x))
    taken, said = file_footprint_and_said(content, few)
    final = {**measured, **taken, **(scores or {})}
    about: dict[str, str] = {} if parent_model_id is None else {"parent_model_id": parent_model_id}
    about |= {FLOPS_TAG: said} if said else {}
    info = litert.log_model(
        content,
        name=name,
        run=run,
        input_example={key: np.asarray(each)[:2] for key, each in model.named(few).items()},
        tags={**about, "variant": name},
        criteria=criteria,
    )
    run.set_tags(about)
    finished = on_record(run, info, final, found, dataset)
    run.log_table(pd.DataFrame(weight_table(content)), "weights.json")
    return finished

"""log_finished_model(): logs a Keras model with its scores, size and latency."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import keras
from mlflow.models.model import ModelInfo

from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.errors import UserError, expect, not_a_run
from mlflow_keras_adv.flavors.keras import log_model
from mlflow_keras_adv.metrics.agreement import compared
from mlflow_keras_adv.metrics.criteria import criteria_of
from mlflow_keras_adv.metrics.footprint import footprint_and_said
from mlflow_keras_adv.metrics.score import Scores, batches, loss_of, score
from mlflow_keras_adv.tracking.directions import TAG as DIRECTIONS
from mlflow_keras_adv.tracking.directions import direction, note
from mlflow_keras_adv.tracking.run import Run, run_of
from mlflow_keras_adv.tracking.values import Dataset

_logger = logging.getLogger(__name__)

# Tag of the run and of the model: operations whose FLOPs are not counted.
FLOPS_TAG = "flops.final"


@dataclass(frozen=True)
class FinishedModel:
    """A logged model.

    Attributes:
        info: MLflow's description of it, with `model_id` and `model_uri`.
        final: Its metrics by name without `final/`; see `metrics.footprint.footprint`.
    """

    info: ModelInfo
    final: Mapping[str, float]


@keeps_random_state()
def log_finished_model(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    name: str,
    run: Run | str | None = None,
    sample_weight: Any = None,
    metrics: Any = None,
    scores: Mapping[str, float] | None = None,
    dataset: Dataset | None = None,
    reference: keras.Model | None = None,
    parent_model_id: str | None = None,
    tolerance: float | None = None,
) -> FinishedModel:
    """Logs a finished model as a LoggedModel, with its `final/…` metrics on the test split.

    It is scored by its compiled loss and metrics, as `model.evaluate` does: `final/loss` and the
    metrics, `final/<output>/<metric>` for several outputs. A classifier always has
    `final/accuracy`. The tag `directions.final` says whether each is better lower or higher. A
    model that cannot be scored is logged with its size and latency, and a warning says why.

    The metrics are logged at step 0 of the run, so that MLflow draws them as bars, and linked to
    the model and the dataset, so that MLflow's table of models shows them too. `final/flops` counts
    the floating-point operations for one sample (a multiply-add counts as 2); the tag `flops.final`
    of run and model lists the operations that are not counted.

    Example:
        ```python
        with mka.track("prices"):  # a regression
            model.compile("adam", "mae", metrics=["mse"])
            model.fit(x, y, callbacks=[mka.MlflowLogger()])
            # final/loss and final/mse, as evaluate() measures them, and one measured by yourself
            within_10 = float((abs(model.predict(x_test)[:, 0] - y_test) < 10).mean())
            mka.log_finished_model(
                model, x_test, y_test, name="prices", scores={"within_10": within_10}
            )
            # metrics= scores by others than those it was compiled with
            mka.log_finished_model(
                model, x_test, y_test, name="prices-rmse",
                metrics=[keras.metrics.RootMeanSquaredError()],
            )
        ```

    Args:
        model: A built model.
        x: Test samples, shape [n, ...], or a list or dict of such arrays, a `tf.data.Dataset` or a
            `keras.utils.PyDataset`; two of them become the model's input example.
        y: Labels, in the structure of the outputs; a dataset has its own. Without labels the model
            is not scored.
        name: Name of the model.
        run: The run that made the model, or its id. Default: the current run.
        sample_weight: As in `evaluate`; a dataset has its own.
        metrics: Metrics to score by instead of the compiled ones; see `metrics.score`. They are
            kept with the model, which is scored by them when it is promoted, too.
        scores: Further scores by name, measured by the caller.
        dataset: Name and digest of the data.
        reference: A model to compare the outputs with, such as the teacher or the unpruned model:
            `final/difference` and `final/difference_max` are the mean and the largest difference,
            relative to the reference's outputs; `final/agreement` is the share of equal decisions.
        parent_model_id: Id of the LoggedModel that this one was made from: the teacher, the
            unpruned or the float model.
        tolerance: Largest accepted difference after saving; see `log_model`.

    Returns:
        The model's entry in the store (`info`) and its metrics without `final/` (`final`).

    Raises:
        TypeError: The run is no run, or the model no Keras model.
        UserError: No run is open, the model does not accept the samples, or it cannot be saved and
            served.
    """
    not_a_run("model", model, "log_finished_model(model, x, y, name=…, run=run)")
    run = run_of(run, "log_finished_model")
    expect("the model", model, keras.Model, "a keras.Model")
    criteria = criteria_of(model)
    if metrics is not None:
        criteria = replace(criteria, configured={"metrics": metrics})
    found = scored(partial(score, model), x, y, sample_weight, metrics)
    measured = dict(found.values)
    if reference is not None:
        if found.answers is None:  # it has an evaluation of its own
            found = replace(found, answers=score(model, x, metrics=[]).answers)
        loss = loss_of(model) or loss_of(reference)
        measured |= beside(found, score(reference, x, metrics=[]), loss)
    few = few_of(x)
    taken, said = footprint_and_said(model, few)
    final = {**measured, **taken, **(scores or {})}
    about: dict[str, str] = {} if parent_model_id is None else {"parent_model_id": parent_model_id}
    about |= {FLOPS_TAG: said} if said else {}
    tags: dict[str, Any] = {**about, "variant": name}
    example = keras.tree.map_structure(lambda array: array[:2], few)
    info = log_model(
        model,
        name=name,
        run=run,
        input_example=example,
        tags=tags,
        criteria=None if metrics is None else criteria,
        tolerance=tolerance,
    )
    run.set_tags(about)
    return on_record(run, info, final, found, dataset)


def scored(by: Callable[..., Scores], x: Any, y: Any, sample_weight: Any, metrics: Any) -> Scores:
    """The scores by `by`; if that fails, only the outputs, with a warning."""
    try:
        return by(x, y, sample_weight, metrics=metrics)
    except UserError as error:
        try:
            found = by(x, metrics=[])
        except UserError:
            raise error from None  # it does not take x either
        _logger.warning("The model is logged without scores: %s", error)
        return found


def beside(found: Scores, other: Scores, loss: Any) -> dict[str, float]:
    """Differences from the reference; none, with a warning, if they cannot be computed."""
    try:
        return compared(found, other, loss)
    except UserError as error:
        _logger.warning("Without a comparison with the reference on record: %s", error)
        return {}


def few_of(x: Any) -> Any:
    """The first batch of the samples, as arrays."""
    return keras.tree.map_structure(keras.ops.convert_to_numpy, next(iter(batches(x)))[0])


def on_record(
    run: Run,
    info: ModelInfo,
    final: Mapping[str, float],
    found: Scores,
    dataset: Dataset | None,
) -> FinishedModel:
    """Logs `final/…` and the directions to the run, linked to the model."""
    named = {f"final/{key}": value for key, value in final.items()}
    run.log_metrics(named, step=0, model_id=info.model_id, dataset=dataset)
    modes = {key: direction(key, {}) for key in named}
    modes |= {f"final/{key}": mode for key, mode in found.directions.items()}
    run.set_tags({f"{DIRECTIONS}final": note({key: mode for key, mode in modes.items() if mode})})
    return FinishedModel(info, final)

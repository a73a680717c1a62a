"""What a finished model scores, weighs and takes, on record beside the model itself."""

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

# What of the FLOPs is not counted; on the run, and on the model.
FLOPS_TAG = "flops.final"


@dataclass(frozen=True)
class FinishedModel:
    """A model on record.

    Attributes:
        info: What MLflow knows of it, with `model_id` and `model_uri`.
        final: Its measurements; see `metrics.footprint.footprint`.
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

    It is scored by what it was compiled with, as `model.evaluate` would: `final/loss` and the
    metrics, of several outputs `final/<output>/<metric>`. A classifier has `final/accuracy`,
    compiled with it or not. Which way each is better stands in the tag `directions.final`. A model
    that cannot be scored is logged with what it weighs and takes, and a warning says why.

    The metrics stand at step 0 of the run, so that MLflow draws them as bars, and are linked to the
    model and the dataset, so that they stand in the table of models too. `final/flops` are the
    floating-point operations of one sample (a multiplication with an addition is 2); what of them
    cannot be counted stands in the tag `flops.final` of run and model.

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
        y: Labels, in the structure of the outputs; a dataset brings its own. Without any the model
            is not scored.
        name: What to call the model.
        run: The run that made the model, or its id. Default: the current run.
        sample_weight: As `evaluate` takes it; a dataset brings its own.
        metrics: To score by, instead of what it was compiled with; see `metrics.score`. They are
            kept beside the model, so that it is scored by them when it is promoted, too.
        scores: What else it scores, by name, measured by the caller.
        dataset: Name and digest of the data.
        reference: A model that it should equal, as its teacher or the unpruned one:
            `final/difference` and `final/difference_max` say how far their outputs are apart, in
            parts of the reference's, and of classes or decisions `final/agreement` how often both
            agree.
        parent_model_id: Id of the LoggedModel that this one comes from: teacher, unpruned, float.
        tolerance: By how much the saved model may answer otherwise; see `log_model`.

    Returns:
        The model's entry in the store (`info`) and its metrics without `final/` (`final`).

    Raises:
        TypeError: The run is no run, or the model no Keras model.
        UserError: No run is open. Or the model does not take the samples, or cannot be saved and
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
    """The scores that `by` gives; where it refuses, the answers alone and a warning."""
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
    """How far a model is from another one; nothing and a warning where that cannot be said."""
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
    """Puts `final/…` and which way each is better on the run, linked to the model."""
    named = {f"final/{key}": value for key, value in final.items()}
    run.log_metrics(named, step=0, model_id=info.model_id, dataset=dataset)
    modes = {key: direction(key, {}) for key in named}
    modes |= {f"final/{key}": mode for key, mode in found.directions.items()}
    run.set_tags({f"{DIRECTIONS}final": note({key: mode for key, mode in modes.items() if mode})})
    return FinishedModel(info, final)

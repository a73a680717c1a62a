"""Metric values as they are handed in: which can be recorded, and which are refused by name."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from mlflow import entities
from mlflow.entities import Metric
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from mlflow_keras_adv.tracking.items import Input, Points, Refusal, Series
from mlflow_keras_adv.tracking.names import metric_key

_INFINITE = "an infinity, which a chart cannot show"


@dataclass(frozen=True)
class Dataset:
    """The data that a metric was measured on.

    Attributes:
        name: At most 500 characters.
        digest: At most 36 characters.
    """

    name: str
    digest: str

    def as_input(self, context: str) -> Input:
        """As an input of a run, for "training", "validation" or "test"."""
        source = json.dumps({"name": self.name})
        entity = entities.Dataset(self.name, self.digest, "external", source)
        tag = entities.InputTag(MLFLOW_DATASET_CONTEXT, context)
        return Input(entities.DatasetInput(entity, [tag]))


def values_of_moment(
    values: Mapping[str, float],
    *,
    step: int,
    model_id: str | None,
    dataset: Dataset | None,
) -> tuple[Points, list[Refusal]]:
    """Values of this moment, stamped with its time.

    Args:
        values: Real numbers by name.
        step: Training batches consumed so far.
        model_id: LoggedModel that they belong to.
        dataset: Data that they were measured on.

    Returns:
        The finite ones and NaN; the others, with the reason.
    """
    now = time.time_ns() // 1_000_000
    measured_on = (dataset.name, dataset.digest) if dataset else (None, None)
    metrics, refusals = [], []
    for name, value in values.items():
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            reason = f"{type(value).__name__} is not a number: {error}"
            refusals.append(Refusal(name, reason, 1))
            continue
        if math.isinf(number):
            refusals.append(Refusal(name, _INFINITE, 1))
            continue
        metrics.append(Metric(metric_key(name), number, now, int(step), model_id, *measured_on))
    return Points(metrics), refusals


def values_of_moments(
    columns: Mapping[str, "np.ndarray[Any, Any]"], steps: Any, timestamps_ms: Any
) -> tuple[Series, list[Refusal]]:
    """Values of many moments, copied as arrays.

    Args:
        columns: Per name an array of real numbers of shape `[rows]`, masked where there is none.
        steps: Integers of shape `[rows]`.
        timestamps_ms: Milliseconds since the epoch, integers of shape `[rows]`.

    Returns:
        The finite ones and NaN; how many were refused of each name, with the reason.

    Raises:
        ValueError: If an array is not one-dimensional, or they differ in length.
    """
    steps, timestamps_ms = np.array(steps, np.int64), np.array(timestamps_ms, np.int64)
    for name, array in {**columns, "timestamps_ms": timestamps_ms}.items():
        if steps.ndim != 1 or np.shape(array) != steps.shape:
            raise ValueError(
                f"Received steps of shape {steps.shape} and {name!r} of shape {np.shape(array)}. "
                "Expected one dimension and equal lengths."
            )
    finite, refusals = {}, []
    for name, array in columns.items():
        column = np.ma.array(array, copy=True)
        if column.dtype.kind not in "biuf":
            refusals.append(Refusal(name, f"{column.dtype} is not a real number", len(column)))
            continue
        infinite = np.ma.filled(np.isinf(column), False)
        if infinite.any():
            refusals.append(Refusal(name, _INFINITE, int(infinite.sum())))
        finite[name] = np.ma.masked_where(infinite, column, copy=False)
    return Series(finite, steps, timestamps_ms), refusals

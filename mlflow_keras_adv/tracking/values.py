"""Metric values and tables as they are handed in: which can be recorded, and which are refused."""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mlflow import entities
from mlflow.entities import Metric
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from mlflow_keras_adv.tracking.records import Input, Points, Refusal, Series, Table

# Curves that one metric with several values (one per class) may become.
MAX_ENTRIES = 64

_INFINITE = "an infinity, which a chart cannot show"


@dataclass(frozen=True)
class Dataset:
    """The data on which a metric was measured.

    Attributes:
        name: Name of the data, at most 500 characters.
        digest: Identifies the data, at most 36 characters.
    """

    name: str
    digest: str

    def as_input(self, context: str) -> Input:
        """Converts it to an input of a run.

        Args:
            context: "training", "validation" or "test".

        Returns:
            MLflow's entity for `Run.log_dataset`.
        """
        source = json.dumps({"name": self.name})
        entity = entities.Dataset(self.name, self.digest, "external", source)
        tag = entities.InputTag(MLFLOW_DATASET_CONTEXT, context)
        return Input(entities.DatasetInput(entity, [tag]))


def entries_of(
    name: str, value: Any, entry_names: Sequence[str] = ()
) -> Iterator[tuple[str, float]]:
    """The numbers in a value, by the names of their curves.

    Args:
        name: Name of the value.
        value: A number, or numbers in an array, a tensor or a list. A single one keeps the name;
            others get a name each: `f1/0`, `f1/1`, …; of a matrix `name/0/0`, `name/0/1`, ….
        entry_names: What to call the entries where there are as many.

    Raises:
        ValueError: If it is no number, or more than `MAX_ENTRIES`.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "biufV":  # V: the bfloat16 of a tensor
        if array.ndim or array.dtype.kind == "c":
            raise ValueError(f"values of type {array.dtype} are no real numbers")
        yield name, float(value)  # a text, or an object that knows its number
        return
    if not 0 < array.size <= MAX_ENTRIES:
        raise ValueError(
            f"{array.size} numbers in one value; 1 to {MAX_ENTRIES} become curves. Log them as a "
            "table, or log their mean"
        )
    if array.size == 1:
        yield name, float(array.reshape(()).astype(np.float64))
        return
    for index, number in np.ndenumerate(array.astype(np.float64)):
        parts = [
            entry_names[at] if len(entry_names) == size else str(at)
            for at, size in zip(index, array.shape, strict=True)
        ]
        yield "/".join([name, *parts]), float(number)


def points_from(
    values: Mapping[str, Any],
    *,
    step: int,
    model_id: str | None,
    dataset: Dataset | None,
    keys_of: Callable[[Iterable[str]], Mapping[str, str]],
) -> tuple[Points, list[Refusal]]:
    """Values of this moment, stamped with its time.

    Args:
        values: Real numbers by name, or several in one value; see `entries_of`.
        step: Training batches consumed so far.
        model_id: LoggedModel that they belong to.
        dataset: Data that they were measured on.
        keys_of: Says under which keys names are recorded.

    Returns:
        The finite ones and NaN; the others, with the reason.
    """
    now = time.time_ns() // 1_000_000
    measured_on = (dataset.name, dataset.digest) if dataset else (None, None)
    numbers: dict[str, float] = {}
    refusals = []
    for name, value in values.items():
        try:
            entries = list(entries_of(name, value))
        except Exception as error:  # whatever a value that is not ours answers
            refusals.append(Refusal(name, f"{type(value).__name__} is not a number: {error}", 1))
            continue
        for entry, number in entries:
            if math.isinf(number):
                refusals.append(Refusal(entry, _INFINITE, 1))
                continue
            while entry in numbers or (entry != name and entry in values):
                entry += ".2"  # somebody has named a metric `f1/0`, too
            numbers[entry] = number
    keys = keys_of(numbers)
    metrics = [
        Metric(keys[name], number, now, int(step), model_id, *measured_on)
        for name, number in numbers.items()
    ]
    return Points(metrics), refusals


def series_from(
    columns: Mapping[str, "np.ndarray[Any, Any]"],
    steps: Any,
    timestamps_ms: Any,
    *,
    keys_of: Callable[[Iterable[str]], Mapping[str, str]],
) -> tuple[Series, list[Refusal]]:
    """Values of many moments, copied as arrays.

    Args:
        columns: Per name an array of real numbers of shape `[rows]`, masked where there is none.
        steps: Integers of shape `[rows]`.
        timestamps_ms: Milliseconds since the epoch, integers of shape `[rows]`.
        keys_of: Says under which keys names are recorded.

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
    keys = keys_of(finite)
    by_key = {keys[name]: column for name, column in finite.items()}
    return Series(by_key, steps, timestamps_ms), refusals


def table_of(data: Any, artifact_file: str) -> Table:
    """A table to hand in.

    Args:
        data: A pandas DataFrame, or a dict of columns: sequences of equal length, or plain values
            for a single row.
        artifact_file: Where it goes; ends in `.json`.

    Raises:
        TypeError: If the data is neither.
        ValueError: If the name does not end in `.json`, or the columns differ in length.
    """
    if not artifact_file.endswith(".json"):
        raise ValueError(f"Received {artifact_file!r} for a table; expected a name in .json.")
    return Table(_rows_text(data), artifact_file)


def _rows_text(data: Any) -> str:
    """Rows as JSON with "columns" and "data"."""
    if hasattr(data, "to_json"):
        text: str = data.to_json(orient="split", index=False, date_format="iso")
        return text
    if not isinstance(data, Mapping):
        raise TypeError(
            f"Received {type(data).__name__}; expected a pandas DataFrame or a dict of columns."
        )
    columns = [_cells(column) for column in data.values()]
    if len({len(column) for column in columns}) > 1:
        lengths = {name: len(column) for name, column in zip(data, columns, strict=True)}
        raise ValueError(f"Received columns of different lengths: {lengths}.")
    rows = [list(row) for row in zip(*columns, strict=True)]
    return json.dumps({"columns": [str(name) for name in data], "data": rows}, default=_plain)


def _cells(column: Any) -> list[Any]:
    column = _plain(column) if hasattr(column, "tolist") else column
    return list(column) if isinstance(column, list | tuple) else [column]


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)

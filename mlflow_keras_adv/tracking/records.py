"""How what is handed in stands in a journal.

A record is one line of JSON, followed by the bytes of its arrays: nothing in it is executed when it
is read, as a pickle would be.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

from mlflow_keras_adv.tracking.items import (
    Artifact,
    Deletion,
    End,
    Input,
    Journaled,
    Model,
    Params,
    Points,
    Refusal,
    Series,
    Table,
    Tags,
)

_PLAIN = {kind.__name__: kind for kind in (Params, Tags, Table, Deletion, Refusal, End)}


def encode(item: Journaled, folder: Path) -> bytes:
    """An item as the bytes of a record.

    Args:
        item: What was handed in.
        folder: The journal; copies of files in it are named relative to it.

    Raises:
        TypeError: If it holds what JSON cannot.
    """
    arrays: list[np.ndarray[Any, Any]] = []
    match item:
        case Points(metrics):
            body: dict[str, Any] = {"metrics": [_metric_fields(metric) for metric in metrics]}
        case Series(columns, steps, timestamps_ms):
            types = {name: column.dtype.str for name, column in columns.items()}
            body = {"rows": len(steps), "types": types}
            arrays = [np.asarray(each, "<i8") for each in (steps, timestamps_ms)]
            for column in columns.values():
                arrays += [np.ma.getdata(column), np.ma.getmaskarray(column)]
        case Input(dataset):
            body = {
                "dataset": dict(dataset.dataset),
                "tags": {tag.key: tag.value for tag in dataset.tags},
            }
        case Artifact(path) | Model(path=path):
            place = path.relative_to(folder) if path.is_relative_to(folder) else path
            body = asdict(item) | {"path": str(place)}
        case _:
            body = asdict(item)
    line = json.dumps({"kind": type(item).__name__, **body}, separators=(",", ":"))
    return b"".join([line.encode(), b"\n", *(each.tobytes() for each in arrays)])


def decode(record: bytes, folder: Path) -> Journaled:
    """The item of a record.

    Args:
        record: What `encode` made.
        folder: The journal, wherever it lies now.

    Raises:
        ValueError: If it is not a record of this version.
    """
    line, _, rest = record.partition(b"\n")
    body = json.loads(line)
    kind = body.pop("kind", None)
    if kind in _PLAIN:
        plain: Journaled = _PLAIN[kind](**body)
        return plain
    match kind:
        case "Points":
            return Points([_metric(fields) for fields in body["metrics"]])
        case "Series":
            return _series(body["rows"], body["types"], rest)
        case "Input":
            tags = [InputTag(key, value) for key, value in body["tags"].items()]
            return Input(DatasetInput(Dataset(**body["dataset"]), tags))
        case "Artifact":
            artifact = Artifact(**body)
            return replace(artifact, path=folder / artifact.path)
        case "Model":
            model = Model(**body)
            return replace(model, path=folder / model.path)
    raise ValueError(f"Received a record of the kind {kind!r}, which this version does not know.")


def _metric_fields(metric: Metric) -> list[Any]:
    fields = [metric.key, metric.value, metric.timestamp, metric.step]
    on = [metric.model_id, metric.dataset_name, metric.dataset_digest]
    return fields + on if any(on) else fields


def _metric(fields: list[Any]) -> Metric:
    return Metric(*fields)


def _series(rows: int, types: Mapping[str, str], data: bytes) -> Series:
    position = 0

    def next_array(kind: str) -> "np.ndarray[Any, Any]":
        nonlocal position
        array = np.frombuffer(data, kind, rows, position)
        position += array.nbytes
        return array

    steps, timestamps_ms = next_array("<i8"), next_array("<i8")
    columns: dict[str, np.ma.MaskedArray[Any, Any]] = {
        name: np.ma.masked_array(next_array(kind), next_array("?")) for name, kind in types.items()
    }
    return Series(columns, steps, timestamps_ms)

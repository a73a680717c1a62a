"""Tables in the format of `mlflow.log_table`, which the MLflow UI shows as tables."""

import json
from collections.abc import Mapping
from typing import Any

from mlflow_keras_adv.tracking.records import Table


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
    return Table(_text(data), artifact_file)


def _text(data: Any) -> str:
    """Rows as JSON with "columns" and "data"."""
    if hasattr(data, "to_json"):
        text: str = data.to_json(orient="split", index=False, date_format="iso")
        return text
    if not isinstance(data, Mapping):
        raise TypeError(
            f"Received {type(data).__name__}; expected a pandas DataFrame or a dict of columns."
        )
    columns = [_values(column) for column in data.values()]
    if len({len(column) for column in columns}) > 1:
        lengths = {name: len(column) for name, column in zip(data, columns, strict=True)}
        raise ValueError(f"Received columns of different lengths: {lengths}.")
    rows = [list(row) for row in zip(*columns, strict=True)]
    return json.dumps({"columns": [str(name) for name in data], "data": rows}, default=_plain)


def _values(column: Any) -> list[Any]:
    column = _plain(column) if hasattr(column, "tolist") else column
    return list(column) if isinstance(column, list | tuple) else [column]


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)

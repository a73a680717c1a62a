"""Tables that several runs have logged under one name, cut to the size of a page."""

import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlflow_keras_adv.comparison.artifacts import Artifacts
from mlflow_keras_adv.comparison.texts import number

_logger = logging.getLogger(__name__)

# Limits for a page: a table per variant, and these parts of it.
MAX_TABLES = 4
MAX_ROWS = 16
MAX_COLUMNS = 10
# Files of one name that are read to find out whether they are tables.
_MAX_NAMES = 12
_LARGEST = 1e15  # of the numbers that are rounded


@dataclass(frozen=True)
class LoggedTable:
    """A table that one run has logged.

    Attributes:
        columns: Names of the first `MAX_COLUMNS` columns.
        rows: The first `MAX_ROWS` rows, as texts.
        shape: Rows and columns of the whole.
    """

    columns: list[str]
    rows: list[list[str]]
    shape: tuple[int, int]

    @property
    def is_cut(self) -> bool:
        """Whether something is left out."""
        return self.shape != (len(self.rows), len(self.columns))


@dataclass(frozen=True)
class TableSeries:
    """Tables of one name.

    Attributes:
        name: Their artifact path.
        tables: By number of the variant.
    """

    name: str
    tables: dict[int, LoggedTable]


def read_tables(artifacts: Artifacts) -> tuple[list[TableSeries], list[str]]:
    """Reads the tables of one run of each variant, the most frequent names first.

    A table is a `.json` file as `mlflow.log_table` writes it: `columns`, and `data` row by row.

    Returns:
        The tables, and sentences about those that were left out.
    """
    found: list[TableSeries] = []
    left_out = 0
    for name, places in list(artifacts.by_name(_named).items())[:_MAX_NAMES]:
        tables = {}
        for variant, (run_id, path) in places.items():
            if (table := _table(artifacts, run_id, path)) is not None:
                tables[variant] = table
            elif not tables:
                break  # no table of the first variant: it is none of the others either
        if tables and len(found) < MAX_TABLES:
            found.append(TableSeries(name, tables))
        elif tables:
            left_out += 1
    notes = [f"Of {left_out + len(found)} tables the {MAX_TABLES} that most variants have."]
    return found, notes if left_out else []


def _named(paths: Sequence[str]) -> dict[str, str]:
    return {path: path for path in paths if path.endswith(".json")}


def _table(artifacts: Artifacts, run_id: str, path: str) -> LoggedTable | None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            content = json.loads(artifacts.download(run_id, path, folder).read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            _logger.warning("%r of run %s cannot be shown: %s", path, run_id, error)
            return None
    parts = content if isinstance(content, dict) else {}
    columns, rows = parts.get("columns"), parts.get("data")
    if not isinstance(columns, list) or not isinstance(rows, list) or not columns or not rows:
        return None
    if not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
        return None
    names = [str(column) for column in columns[:MAX_COLUMNS]]
    texts = [[_text(*cell) for cell in zip(row, names, strict=False)] for row in rows[:MAX_ROWS]]
    return LoggedTable(names, texts, (len(rows), len(columns)))


def _text(cell: Any, column: str) -> str:
    if isinstance(cell, int | float) and not isinstance(cell, bool) and abs(cell) < _LARGEST:
        return number(float(cell), column)
    return "-" if cell is None else str(cell)

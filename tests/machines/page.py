"""The table in docs/machines.md: `pytest tests/machines --machines-table docs/machines.md`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

_ROWS = pytest.StashKey[list["Row"]]()
_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True)
class Row:
    """A value, and what becomes of it on each rank.

    Attributes:
        value: Its metric key, or its name.
        truth: What it is held against.
        ranks: What each rank has.
    """

    value: str
    truth: str
    ranks: Sequence[str]


def rows_of(config: pytest.Config) -> list[Row]:
    """The rows of this test run, to be added to."""
    return config.stash.setdefault(_ROWS, [])


def write(path: Path, rows: Sequence[Row]) -> None:
    """Puts the table between the marks of a page."""
    page = path.read_text()
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    ranks = range(max(len(row.ranks) for row in rows))
    lines = [
        f"| value | held against | {' | '.join(f'rank {each}' for each in ranks)} |",
        f"|---|---|{'---|' * len(ranks)}",
        *(f"| {row.value} | {row.truth} | {' | '.join(row.ranks)} |" for row in rows),
    ]
    path.write_text("\n".join([before + _BEGIN, *lines, _END + after]))

"""The table of peers in docs/peers.md, written by `pytest tests/peers --peers-table PATH`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_ROWS = pytest.StashKey[list["Row"]]()
_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"
OBSERVED = ("autolog", "MlflowLogger", "Loop")
_HEAD = (
    "| programs | plain: end well | skipped or fail | `fit`s | "
    + " | ".join(f"the same with `{way}`" for way in OBSERVED)
    + " |\n|---|---:|---:|---:|---:|---:|---:|\n"
)


@dataclass(frozen=True)
class Row:
    """What became of some programs, run plain and observed.

    Attributes:
        suite: Where they are from: a line of the table.
        name: Of these programs in it. What is known of other ways of observing them is added up.
        passed: How many end well plain.
        other: How many are skipped, or fail, plain too.
        fits: How many times `fit` is called in them, where that is counted.
        same: By way of observing how many leave the same.
    """

    suite: str
    name: str
    passed: int
    other: int = 0
    fits: int = 0
    same: Mapping[str, int] = field(default_factory=dict)

    @property
    def programs(self) -> int:
        return self.passed + self.other


def rows_of(config: pytest.Config) -> list[Row]:
    """The rows of this test run, to be added to."""
    return config.stash.setdefault(_ROWS, [])


def write(path: Path, rows: list[Row]) -> None:
    """Puts the rows between the marks of a page; lines of what was not run this time stay."""
    page = path.read_text()
    before, _, rest = page.partition(_BEGIN)
    measured, _, after = rest.partition(_END)
    lines = {line.split("|")[1].strip(): line for line in measured.strip().splitlines()[2:]}
    by_suite: dict[str, list[Row]] = {}
    for row in rows:
        by_suite.setdefault(row.suite, []).append(row)
    for suite, group in by_suite.items():
        lines[suite] = _line(suite, group)
    table = _HEAD + "".join(f"{line}\n" for line in lines.values())
    path.write_text(f"{before}{_BEGIN}\n{table}{_END}{after}")


def _line(suite: str, rows: list[Row]) -> str:
    once = {row.name: row for row in rows}.values()
    cells = [str(sum(row.passed for row in once)), str(sum(row.other for row in once))]
    cells.append(str(sum(row.fits for row in once) or ""))
    for way in OBSERVED:
        observed = [row for row in rows if way in row.same]
        same = sum(row.same[way] for row in observed)
        cells.append(f"{same} of {sum(row.programs for row in observed)}" if observed else "")
    return f"| {suite} | {' | '.join(cells)} |"

"""The table of faults in docs/faults.md, written by `pytest tests/faults --faults-table PATH`."""

from dataclasses import dataclass
from pathlib import Path

import pytest

_ROWS = pytest.StashKey[list["Row"]]()
_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"
_INCUMBENT = "MLflow's"
_HEAD = (
    "| fault | produced | delivered | refused by name | duplicates | longest wait of a step, ms |\n"
    "|---|---:|---:|---:|---:|---:|\n"
)


@dataclass(frozen=True)
class Row:
    """What became of a producer's points under a fault.

    Attributes:
        fault: What was done.
        produced: Points handed in.
        delivered: Those in the store in the end.
        refused: Those that the receipt names as refused.
        duplicates: Points that the store holds once more.
        longest_wait: Seconds that a step waited for the logging at most.
    """

    fault: str
    produced: int
    delivered: int
    refused: int
    duplicates: int
    longest_wait: float

    def __str__(self) -> str:
        counts = (self.produced, self.delivered, self.refused, self.duplicates)
        return f"| {self.fault} | {' | '.join(map(str, counts))} | {1000 * self.longest_wait:.0f} |"


def rows_of(config: pytest.Config) -> list[Row]:
    """The rows of this test run, to be added to."""
    return config.stash.setdefault(_ROWS, [])


def write(path: Path, rows: list[Row]) -> None:
    """Puts the rows between the marks of a page: ours, then those of MLflow's own logging.

    Of a kind that was not measured this time, those before stay.
    """
    page = path.read_text()
    before, _, rest = page.partition(_BEGIN)
    measured, _, after = rest.partition(_END)
    by_fault: dict[str, list[Row]] = {}
    for row in rows:
        by_fault.setdefault(row.fault, []).append(row)
    new = [str(_sum(group)) for group in by_fault.values()]
    old = measured.strip().splitlines()[2:]
    lines: list[str] = []
    for is_ours in (True, False):
        lines += _of_kind(new, is_ours) or _of_kind(old, is_ours)
    table = _HEAD + "".join(f"{line}\n" for line in lines)
    path.write_text(f"{before}{_BEGIN}\n{table}{_END}{after}")


def _of_kind(lines: list[str], is_ours: bool) -> list[str]:
    return [line for line in lines if line.startswith(f"| {_INCUMBENT}") != is_ours]


def _sum(rows: list[Row]) -> Row:
    """Rounds of one fault as one row."""
    if len(rows) == 1:
        return rows[0]
    return Row(
        f"{rows[0].fault}, {len(rows)} rounds",
        sum(row.produced for row in rows),
        sum(row.delivered for row in rows),
        sum(row.refused for row in rows),
        sum(row.duplicates for row in rows),
        max(row.longest_wait for row in rows),
    )

"""The table of kinds in docs/any-model.md: `pytest tests/kinds --models-table PATH`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

_CELLS = pytest.StashKey[list["Cell"]]()
_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True)
class Cell:
    """What a feature does with a kind of model.

    Attributes:
        kind: The model.
        feature: What was done with it.
        said: The sentence with which it was refused, or what it does instead; empty if it works.
        refused: Whether it was.
    """

    kind: str
    feature: str
    said: str = ""
    refused: bool = False


def cells_of(config: pytest.Config) -> list[Cell]:
    """The cells of this test run, to be added to."""
    return config.stash.setdefault(_CELLS, [])


def write(path: Path, cells: Sequence[Cell]) -> None:
    """Puts the table between the marks of a page, sentences below; cells not run this time stay."""
    page = path.read_text()
    before, _, rest = page.partition(_BEGIN)
    measured, _, after = rest.partition(_END)
    found = {(cell.kind, cell.feature): cell for cell in [*_read(measured), *cells]}
    kinds = list(dict.fromkeys(kind for kind, _ in found))
    features = list(dict.fromkeys(feature for _, feature in found))
    said = list(dict.fromkeys(cell.said for cell in found.values() if cell.said))
    lines = [
        f"| model | {' | '.join(features)} |",
        f"|---|{':---:|' * len(features)}",
    ]
    for kind in kinds:
        row = [_shown(found.get((kind, feature)), said) for feature in features]
        if any(row):
            lines.append(f"| {kind.replace('_', ' ')} | {' | '.join(row)} |")
    lines += ["", *(f"{number}. {text}" for number, text in enumerate(said, 1))]
    path.write_text("\n".join([before + _BEGIN, *lines, _END + after]))


def _read(measured: str) -> list[Cell]:
    """The cells of a table that stands on the page."""
    lines = measured.strip().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    said = {
        number: text
        for number, dot, text in (line.partition(". ") for line in lines)
        if dot and number.isdecimal()
    }
    cells = []
    for kind, *row in rows[2:]:
        for feature, cell in zip(rows[0][1:], row, strict=True):
            if cell:
                word, _, number = cell.partition(" ")
                name = kind.replace(" ", "_")
                cells.append(Cell(name, feature, said.get(number, ""), word == "refused"))
    return cells


def _shown(cell: Cell | None, said: Sequence[str]) -> str:
    if cell is None:
        return ""
    if not cell.said:
        return "✓"
    return f"{'refused' if cell.refused else '✓'} {said.index(cell.said) + 1}"

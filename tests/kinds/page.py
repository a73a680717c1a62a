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
    """Puts the table between the marks of a page, with the sentences below it."""
    page = path.read_text()
    before, _, rest = page.partition(_BEGIN)
    after = rest.partition(_END)[2]
    features = list(dict.fromkeys(cell.feature for cell in cells))
    said = list(dict.fromkeys(cell.said for cell in cells if cell.said))
    found = {(cell.kind, cell.feature): cell for cell in cells}
    lines = [
        f"| model | {' | '.join(features)} |",
        f"|---|{':---:|' * len(features)}",
    ]
    for kind in dict.fromkeys(cell.kind for cell in cells):
        row = [_shown(found.get((kind, feature)), said) for feature in features]
        lines.append(f"| {kind.replace('_', ' ')} | {' | '.join(row)} |")
    lines += ["", *(f"{number}. {text}" for number, text in enumerate(said, 1))]
    path.write_text("\n".join([before + _BEGIN, *lines, _END + after]))


def _shown(cell: Cell | None, said: Sequence[str]) -> str:
    if cell is None:
        return ""
    if not cell.said:
        return "✓"
    return f"{'refused' if cell.refused else '✓'} {said.index(cell.said) + 1}"

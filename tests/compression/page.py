"""The table of topologies in docs/compress.md: `pytest … --topologies-table PATH` writes it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SCHEMES = ("int8", "prune", "cluster", "qat")
POINTS = 0.02  # of accuracy, above which a sentence is due

_ROWS = pytest.StashKey[list["Row"]]()
_BEGIN, _END = "<!-- topologies: begin -->", "<!-- topologies: end -->"
_HEAD = (
    f"| net | float | {' | '.join(f'`{scheme}`' for scheme in SCHEMES)} |\n"
    f"|---|---:|{'---:|' * len(SCHEMES)}\n"
)


@dataclass(frozen=True)
class Row:
    """What became of a net.

    Attributes:
        net: Its name.
        found: What `topologies.measured` has found, by scheme.
        sentences: Why a scheme is worse than the float model or has refused it.
    """

    net: str
    found: Mapping[str, Mapping[str, Any]]
    sentences: Mapping[str, str]


def is_worse(found: Mapping[str, Any]) -> bool:
    """Whether a sentence is due: of what is lost in training, or between training and file."""
    if "refused" in found:
        return True
    return max(found["float"], found["trained"]) - found["file"] > POINTS


def rows_of(config: pytest.Config) -> list[Row]:
    """The rows of this test run, to be added to."""
    return config.stash.setdefault(_ROWS, [])


def write(path: Path, rows: list[Row]) -> None:
    """Puts the rows between the marks of a page; lines of nets not run this time stay."""
    page = path.read_text()
    before, _, rest = page.partition(_BEGIN)
    measured, _, after = rest.partition(_END)
    written = measured.strip().splitlines()
    lines = {line.split("|")[1].strip(): line for line in written[2:] if line.startswith("|")}
    said = [line for line in written if line.startswith("- ")]
    for row in rows:
        lines[row.net] = _line(row)
        said = [line for line in said if not line.startswith(f"- {row.net}, ")]
        said += [f"- {row.net}, `{scheme}`: {why}" for scheme, why in row.sentences.items()]
    table = _HEAD + "".join(f"{line}\n" for line in lines.values())
    said.sort(key=lambda line: list(lines).index(line[2:].rpartition(", `")[0]))
    sentences = "".join(f"{line}\n" for line in said)
    path.write_text(f"{before}{_BEGIN}\n{table}\n{sentences}{_END}{after}")


def _line(row: Row) -> str:
    cells = [_cell(scheme, row.found[scheme]) for scheme in SCHEMES]
    return f"| {row.net} | {row.found['int8']['float']:.1%} | {' | '.join(cells)} |"


def _cell(scheme: str, found: Mapping[str, Any]) -> str:
    if "refused" in found:
        return "refused"
    if scheme == "int8":  # nothing is trained
        return f"{found['file']:.1%}"
    return f"{found['trained']:.1%} → {found['file']:.1%}"

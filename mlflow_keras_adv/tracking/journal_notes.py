"""What stands in the folder of a journal beside its records, in files that are read as a whole."""

import contextlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote

_FILE = "settled.json"


@dataclass
class Acknowledged:
    """What came of the metric values that are not in the journal any more.

    Attributes:
        segment: The last segment that is gone.
        begun: A later one, of which a part is settled.
        offset: Where the first record begins that is not.
        points: Metric values that were delivered or refused.
        refused_points: Those of them that were refused.
        refused: How often each name was refused: metrics, params, tags, artifacts.
    """

    segment: int = 0
    begun: int = 0
    offset: int = 0
    points: int = 0
    refused_points: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """From the folder of a journal; nothing is settled where nothing was written."""
        path = folder / _FILE
        if not path.exists():
            return cls()
        fields = json.loads(path.read_text())
        return cls(**{**fields, "refused": Counter(fields["refused"])})

    def write(self, folder: Path) -> None:
        """Into the folder of a journal, in one step.

        Raises:
            OSError: If it cannot be written; what stood there before stands there still.
        """
        new = folder / f"{_FILE}.new"
        new.write_text(json.dumps(vars(self)))
        new.replace(folder / _FILE)

    def begin_of(self, segment: int) -> int | None:
        """Where in a segment the first record begins that is not settled; None if all are."""
        if segment <= self.segment or segment < self.begun:
            return None
        return self.offset if segment == self.begun else 0

    def of(self, segment: int) -> "Acknowledged":
        """A copy, as of the end of a segment."""
        return Acknowledged(
            segment,
            points=self.points,
            refused_points=self.refused_points,
            refused=Counter(self.refused),
        )


_ENDED, _LOST, _COUNTED = "ended-", "lost-", "counted-"


class FullDiskNotes:
    """What a journal can still say when its disk is full.

    A record needs room; an empty file can be made without, so its name says it.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ended(self) -> str | None:
        """The status with which the run ended, if it was marked."""
        return next((path.name[len(_ENDED) :] for path in self._folder.glob(f"{_ENDED}*")), None)

    def mark_ended(self, status: str) -> None:
        """Notes the status with which the run ended."""
        with contextlib.suppress(OSError):
            (self._folder / f"{_ENDED}{status}").touch()

    def mark_lost(self, points: Mapping[str, int]) -> None:
        """Notes how many values of each metric have found no room."""
        for name, count in points.items():
            with contextlib.suppress(OSError):
                (self._folder / f"{_LOST}{count}-{quote(name, safe='')[:200]}").touch()

    def mark_counted(self, produced: int, delivered: int, refused: int) -> None:
        """Notes which values the receipt of the run counts already; `counted` gives them back."""
        with contextlib.suppress(OSError):
            (self._folder / f"{_COUNTED}{produced}-{delivered}-{refused}").touch()

    def counted(self) -> tuple[int, int, int] | None:
        """The values that the receipt of the run counts; None if it has not been written."""
        for path in self._folder.glob(f"{_COUNTED}*"):
            produced, delivered, refused = path.name[len(_COUNTED) :].split("-")
            return int(produced), int(delivered), int(refused)
        return None

    def take_lost(self) -> dict[str, int]:
        """What `mark_lost` has noted; it is forgotten."""
        lost = {}
        for path in self._folder.glob(f"{_LOST}*"):
            count, _, name = path.name[len(_LOST) :].partition("-")
            lost[unquote(name)] = int(count)
            path.unlink()
        return lost

"""Marks: what a journal can still say when its disk is full.

A record needs room; the name of an empty file next to none, so the last word of a run stands in
names.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, unquote

_ENDED, _LOST, _COUNTED = "ended-", "lost-", "counted-"


class Marks:
    """The marks in the folder of a journal.

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

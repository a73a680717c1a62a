"""Settled: what came of the metric values that are not in a journal any more."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

_FILE = "settled.json"


@dataclass
class Settled:
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

    def of(self, segment: int) -> "Settled":
        """A copy, as of the end of a segment."""
        return Settled(
            segment,
            points=self.points,
            refused_points=self.refused_points,
            refused=Counter(self.refused),
        )

"""What has been handed in for a run and is not in the store yet, oldest first.

Kept in memory. A journal on disk takes the place of `Pending` without a change to its neighbours.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Self

import numpy as np
from mlflow.entities import DatasetInput, Metric

from mlflow_keras_adv.tracking.names import metric_key

ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class Points:
    """Metric values of one moment."""

    metrics: Sequence[Metric]

    def __len__(self) -> int:
        return len(self.metrics)

    def __iter__(self) -> Iterator[Metric]:
        return iter(self.metrics)


@dataclass(frozen=True)
class Series:
    """Metric values of many moments. They become Python objects only as they are sent.

    Attributes:
        columns: Per metric an array of shape `[rows]`; masked where it has no value.
        steps: Integers of shape `[rows]`.
        timestamps_ms: Milliseconds since the epoch, integers of shape `[rows]`.
    """

    columns: Mapping[str, "np.ma.MaskedArray[tuple[int], np.dtype[np.generic]]"]
    steps: "np.ndarray[tuple[int], np.dtype[np.integer]]"
    timestamps_ms: "np.ndarray[tuple[int], np.dtype[np.integer]]"

    def __len__(self) -> int:
        return sum(int(column.count()) for column in self.columns.values())

    def __iter__(self) -> Iterator[Metric]:
        keys = [metric_key(name) for name in self.columns]
        for start in range(0, len(self.steps), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            columns = (column[rows].tolist() for column in self.columns.values())
            moments = zip(self.timestamps_ms[rows].tolist(), self.steps[rows].tolist(), strict=True)
            for moment, *values in zip(moments, *columns, strict=True):
                for key, value in zip(keys, values, strict=True):
                    if value is not None:  # `tolist` makes None of what is masked
                        yield Metric(key, float(value), *moment)


@dataclass(frozen=True)
class Params:
    """Parameters, flat and plain."""

    values: Mapping[str, object]


@dataclass(frozen=True)
class Tags:
    """Tags of the run."""

    values: Mapping[str, str]


@dataclass(frozen=True)
class Artifact:
    """A copy of a file or folder, alone in a temporary folder."""

    path: Path
    artifact_path: str | None

    @classmethod
    def copy_of(cls, source: Path, artifact_path: str | None) -> Self:
        """Copies a file or folder, which its owner may then change or delete.

        Raises:
            FileNotFoundError: If there is nothing at `source`.
            OSError: If it cannot be copied.
        """
        if not source.exists():
            raise FileNotFoundError(f"Received the artifact {source}, which does not exist.")
        name = source.name or source.resolve().name  # of `.`
        path = Path(tempfile.mkdtemp(prefix="mlflow-artifact-")) / name
        artifact = cls(path, artifact_path)
        try:
            if source.is_dir():
                shutil.copytree(source, path)
            else:
                shutil.copyfile(source, path)
        except OSError:
            artifact.discard()
            raise
        return artifact

    def discard(self) -> None:
        """Deletes the copy."""
        shutil.rmtree(self.path.parent, ignore_errors=True)


@dataclass(frozen=True)
class Table:
    """Rows for MLflow's table artifact: a pandas DataFrame or a dict of columns."""

    data: object
    artifact_file: str


@dataclass(frozen=True)
class Input:
    """A dataset that the run uses."""

    dataset: DatasetInput


@dataclass(frozen=True)
class Deletion:
    """An artifact that the run is to keep no longer."""

    artifact_file: str


@dataclass(frozen=True)
class End:
    """The status with which the run ended."""

    status: str


@dataclass(frozen=True)
class Flush:
    """Asks for an answer as soon as everything before it is settled: True if it is."""

    answer: "SimpleQueue[bool]"


Record = Params | Tags | Artifact | Table | Input | Deletion
Item = Points | Series | Record | End | Flush


class Pending:
    """A queue that counts: any thread puts, one takes and settles.

    Made of parts that are written in C, here and in the writer: a Ctrl-C in the middle of
    `queue.Queue.put` or `threading.Condition` can leave a lock that is held for ever.

    Attributes:
        points: Metric values that were put and are not settled.
        records: Params, tags, artifacts and tables, counted by the call, that are not settled.
        ends: Statuses that are not settled.
        settled: How often something was settled: it grows as long as the store takes values.
    """

    def __init__(self) -> None:
        self.points = 0
        self.records = 0
        self.ends = 0
        self.settled = 0
        self._items: SimpleQueue[Item] = SimpleQueue()
        self._counting = Lock()

    def put(self, item: Item) -> None:
        """Appends an item."""
        with self._counting:
            self._count(item, 1)
            self._items.put(item)

    def take(self, timeout: float) -> Item | None:
        """The oldest item, or None if there is none within `timeout` seconds."""
        try:
            return self._items.get(timeout=timeout)
        except Empty:
            return None

    def settle(self, item: Item | Sequence[Metric]) -> None:
        """Notes what is in the store, or was refused by it: an item, or some of the metrics."""
        with self._counting:
            self._count(item, -1)
            self.settled += 1

    def count(self) -> int:
        """All that is not settled."""
        return self.points + self.records + self.ends

    def is_empty(self) -> bool:
        """Whether there is nothing to take."""
        return self._items.empty()

    def _count(self, item: Item | Sequence[Metric], change: int) -> None:
        if isinstance(item, Points | Series | Sequence):
            self.points += change * len(item)
        elif isinstance(item, Record):
            self.records += change
        elif isinstance(item, End):
            self.ends += change

"""What has been handed in for a run and is not in the store yet, oldest first."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Self
from weakref import WeakSet

from mlflow_keras_adv.compat.system import after_fork_in_child
from mlflow_keras_adv.tracking.journal import Cursor, Journal, Place
from mlflow_keras_adv.tracking.journal_notes import Acknowledged
from mlflow_keras_adv.tracking.records import (
    Artifact,
    Deletion,
    End,
    Model,
    ModelFiles,
    Record,
    Refusal,
    Table,
    Text,
    Values,
    decode,
    encode,
)

_logger = logging.getLogger(__name__)

# To deliver them again would need a copy that is gone by then, or undo what came later.
_NOT_TWICE = (Artifact, Model, ModelFiles, Deletion)
# What goes to the store of the artifacts.
_UPLOADED = (Artifact, Model, ModelFiles, Table, Text)

# Metric values that are kept in memory when the journal cannot be written, as on a full disk.
POINTS_IN_MEMORY = 1_000_000

# Tag of a run: how many files and models have not come to the store of the artifacts.
ARTIFACTS_TAG = "artifacts.pending"

_COUNTS = ("produced", "delivered", "pending", "refused")


@dataclass(frozen=True)
class Receipt:
    """What became of the values that were logged to a run: the first is the sum of the others.

    Attributes:
        produced: Values handed in.
        delivered: Those that the store has accepted.
        pending: Those that are in the journal, for `mlflow-keras-adv sync`.
        refused: Those that cannot be recorded, or were rejected by the store.
        refused_names: How often each name was refused; of params, tags and artifacts too.
        artifacts: Files and models that are in the journal.
    """

    produced: int
    delivered: int
    pending: int
    refused: int
    refused_names: Counter[str] = field(default_factory=Counter)
    artifacts: int = 0

    @classmethod
    def of(cls, acknowledged: Acknowledged, *, pending: int) -> Self:
        """Of what came of the values so far, and how many still wait."""
        return cls(
            produced=acknowledged.points + pending,
            delivered=acknowledged.points - acknowledged.refused_points,
            pending=pending,
            refused=acknowledged.refused_points,
            refused_names=Counter(acknowledged.refused),
        )

    @classmethod
    def of_tags(cls, tags: Mapping[str, str]) -> Self | None:
        """The receipt that stands in the tags of a run; None if none does."""
        counts = [tags.get(f"points.{name}", "") for name in _COUNTS]
        if not all(count.isdecimal() for count in counts):
            return None
        names = Counter(json.loads(tags.get("points.refused_names", "{}")))
        produced, delivered, pending, refused = map(int, counts)
        return cls(produced, delivered, pending, refused, names)

    def since(self, produced: int, delivered: int, refused: int) -> "Receipt":
        """What has changed since an earlier one of the same values, but for the names."""
        return Receipt(
            self.produced - produced,
            self.delivered - delivered,
            self.pending - (produced - delivered - refused),
            self.refused - refused,
        )

    def __add__(self, other: "Receipt") -> "Receipt":
        return Receipt(
            self.produced + other.produced,
            self.delivered + other.delivered,
            self.pending + other.pending,
            self.refused + other.refused,
            self.refused_names + other.refused_names,
            self.artifacts + other.artifacts,
        )

    def __str__(self) -> str:
        names = ", ".join(f"{name} ({count})" for name, count in self.refused_names.items())
        return (
            f"{self.produced} points produced, {self.delivered} delivered, {self.pending} pending, "
            f"{self.refused} refused"
            + (f"; {self.artifacts} files or models pending" if self.artifacts else "")
            + (f"; refused: {names}" if names else "")
        )

    def tags(self) -> dict[str, str]:
        """The receipt as tags of the run."""
        tags = {f"points.{name}": str(getattr(self, name)) for name in _COUNTS}
        if self.refused_names:
            tags["points.refused_names"] = json.dumps(self.refused_names)
        if self.artifacts:
            tags[ARTIFACTS_TAG] = str(self.artifacts)
        return tags


@dataclass(frozen=True)
class Entry:
    """A record that waits.

    Attributes:
        kind: What it is.
        points: Metric values in it.
        place: Where it is in the journal; None if it could not be written.
        record: The record itself, if it is in memory only.
    """

    kind: type[Record]
    points: int
    place: Place | None = None
    record: Record | None = None

    @property
    def is_values(self) -> bool:
        """Whether it is nothing but metric values."""
        return issubclass(self.kind, Values)


@dataclass(frozen=True)
class Flush:
    """Asks for an answer as soon as everything before it is settled: True if it is."""

    answer: "SimpleQueue[bool]"


class Pending:
    """A queue on disk that counts: any thread puts, one takes and settles in the same order.

    Made of parts that are written in C, here and in the writer: a Ctrl-C in the middle of
    `queue.Queue.put` or `threading.Condition` can leave a lock that is held for ever.

    Args:
        open_journal: Makes the journal, when there is something to write.
        left: A journal that an earlier process has left; what is in it comes first.

    Attributes:
        points: Metric values that were put and are not settled.
        records: Everything else that is not settled, counted by the call.
        artifacts: The files and models among them.
        steps: How often the store has taken something: it grows as long as it does.
        acknowledged: What became of the metric values that the store has taken or refused.
        ended: Whether the status with which the run ended was put.
    """

    def __init__(self, open_journal: Callable[[], Journal], left: Journal | None = None) -> None:
        self.points = 0
        self.records = 0
        self.artifacts = 0
        self.steps = 0
        self.ended = False
        self.acknowledged = (
            Acknowledged() if left is None else left.acknowledged.of(left.acknowledged.segment)
        )
        self._open_journal = open_journal
        self._journal = left
        self._queue: SimpleQueue[Entry | Flush] = SimpleQueue()
        self._in_memory: Counter[str] = Counter()  # by name, what is not in the journal
        self._points_in_memory: Counter[str] = Counter()  # the same, metric values only
        self._lost: Counter[str] = Counter()  # of them, those that were not kept
        self._lock = Lock()
        self._sweeping = Lock()  # may wait for the disk; no training does, but to end its run
        self._flushes = 0  # those that nobody has answered
        self._warned = False
        if left is not None:
            for place in left.records():
                if (record := self._read(left, place)) is not None:
                    entry = Entry(type(record), record.points, place)
                    self._count(entry, 1)
                    self._queue.put(entry)
        _pendings.add(self)

    def put(self, item: Record | Flush) -> OSError | None:
        """Appends an item, and counts it.

        Returns:
            Why it was not taken, and is counted as refused: the journal cannot be written, and
            there is too much in memory already.
        """
        with self._lock:
            if isinstance(item, Flush):
                self._flushes += 1
                self._queue.put(item)
                return None
            entry = Entry(type(item), item.points, record=item)
            try:
                journal = self._opened()
                place = journal.append(encode(item, journal.folder))
                entry = Entry(type(item), item.points, place)
            except OSError as error:
                self._warn_of(error)
                if isinstance(item, End) and self._journal is not None:
                    self._journal.notes.mark_ended(item.status)
                names = item.names
                if self._in_memory.total() + entry.points > POINTS_IN_MEMORY:
                    self._lose(names, names if entry.points else Counter())
                    return error
                self._in_memory += names
                self._points_in_memory += names if entry.points else Counter()
            self._queue.put(entry)
            self._count(entry, 1)
        return None

    def answer(self, flush: Flush, settled: bool) -> None:
        """Answers a flush that was taken."""
        with self._lock:
            self._flushes -= 1
        flush.answer.put(settled)

    def is_awaited(self) -> bool:
        """Whether somebody waits until what was put is settled."""
        return self._flushes > 0

    def open(self) -> Path | None:
        """Makes the journal, if that has not been done yet.

        Returns:
            Its folder, where copies of files that are handed in belong; None if it cannot be
            written.
        """
        with self._lock:
            try:
                return self._opened().folder
            except OSError as error:
                self._warn_of(error)
                return None

    @property
    def folder(self) -> Path | None:
        """The folder of the journal; None if there is none now."""
        journal = self._journal
        return None if journal is None else journal.folder

    def take(self, timeout: float) -> Entry | Flush | None:
        """The oldest entry, or None if there is none within `timeout` seconds."""
        while True:
            try:
                entry = self._queue.get(timeout=timeout)
            except Empty:
                return None
            if isinstance(entry, Flush) or entry.place is None or self._journal is not None:
                return entry
            # The journal was released: another process may have it by now.

    def record_of(self, entry: Entry) -> Record:
        """The record of an entry that was taken; a damaged one is a refusal of itself."""
        if entry.record is not None:
            return entry.record
        journal, place = self._journal, entry.place
        record = None if journal is None or place is None else self._read(journal, place)
        return record or Refusal(f"a damaged {entry.kind.__name__}", "damaged", entry.points)

    def cursor_of(self, entries: Sequence[Entry]) -> Cursor | None:
        """Where entries of one segment stand; None if some are in memory only."""
        first, last, journal = entries[0].place, entries[-1].place, self._journal
        if journal is None or first is None or last is None:
            return None
        if any(entry.place is None for entry in entries):
            return None
        return journal.cursor(first, last)

    def acknowledge(self, entry: Entry) -> None:
        """Notes that the store has taken or refused an entry, the oldest."""
        place = entry.place
        with self._lock:
            self._count(entry, -1)
            self.steps += 1
            self.acknowledged.points += entry.points
            if entry.record is not None:
                names = entry.record.names
                self._in_memory -= names
                self._points_in_memory -= names if entry.points else Counter()
            elif self._journal is not None and place is not None:
                self._journal.acknowledge(place, self.acknowledged)
            settled = self.acknowledged.of(0) if issubclass(entry.kind, _NOT_TWICE) else None
        with self._sweeping:
            if self._journal is not None:
                if place is not None and settled is not None:
                    self._journal.acknowledge_for_good(place, settled)
                self._journal.sweep()

    def progress(self) -> None:
        """Notes that the store has taken a part of an item."""
        self.steps += 1

    def refuse(self, name: str, points: int) -> None:
        """Counts what cannot be recorded.

        Args:
            name: Name of a metric, param, tag or artifact.
            points: How many metric values; 0 for anything else.
        """
        with self._lock:
            self.acknowledged.refused[name] += max(points, 1)
            self.acknowledged.refused_points += points

    def rest(self, *, keep: bool) -> None:
        """For the thread that settles, when there is nothing to take: empties the journal.

        Args:
            keep: Whether to keep it, empty; else another process may have it.
        """
        with self._sweeping, self._lock:
            journal = self._journal
            keep = keep or (journal is not None and journal.is_a_part())
            if keep and journal is not None and self._queue.empty() and self.count() == 0:
                journal.rest(self.acknowledged)
        if not keep:
            self.release()

    def release(self, *, counted: bool = False) -> None:
        """Lets another process have the journal; deletes it if nothing is left in it.

        What could not be written to it, and has not been delivered, is lost and counted as refused.
        If another process ends the run, the journal stays, empty, and tells it what to count.

        Args:
            counted: Whether it has done so.
        """
        with self._sweeping, self._lock:
            self.points -= self._points_in_memory.total()
            self._lose(self._in_memory, self._points_in_memory)
            self._in_memory, self._points_in_memory = Counter(), Counter()
            if self._journal is not None:
                self._journal.notes.mark_lost(self._lost)
                empty = self.count() == 0
                delete = empty and (counted or not self._journal.is_a_part())
                if empty and not delete:
                    self._journal.rest(self.acknowledged)
                self._journal.close(
                    delete=delete, empty=empty and self._journal.notes.counted() is None
                )
                self._journal = None

    def count(self) -> int:
        """All that is not settled."""
        return self.points + self.records

    def is_empty(self) -> bool:
        """Whether there is nothing to take."""
        return self._queue.empty()

    def receipt(self) -> Receipt:
        """What became of the metric values so far."""
        receipt = Receipt.of(self.acknowledged, pending=self.points)
        return replace(receipt, artifacts=self.artifacts)

    def _lose(self, names: Counter[str], points: Counter[str]) -> None:
        """Counts as refused what could be kept nowhere."""
        self.acknowledged.points += points.total()
        self.acknowledged.refused_points += points.total()
        self.acknowledged.refused += names
        self._lost += points

    def _opened(self) -> Journal:
        if self._journal is None:
            self._journal = self._open_journal()
        return self._journal

    def _read(self, journal: Journal, place: Place) -> Record | None:
        try:
            return decode(journal.read(place), journal.folder)
        except (OSError, ValueError, TypeError, KeyError) as error:
            _logger.warning("A record of %s is damaged and is dropped: %r", journal.folder, error)
            return None

    def _count(self, entry: Entry, change: int) -> None:
        self.points += change * entry.points
        if not issubclass(entry.kind, Values | Refusal):
            self.records += change
        if issubclass(entry.kind, _UPLOADED):
            self.artifacts += change
        self.ended = self.ended or issubclass(entry.kind, End)

    def _warn_of(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            _logger.warning(
                "The journal cannot be written, so that what the store does not take at once is "
                "kept in memory only: %s. Free the disk, or let MLFLOW_KERAS_ADV_HOME name a "
                "folder that can be written.",
                error,
            )


# What stands in a queue is for the process that put it there to deliver.
_pendings: "WeakSet[Pending]" = WeakSet()


def _forget() -> None:
    for pending in list(_pendings):
        pending.__init__(pending._open_journal)  # type: ignore[misc]


after_fork_in_child(_forget)

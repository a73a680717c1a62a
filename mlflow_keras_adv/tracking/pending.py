"""What has been handed in for a run and is not in the store yet, oldest first."""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from weakref import WeakSet

from mlflow_keras_adv.tracking.items import (
    End,
    Flush,
    Item,
    Journaled,
    Points,
    Refusal,
    Series,
    names_of,
    points_of,
)
from mlflow_keras_adv.tracking.journal import Journal, Place
from mlflow_keras_adv.tracking.records import decode, encode
from mlflow_keras_adv.tracking.settled import Settled

_logger = logging.getLogger(__name__)

# Metric values that are kept in memory when the journal cannot be written, as on a full disk.
POINTS_IN_MEMORY = 1_000_000


@dataclass(frozen=True)
class Receipt:
    """What became of the metric values that a run was handed: the first is the sum of the others.

    Attributes:
        produced: Values handed in.
        delivered: Those that the store has accepted.
        pending: Those that are in the journal, for `mlflow-keras-adv sync`.
        refused: Those that cannot be recorded, or were rejected by the store.
        refused_names: How often each name was refused; of params, tags and artifacts too.
    """

    produced: int
    delivered: int
    pending: int
    refused: int
    refused_names: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        names = ", ".join(f"{name} ({count})" for name, count in self.refused_names.items())
        return (
            f"{self.produced} points produced, {self.delivered} delivered, {self.pending} pending, "
            f"{self.refused} refused" + (f"; refused: {names}" if names else "")
        )

    def tags(self) -> dict[str, str]:
        """The receipt as tags of the run."""
        counts = ("produced", "delivered", "pending", "refused")
        tags = {f"points.{name}": str(getattr(self, name)) for name in counts}
        if self.refused_names:
            tags["points.refused_names"] = json.dumps(self.refused_names)
        return tags


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
        steps: How often the store has taken something: it grows as long as it does.
        settled: What became of the metric values that are settled.
        ended: Whether the status with which the run ended was put.
    """

    def __init__(self, open_journal: Callable[[], Journal], left: Journal | None = None) -> None:
        self.points = 0
        self.records = 0
        self.steps = 0
        self.ended = False
        self.settled = Settled() if left is None else left.settled.of(left.settled.segment)
        self._open_journal = open_journal
        self._journal = left
        self._queue: SimpleQueue[Place | Item] = SimpleQueue()
        self._in_memory: Counter[str] = Counter()  # by name, what is not in the journal
        self._points_in_memory: Counter[str] = Counter()  # the same, metric values only
        self._lost: Counter[str] = Counter()  # of them, those that were not kept
        self._lock = Lock()
        self._sweeping = Lock()  # may wait for the disk; no training does, but to end its run
        self._warned = False
        if left is not None:
            for place in left.records():
                if (item := self._read(left, place)) is not None:
                    self._count(item, 1)
                    self._queue.put(place)
        _pendings.add(self)

    def put(self, item: Item) -> OSError | None:
        """Appends an item, and counts it.

        Returns:
            Why it was not taken, and is counted as refused: the journal cannot be written, and
            there is too much in memory already.
        """
        with self._lock:
            if isinstance(item, Flush):
                self._queue.put(item)
                return None
            points = points_of(item)
            try:
                journal = self._opened()
                self._queue.put(journal.append(encode(item, journal.folder)))
            except OSError as error:
                self._warn_of(error)
                if isinstance(item, End) and self._journal is not None:
                    self._journal.marks.mark_ended(item.status)
                if self._in_memory.total() + points > POINTS_IN_MEMORY:
                    self._lose(names_of(item), names_of(item) if points else Counter())
                    return error
                self._in_memory += names_of(item)
                self._points_in_memory += names_of(item) if points else Counter()
                self._queue.put(item)
            self._count(item, 1)
        return None

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

    def take(self, timeout: float) -> tuple[Place | None, Item] | None:
        """The oldest item and its place, or None if there is none within `timeout` seconds."""
        while True:
            try:
                kept = self._queue.get(timeout=timeout)
            except Empty:
                return None
            if not isinstance(kept, Place):
                return None, kept
            journal = self._journal
            if journal is None:  # released: another process may have it by now
                continue
            if (item := self._read(journal, kept)) is not None:
                return kept, item

    def settle(self, place: Place | None, item: Journaled) -> None:
        """Notes that the store has taken or refused an item, the oldest.

        Args:
            place: Where it was.
            item: The item.
        """
        points = points_of(item)
        with self._lock:
            self._count(item, -1)
            self.steps += 1
            self.settled.points += points
            if place is None:
                self._in_memory -= names_of(item)
                self._points_in_memory -= names_of(item) if points else Counter()
            elif self._journal is not None:
                self._journal.settle(place, self.settled)
        with self._sweeping:
            if self._journal is not None:
                self._journal.sweep()

    def progress(self) -> None:
        """Notes that the store has taken a part of an item."""
        self.steps += 1

    def refuse(self, name: str, points: int) -> None:
        """Counts what cannot be recorded.

        Args:
            name: Of a metric, param, tag or artifact.
            points: How many metric values; 0 for anything else.
        """
        with self._lock:
            self.settled.refused[name] += max(points, 1)
            self.settled.refused_points += points

    def release(self) -> None:
        """Lets another process have the journal; deletes it if nothing is left in it.

        What could not be written to it, and has not been delivered, is lost and counted as refused.
        """
        with self._sweeping, self._lock:
            self.points -= self._points_in_memory.total()
            self._lose(self._in_memory, self._points_in_memory)
            self._in_memory, self._points_in_memory = Counter(), Counter()
            if self._journal is not None:
                self._journal.marks.mark_lost(self._lost)
                self._journal.close(delete=self.count() == 0)
                self._journal = None

    def count(self) -> int:
        """All that is not settled."""
        return self.points + self.records

    def is_empty(self) -> bool:
        """Whether there is nothing to take."""
        return self._queue.empty()

    def receipt(self) -> Receipt:
        """What became of the metric values so far."""
        settled, pending = self.settled, self.points
        return Receipt(
            produced=settled.points + pending,
            delivered=settled.points - settled.refused_points,
            pending=pending,
            refused=settled.refused_points,
            refused_names=Counter(settled.refused),
        )

    def _lose(self, names: Counter[str], points: Counter[str]) -> None:
        """Counts as refused what could be kept nowhere."""
        self.settled.points += points.total()
        self.settled.refused_points += points.total()
        self.settled.refused += names
        self._lost += points

    def _opened(self) -> Journal:
        if self._journal is None:
            self._journal = self._open_journal()
        return self._journal

    def _read(self, journal: Journal, place: Place) -> Journaled | None:
        try:
            return decode(journal.read(place), journal.folder)
        except (OSError, ValueError, TypeError, KeyError) as error:
            _logger.warning("A record of %s is damaged and is dropped: %r", journal.folder, error)
            return None

    def _count(self, item: Journaled, change: int) -> None:
        points = points_of(item)
        self.points += change * points
        if not isinstance(item, Points | Series | Refusal):
            self.records += change
        self.ended = self.ended or isinstance(item, End)

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


os.register_at_fork(after_in_child=_forget)

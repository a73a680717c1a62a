"""Outbox: the threads that take what is handed in for a run to its journal, and on to its store."""

import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Lock, Thread, local
from weakref import WeakSet

from mlflow.utils.validation import MAX_METRICS_PER_BATCH

from mlflow_keras_adv.compat.system import after_fork_in_child
from mlflow_keras_adv.tracking.journal_delivery import JournalDelivery
from mlflow_keras_adv.tracking.pending import Entry, Flush, Pending
from mlflow_keras_adv.tracking.process_end import Stage, at, grace_left, has_begun, starts
from mlflow_keras_adv.tracking.records import Record
from mlflow_keras_adv.tracking.retry import RetryCancelledError

_logger = logging.getLogger(__name__)

# What is handed in stands in the journal when the caller goes on, unless the disk takes longer than
# this: the database that a run is delivered to may keep it busy. Then it follows as soon as it can.
HAND_OVER_SECONDS = 0.03
# How long the end of a run, and the end of the process, wait for a store that takes nothing.
GRACE_SECONDS = 10.0
# The same, of a store that has been known to fail for as long as that.
SHORT_GRACE_SECONDS = 1.0
# The same, of a database file that has not failed: it only waits for its disk, which may have much
# to do, and there is no network to be cut.
DISK_GRACE_SECONDS = 60.0
# How long the end of a run waits at most for a store that goes on taking values.
LONGEST_END_SECONDS = 300.0
# So often it is said meanwhile how much there is to come.
WORD_SECONDS = 30.0
# Values wait so long for others to be sent with: a call to a store costs as much as 50 values.
GATHER_SECONDS = 0.2
# A thread that has had nothing to do for so long ends, unless the outbox is held; the next item
# starts another.
IDLE_SECONDS = 1.0


class Outbox:
    """Two queues, each with its thread: to the journal, and from there to the store.

    Putting something in waits for no store, and for the disk no longer than `HAND_OVER_SECONDS`.
    Where a thread is needed and can be had no more, since the interpreter ends, what is put in goes
    to the journal at once, and stays there.

    Args:
        run_id: The run, for messages.
        pending: What holds the items until then; something may be in it already.
        delivery: What the thread hands the items to, in order.
        in_use: Whether more is to be expected, so that idle threads stay.

    Attributes:
        used: Whether anything was put in.
    """

    def __init__(
        self,
        run_id: str,
        pending: Pending,
        delivery: JournalDelivery,
        in_use: Callable[[], bool] = lambda: False,
    ) -> None:
        self._run_id = run_id
        self._pending = pending
        self._delivery = delivery
        self._in_use = in_use
        self._keeps_journal = not pending.is_empty()
        self._closed = False
        self.used = False
        self._begin_with_nothing()
        _outboxes.add(self)
        if self._keeps_journal:
            self._start()

    def _begin_with_nothing(self) -> None:
        self._handed_in: SimpleQueue[tuple[Record | Flush | None, SimpleQueue[Exception | None]]]
        self._handed_in = SimpleQueue()
        self._handing_in = Lock()  # held for moments
        self._journal_thread: Thread | None = None
        self._starting = Lock()  # may be held for the disk, never during a call to the store
        self._launching = Lock()  # held for moments
        self._store_thread: Thread | None = None
        self._holds: set[object] = set()

    def keep_journal(self) -> None:
        """Has a journal from now until `close`, empty or not: it says that the run is alive."""
        self._keeps_journal = True
        self._pending.open()

    def hold(self) -> Callable[[], None]:
        """Has both threads at work until then: at the end of the process none can be started.

        Returns:
            A function that lets them go once they are idle; calling it again does nothing.
        """
        key = object()
        self._holds.add(key)
        if not self._closed:
            self._hand_in(None)
            self._has_store_thread()
        return lambda: self._holds.discard(key)

    def put(self, item: Record | Flush, *, seconds: float | None = HAND_OVER_SECONDS) -> None:
        """Appends an item, and starts the threads if they are not at work.

        Args:
            item: The item.
            seconds: How long to wait for the disk; None waits as long as it takes.
        """
        if self._closed:
            self._delivery.retry.warn_once(
                "closed", "Run %s has ended here and takes no more values.", self._run_id
            )
            return
        self.used = True
        written = self._hand_in(item)
        if written is None:
            return
        if self._store_thread is None:  # at once: soon the process may be at its end
            self._has_store_thread()
        with suppress(Empty):
            if (raised := written.get(timeout=seconds)) is not None:
                raise raised

    def flush(self, timeout: float | None) -> bool:
        """Waits until all items are settled: `timeout` seconds at most, or as long as it takes."""
        with self._handing_in:
            idle = self._journal_thread is None and self._store_thread is None
        answer: SimpleQueue[bool] = SimpleQueue()
        if (
            self._closed
            or (idle and self._pending.is_empty())
            or self._hand_in(Flush(answer)) is None
        ):
            return self._pending.count() == 0
        self._delivery.retry.retry_now()
        try:
            return answer.get(timeout=timeout)
        except Empty:
            return False

    def settle(self, timeout: float) -> bool:
        """Waits until all items are settled, as long as the store goes on taking them.

        Args:
            timeout: As `close` has it.

        Returns:
            Whether they are.
        """
        return self._settle(timeout) is None

    def _settle(self, timeout: float, *, ends: bool = False) -> str | None:
        """As `settle`.

        Args:
            timeout: As `close` has it.
            ends: Whether this is the end of the run, which has a limit, and says what it waits for.

        Returns:
            Why it was given up; None if all items are settled.
        """
        began = time.monotonic()
        spoke = -WORD_SECONDS
        while True:
            before = self._pending.steps
            if self.flush(self._patience(timeout)):
                return None
            if self._pending.steps == before:
                files = self._delivery.retry.fails_at_files
                return f"The {'artifact' if files else 'tracking'} store does not answer."
            waited = time.monotonic() - began
            if ends and waited > LONGEST_END_SECONDS:
                return f"The rest was not delivered within {LONGEST_END_SECONDS:.0f} s."
            if ends and waited - spoke > WORD_SECONDS:
                spoke = waited
                _logger.warning(
                    "Run %s has ended, and %d points and %d other records of it are still on their "
                    "way to the store. They are waited for, for %.0f s at most; Ctrl-C leaves them "
                    "on this machine, for `mlflow-keras-adv sync`.",
                    self._run_id,
                    self._pending.points,
                    self._pending.records,
                    LONGEST_END_SECONDS - waited,
                )

    def close(self, timeout: float) -> bool:
        """Waits as long as the store goes on taking values, and takes no more.

        What is left then stays in the journal, which is released. So it does at a Ctrl-C.

        Args:
            timeout: Seconds to wait for a store that takes nothing; less if it has been failing,
                more if it is a file.

        Returns:
            Whether all items are settled.
        """
        if self._closed:
            return self._pending.count() == 0
        reason: str | None = "It was interrupted."
        try:
            reason = self._settle(timeout, ends=True)
        finally:
            self._let_go(reason)
        return reason is None

    def _let_go(self, reason: str | None) -> None:
        """Takes no more; what is left, for a reason that is said, stays in the journal."""
        self._closed = True
        if reason is None:
            self._pending.release()
        else:
            if (written := self._hand_in(None)) is not None:
                written.get()  # what is left stands in the journal
            self._delivery.retry.cancel()
            _at_work.discard(self)
            self._pending.release()
            self._say_what_is_left(reason)

    def _patience(self, timeout: float) -> float:
        failing = self._delivery.retry.failing_for()
        left = grace_left(timeout)
        if not failing and self._delivery.to_file:
            return max(left, grace_left(DISK_GRACE_SECONDS))
        if not failing and has_begun():  # the grace may have gone by waiting for other stores
            return max(left, min(grace_left(DISK_GRACE_SECONDS), SHORT_GRACE_SECONDS))
        return max(left - failing, min(left, SHORT_GRACE_SECONDS))

    def _say_what_is_left(self, reason: str) -> None:
        receipt = self._pending.receipt()
        _logger.warning(
            "%s Run %s: %s, and %d other records pending%s. They are kept on this machine: "
            "`mlflow-keras-adv sync` delivers them once the store answers.",
            reason,
            self._run_id,
            receipt,
            self._pending.records - self._pending.artifacts,
            ", its status among them" if self._pending.ended else "",
        )

    def _hand_in(self, item: Record | Flush | None) -> "SimpleQueue[Exception | None] | None":
        """Leaves an item to the first thread.

        Args:
            item: The item; None asks for an answer only.

        Returns:
            Where the answer will be, once this and all before it stand in the journal. None if no
            thread can be had: then they stand there already, and nobody delivers them.
        """
        written: SimpleQueue[Exception | None] = SimpleQueue()
        with self._handing_in:
            if self._has_journal_thread():
                self._handed_in.put((item, written))
                return written
        left = [item]
        while not self._handed_in.empty():
            left.insert(-1, self._handed_in.get()[0])
        for each in left:
            if each is not None and not isinstance(each, Flush):
                self._keep(each)
        return None

    def _has_journal_thread(self) -> bool:
        if sys.is_finalizing():  # one that is alive by its name does not run any more
            return False
        if _is_alive(self._journal_thread):
            return True
        name = f"journal-{self._run_id}"
        self._journal_thread = Thread(target=self._write, name=name, daemon=True)
        _at_work.add(self)
        if starts(self._journal_thread):  # a Ctrl-C in it finds the thread noted
            return True
        self._journal_thread = None
        return False

    def _write(self) -> None:
        """The first thread: writes what is handed in to the journal, in order.

        It outlives the second: at the end of the process that one has to be asked whether it is
        done, and some versions of Python start no thread any more by then.
        """
        while True:
            try:
                item, written = self._handed_in.get(timeout=IDLE_SECONDS)
            except Empty:
                held = self._is_held()
                with self._handing_in:
                    busy = not self._handed_in.empty() or _is_alive(self._store_thread)
                    if held or busy:
                        continue
                    self._journal_thread = None
                    return
            try:
                if item is not None:
                    self._take_in(item)
            except Exception as error:  # what cannot be written down at all
                written.put(error)
            else:
                written.put(None)

    def _take_in(self, item: Record | Flush) -> None:
        with self._starting:
            if self._has_store_thread() or not isinstance(item, Flush):
                self._keep(item)
            else:
                item.answer.put(False)

    def _keep(self, item: Record | Flush) -> None:
        error = self._pending.put(item)
        if error is not None and not isinstance(item, Flush):
            for name in item.names:
                self._delivery.warn_refused(name, f"the journal cannot be written: {error}")

    def _has_store_thread(self) -> bool:
        """Whether the second thread is at work; starts it if it is not."""
        with self._launching:
            return _is_alive(self._store_thread) or self._start()

    def _start(self) -> bool:
        name = f"store-{self._run_id}"
        self._store_thread = Thread(target=self._work, name=name, daemon=True)
        _at_work.add(self)
        if starts(self._store_thread):
            return True
        self._store_thread = None
        return False

    def _is_held(self) -> bool:
        return not self._closed and (bool(self._holds) or self._in_use())

    def _work(self) -> None:
        """The second thread: takes what waits to the store, in order, gathered into batches."""
        _this_thread.delivers = True
        gathered: list[Entry] = []
        points, send_at = 0, 0.0
        try:
            while True:
                patience = max(send_at - time.monotonic(), 0) if gathered else IDLE_SECONDS
                entry = self._pending.take(timeout=patience)
                if entry is None:
                    self._send(gathered)
                    if self._closed or self._leave():
                        return
                elif isinstance(entry, Flush):
                    self._send(gathered)
                    self._pending.answer(entry, True)
                elif not entry.is_values:
                    self._send(gathered)
                    self._delivery.deliver(entry)
                else:
                    # What is counted as settled at the end of a segment is all of that segment.
                    if gathered and _segment(gathered[-1]) != _segment(entry):
                        self._send(gathered)
                    if not gathered:
                        points, send_at = 0, time.monotonic() + GATHER_SECONDS
                    gathered.append(entry)
                    points += entry.points
                    if points >= MAX_METRICS_PER_BATCH:
                        self._send(gathered)
        except RetryCancelledError:
            self._answer_all(False)

    def _send(self, gathered: list[Entry]) -> None:
        if gathered:
            self._delivery.send_all(gathered)
        for entry in gathered:
            self._pending.acknowledge(entry)
        gathered.clear()

    def _answer_all(self, answer: bool) -> None:
        while not self._pending.is_empty():
            taken = self._pending.take(timeout=0)
            if isinstance(taken, Flush):
                self._pending.answer(taken, answer)

    def _leave(self) -> bool:
        if self._is_held():
            return False
        with self._starting:
            if not self._pending.is_empty():
                return False
            self._store_thread = None
            _at_work.discard(self)
            self._pending.rest(keep=self._keeps_journal)
            return True


_this_thread = local()


def is_delivering() -> bool:
    """Whether this thread is one that takes what waits to a store."""
    return getattr(_this_thread, "delivers", False)


def _is_alive(thread: Thread | None) -> bool:
    return thread is not None and thread.is_alive()


def _segment(entry: Entry) -> int | None:
    return None if entry.place is None else entry.place.segment


_at_work: set[Outbox] = set()
_outboxes: "WeakSet[Outbox]" = WeakSet()


@at(Stage.OUTBOXES)
def _drain(_: BaseException | None) -> None:
    """Delivers what runs that nobody ends here have left: those of `mlflow.start_run()`."""
    for outbox in list(_at_work):
        outbox.close(GRACE_SECONDS)


def _in_a_child() -> None:
    """A forked child has none of the threads, and what was handed to them is not for it."""
    _at_work.clear()
    for outbox in list(_outboxes):
        outbox._keeps_journal = False
        outbox._begin_with_nothing()


after_fork_in_child(_in_a_child)

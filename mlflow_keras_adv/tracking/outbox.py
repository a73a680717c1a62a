"""Outbox: the thread that takes what is handed in for a run to its store."""

import atexit
import logging
from queue import Empty, SimpleQueue
from threading import Lock, Thread

from mlflow.entities import Metric
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

from mlflow_keras_adv.tracking.delivery import AbandonedError, Delivery
from mlflow_keras_adv.tracking.pending import Artifact, Flush, Item, Pending, Points, Series

_logger = logging.getLogger(__name__)

# How long the end of a run, and the end of the process, wait for a store that takes nothing.
GRACE_SECONDS = 10.0
# A thread that has had nothing to do for so long ends; the next item starts another.
IDLE_SECONDS = 1.0


class Outbox:
    """A queue and its thread. Putting something in takes no time and calls nobody.

    Args:
        run_id: The run, for messages.
        delivery: What the thread hands the items to, in order.
    """

    def __init__(self, run_id: str, delivery: Delivery) -> None:
        self._run_id = run_id
        self._delivery = delivery
        self._pending = Pending()
        self._starting = Lock()  # held for moments, never during a call to the store
        self._thread: Thread | None = None
        self._closed = False

    def put(self, item: Item) -> None:
        """Appends an item, and starts the thread if it is not at work."""
        if self._closed:
            self._delivery.warn_once(
                "closed", "Run %s has ended here and takes no more values.", self._run_id
            )
            return
        with self._starting:
            self._pending.put(item)
            if self._thread is None or not self._thread.is_alive():
                self._thread = Thread(target=self._work, name=f"outbox-{self._run_id}", daemon=True)
                _at_work.add(self)
                self._thread.start()

    def flush(self, timeout: float | None) -> bool:
        """Waits until all items are settled: `timeout` seconds at most, or as long as it takes."""
        with self._starting:
            if self._closed or self._thread is None:
                return self._pending.count() == 0
        answer: SimpleQueue[bool] = SimpleQueue()
        self.put(Flush(answer))
        self._delivery.hurry()
        try:
            return answer.get(timeout=timeout)
        except Empty:
            return False

    def close(self, timeout: float) -> bool:
        """Waits as long as the store goes on taking values, and takes no more.

        Args:
            timeout: Seconds. If the store takes nothing for so long, what is left is given up, with
                one warning.

        Returns:
            Whether all items are settled.
        """
        while True:
            before = self._pending.settled
            settled = self.flush(timeout)
            if settled or self._pending.settled == before:
                break
        self._closed = True
        if not settled:
            self._delivery.abandon()
            _logger.warning(
                "The tracking store took nothing for %.0f s: of run %s, %d metric values and %d "
                "other records were not delivered%s.",
                timeout,
                self._run_id,
                self._pending.points,
                self._pending.records,
                ", and its status could not be written" if self._pending.ends else "",
            )
        return settled

    def _work(self) -> None:
        """The thread: gathers what waits into batches, and takes it to the store in order."""
        batch: list[Metric] = []
        try:
            while True:
                item = self._pending.take(timeout=0 if batch else IDLE_SECONDS)
                if isinstance(item, Points | Series):
                    for metric in item:
                        batch.append(metric)
                        if len(batch) == MAX_METRICS_PER_BATCH:
                            self._send(batch)
                    continue
                if item is None and not batch and self._leave():
                    return
                self._send(batch)
                if item is not None:
                    self._delivery.write(item)
                    self._pending.settle(item)
        except AbandonedError:
            _at_work.discard(self)
            while (item := self._pending.take(timeout=0)) is not None:
                if isinstance(item, Artifact):
                    item.discard()
                elif isinstance(item, Flush):
                    item.answer.put(False)

    def _send(self, batch: list[Metric]) -> None:
        self._delivery.send(batch)
        self._pending.settle(batch)
        batch.clear()

    def _leave(self) -> bool:
        with self._starting:
            if not self._pending.is_empty():
                return False
            self._thread = None
            _at_work.discard(self)
            return True


_at_work: set[Outbox] = set()


@atexit.register
def _drain() -> None:
    """Delivers what runs that nobody ends here have left: those of `mlflow.start_run()`."""
    patience = GRACE_SECONDS
    for outbox in list(_at_work):
        if not outbox.close(patience):
            patience = 1.0  # the others' store is most likely the same

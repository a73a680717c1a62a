"""Delivery of what stands in the journal of a run. Used by the thread that delivers it alone."""

import logging
import uuid
from collections.abc import Sequence
from itertools import chain

from mlflow import MlflowClient
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_BACKOFF_JITTER
from mlflow.utils.uri import get_uri_scheme, is_http_uri

from mlflow_keras_adv.tracking.co_writers import CoWriters
from mlflow_keras_adv.tracking.delivery import Delivery, prove
from mlflow_keras_adv.tracking.journal import Cursor
from mlflow_keras_adv.tracking.pending import Entry, Flush, Pending
from mlflow_keras_adv.tracking.records import End, Values
from mlflow_keras_adv.tracking.retry import FAILURES, Retry
from mlflow_keras_adv.tracking.sender_process import note_sent, sender_to, stop
from mlflow_keras_adv.tracking.store import probe
from mlflow_keras_adv.tracking.target import Target
from mlflow_keras_adv.tracking.verdict import RejectedError

_logger = logging.getLogger(__name__)


class JournalDelivery(Delivery):
    """Applies the records of a journal, and calls the store until it has answered.

    Args:
        run_id: The run to write to.
        client: Its store.
        pending: Where what is refused is counted.
        retry: What makes the calls; default: one of its own.

    Attributes:
        to_file: Whether the store is a database file.
    """

    def __init__(
        self, run_id: str, client: MlflowClient, pending: Pending, retry: Retry | None = None
    ) -> None:
        target = Target(client, {})
        if retry is None:
            retry = Retry(
                run_id,
                ask=lambda: probe(client.tracking_uri),
                prove=lambda: prove(target, run_id, uuid.uuid4().hex),
                progress=pending.progress,
            )
        super().__init__(run_id, target, retry, self._count_refused)
        self._pending = pending
        self.to_file = get_uri_scheme(client.tracking_uri).startswith("sqlite")
        if is_http_uri(client.tracking_uri) and not MLFLOW_HTTP_REQUEST_BACKOFF_JITTER.is_set():
            # Between its own attempts MLflow waits for a time that it draws from Python's random,
            # here on a thread beside the training, which draws from it too.
            MLFLOW_HTTP_REQUEST_BACKOFF_JITTER.set(0.0)

    def send_all(self, entries: Sequence[Entry]) -> None:
        """Logs metric values, however many; by the sender process if there is one.

        While somebody waits for them they are sent here: no training goes on that this could slow
        down, and the process may get no processor for a long time.

        Args:
            entries: One after another, of one segment of the journal.

        Raises:
            RetryCancelledError: If the retries were cancelled meanwhile.
        """
        note_sent(self.client.tracking_uri, sum(entry.points for entry in entries))
        cursor = self._pending.cursor_of(entries)
        urgent = self._pending.is_awaited()
        if cursor and not urgent and sender_to(self.client.tracking_uri) is not None:
            try:
                self.retry.until_answered(lambda: self._send_by_process(cursor), failures=FAILURES)
                return
            except RejectedError as error:
                _logger.debug("the values of run %s are sent here: %r", self.run_id, error)
        records = (self._pending.record_of(entry) for entry in entries)
        values = (record for record in records if isinstance(record, Values))
        self.send_values(chain.from_iterable(values))

    def warn_refused(self, name: str, reason: str) -> None:
        """Says once for each name that it cannot be recorded."""
        self.retry.warn_once(
            f"refused {name}", "%s of run %s is not recorded: %s", name, self.run_id, reason
        )

    def end(self, status: str, end_time: int) -> None:
        """Ends the run, after the receipt of its values has become tags of it."""
        others = CoWriters(self.run_id)
        try:
            receipt = self._pending.receipt() + others.deliver(self._drain)
            self.set_tags(receipt.tags())
            super().end(status, end_time)
            others.counted()
        finally:
            others.leave()

    def _count_refused(self, name: str, reason: str, points: int) -> None:
        self._pending.refuse(name, points)
        self.warn_refused(name, reason)

    def _send_by_process(self, cursor: Cursor) -> None:
        sender = sender_to(self.client.tracking_uri)
        if sender is None:
            raise RejectedError("the sender process has ended")
        try:
            sender.send(
                self.run_id,
                cursor,
                progress=self._pending.progress,
                urgent=self._pending.is_awaited,
            )
        except OSError:
            stop(sender)
            raise ConnectionError("the sender process has ended") from None

    def _drain(self, pending: Pending) -> None:
        """Delivers what is pending in another journal of the run."""
        delivery = JournalDelivery(self.run_id, self.client, pending, self.retry)
        while (entry := pending.take(timeout=0)) is not None:
            if isinstance(entry, Flush):
                continue
            if issubclass(entry.kind, End):  # the matter of the process that ends the run
                pending.acknowledge(entry)
            else:
                delivery.deliver(entry)

    def deliver(self, entry: Entry) -> None:
        """Applies an entry, and settles it."""
        record = self._pending.record_of(entry)
        record.apply(self)
        self._pending.acknowledge(entry)
        record.discard()

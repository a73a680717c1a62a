"""Delivery of what stands in the journal of a run. Used by the thread that delivers it alone."""

import logging
import uuid
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Protocol

from mlflow import MlflowClient
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_BACKOFF_JITTER
from mlflow.utils.uri import get_uri_scheme, is_http_uri

from mlflow_keras_adv.tracking.co_writers import CoWriters
from mlflow_keras_adv.tracking.delivery import Delivery, prove
from mlflow_keras_adv.tracking.journal import Cursor
from mlflow_keras_adv.tracking.pending import ARTIFACTS_TAG, Entry, Flush, Pending, Receipt
from mlflow_keras_adv.tracking.records import Deletion, End, Model, Record, Tags, Text, Values
from mlflow_keras_adv.tracking.retry import FAILURES, Retry
from mlflow_keras_adv.tracking.sender_process import note_sent, sender_to, stop
from mlflow_keras_adv.tracking.store import probe
from mlflow_keras_adv.tracking.target import Target
from mlflow_keras_adv.tracking.verdict import ArtifactStoreError, RejectedError

_logger = logging.getLogger(__name__)

# How long the status of a run waits for files whose store does not take them.
ASIDE_SECONDS = 3.0


class Aside(Protocol):
    """Takes what is put off; see `aside.Aside`."""

    @property
    def receipt(self) -> Receipt:
        """What became of it."""

    def is_empty(self) -> bool:
        """Whether nothing waits."""

    def put(self, record: Record) -> None:
        """Takes a record."""

    def flush(self, seconds: float | None) -> bool:
        """Waits until nothing waits."""


class JournalDelivery(Delivery):
    """Applies the records of a journal, and calls the store until it has answered.

    Args:
        run_id: The run to write to.
        client: Its store.
        pending: Where what is refused is counted.
        retry: What makes the calls; default: one of its own.
        aside: Gives what takes the files that cannot be uploaded now; None: they are waited for.

    Attributes:
        to_file: Whether the store is a database file.
        goes_on_elsewhere: Whether another process goes on with the run, and will end it.
    """

    def __init__(
        self,
        run_id: str,
        client: MlflowClient,
        pending: Pending,
        retry: Retry | None = None,
        *,
        aside: Callable[[], Aside] | None = None,
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
        self.goes_on_elsewhere = False
        self._pending = pending
        self._new_aside = aside
        self._aside: Aside | None = None
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

    def upload(self, record: Any, call: Callable[[], object]) -> None:
        """Makes a call that brings a record to the store of the artifacts, or puts it off."""
        if self._new_aside is None:
            super().upload(record, call)
            return
        # A model is made before its files are uploaded: what is measured of it goes on.
        if isinstance(record, Model) or not self._waits():
            try:
                self.attempt(record.title, call, ask_first=True, put_off=True)
                return
            except ArtifactStoreError as error:
                _logger.debug("%s of run %s is put off: %r", record.title, self.run_id, error)
        try:
            self._put_off(record)
        except OSError:  # a full disk
            super().upload(record, call)

    def ask_artifact_store(self) -> None:
        """As everywhere; while files are put off, it is known not to answer."""
        if self._waits():
            raise ConnectionError("the artifact store has not taken what is put off before")
        super().ask_artifact_store()

    def log_text(self, text: str, artifact_file: str) -> None:
        """Writes an artifact, or puts it off."""
        Text(text, artifact_file).apply(self)

    def delete(self, artifact_file: str) -> None:
        """Tries once, after all that was put off before."""
        if self._waits():
            self._put_off(Deletion(artifact_file))
        else:
            super().delete(artifact_file)

    def end(self, status: str, end_time: int) -> None:
        """Ends the run, after the receipt of its values has become tags of it.

        Files that are put off are waited for a moment, and counted in the receipt.
        """
        if self.goes_on_elsewhere:
            return
        others = CoWriters(self.run_id)
        try:
            receipt = self._pending.receipt() + others.deliver(self._drain)
            waiting = False
            if self._aside is not None:
                waiting = not self._aside.flush(ASIDE_SECONDS)
                receipt += self._aside.receipt
            self.set_tags(receipt.tags())
            super().end(status, end_time)
            if waiting:  # the receipt is right as soon as they are there
                self._put_off(Tags({ARTIFACTS_TAG: "0"}))
            others.counted()
        finally:
            others.leave()

    def _waits(self) -> bool:
        return self._aside is not None and not self._aside.is_empty()

    def _put_off(self, record: Record) -> None:
        self._own_aside().put(record)

    def _own_aside(self) -> Aside:
        if self._aside is None:
            assert self._new_aside is not None
            self._aside = self._new_aside()
        return self._aside

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
        delivery = JournalDelivery(
            self.run_id,
            self.client,
            pending,
            self.retry,
            aside=self._own_aside if self._new_aside else None,
        )
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

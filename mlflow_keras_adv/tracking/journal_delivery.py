"""Delivery of what stands in the journal of a run. Used by the thread that delivers it alone."""

import logging
import uuid
from collections.abc import Sequence
from itertools import chain

from mlflow import MlflowClient
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_BACKOFF_JITTER
from mlflow.utils.uri import get_uri_scheme, is_http_uri

from mlflow_keras_adv.tracking.co_writers import CoWriters
from mlflow_keras_adv.tracking.courier import count, courier_to, dismiss
from mlflow_keras_adv.tracking.delivery import Delivery, prove
from mlflow_keras_adv.tracking.pending import Flush, Pending
from mlflow_keras_adv.tracking.records import End, Points, Series
from mlflow_keras_adv.tracking.retry import FAILURES, Retry
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

    def send_all(self, records: Sequence[Points | Series]) -> None:
        """Logs metric values, however many; if they are rejected, finds out which of them.

        Raises:
            RetryCancelledError: If the retries were cancelled meanwhile.
        """
        count(self.client.tracking_uri, sum(record.points for record in records))
        if courier_to(self.client.tracking_uri) is not None:
            try:
                self.retry.until_answered(lambda: self._log_all(records), failures=FAILURES)
                return
            except RejectedError as error:
                _logger.debug("the values of run %s are sent one by one: %r", self.run_id, error)
        self.send_values(chain.from_iterable(records))

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

    def _log_all(self, records: Sequence[Points | Series]) -> None:
        """One call to the courier, if there still is one."""
        courier = courier_to(self.client.tracking_uri)
        if courier is None:
            raise RejectedError("the process that sends values has ended")
        values = [
            Points([self._model_ids.of(metric) for metric in record])
            if isinstance(record, Points)
            else record
            for record in records
        ]
        try:
            courier.log(self.run_id, values, progress=self._pending.progress)
        except OSError:
            dismiss(courier)
            raise ConnectionError("the process that sends values has ended") from None

    def _drain(self, pending: Pending) -> None:
        """Delivers what is pending in another journal of the run."""
        delivery = JournalDelivery(self.run_id, self.client, pending, self.retry)
        while (taken := pending.take(timeout=0)) is not None:
            place, record = taken
            if isinstance(record, Flush):
                continue
            if not isinstance(record, End):  # that is the matter of the process that ends the run
                record.apply(delivery)
            pending.settle(place, record)
            record.discard()

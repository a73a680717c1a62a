"""Journals that processes have left behind, and their delivery."""

import logging
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException

from mlflow_keras_adv.compat.mlflow import client_of
from mlflow_keras_adv.tracking.durable_address import configured_uri
from mlflow_keras_adv.tracking.journal import Journal, is_ended_by_another
from mlflow_keras_adv.tracking.outbox import GRACE_SECONDS
from mlflow_keras_adv.tracking.paths import journals_folder
from mlflow_keras_adv.tracking.pending import Receipt
from mlflow_keras_adv.tracking.store import normalized_uri, probe
from mlflow_keras_adv.tracking.taken_up import TakenUp, taken_up
from mlflow_keras_adv.tracking.verdict import may_succeed_later
from mlflow_keras_adv.tracking.writer import RunWriter

_logger = logging.getLogger(__name__)


def orphaned_journals(run_id: str | None = None) -> Iterator[Journal]:
    """Takes over each journal of this machine whose process has ended or released it.

    Whoever receives one has to deliver or to close it.

    Args:
        run_id: Only those of this run.
    """
    pattern = "*" if run_id is None else f"{run_id}-*"
    for folder in sorted(journals_folder().glob(pattern), key=_age):
        journal = Journal.take_over(folder)
        if journal is None:
            continue
        if journal.about.host == socket.gethostname():  # another's lock may not be seen from here
            yield journal
        else:
            journal.close(delete=False)


def deliver_journal(journal: Journal, *, end_run: bool, seconds: float) -> Receipt:
    """Delivers what is in a journal, in order, and releases it.

    Args:
        journal: Taken over.
        end_run: Whether to end the run as KILLED if its process has died without a word, and no
            other process of this machine is to end it.
        seconds: How long to wait for a store that takes nothing.

    Returns:
        What became of the metric values that were handed in to it.
    """
    client = client_of(uri_with_login(journal.about.tracking_uri))
    last_word, elsewhere = _age(journal.folder), _taken_up(client, journal)
    writer = RunWriter(journal.about.run_id, client, journal, goes_on=elsewhere is not None)
    if elsewhere is not None:
        writer.set_tags(elsewhere.tags())
        _logger.warning(
            "Run %s was taken up elsewhere before this machine has delivered its record: the "
            "points of steps %d to %d from here are superseded, as its tags say.",
            journal.about.run_id,
            elsewhere.first_step,
            elsewhere.last_step,
        )
    died = end_run and journal.about.ends_run and not writer.has_ended and elsewhere is None
    died = died and not is_ended_by_another(journal.about.run_id, journals_folder())
    if died and _is_running(client, journal.about.run_id):
        writer.log_status(journal.notes.ended() or "KILLED", int(last_word * 1000))
    writer.close(seconds)
    receipt = writer.receipt
    if not receipt.pending and not receipt.artifacts:
        _correct(client, journal.folder, receipt)
    return receipt


def deliver_orphaned(run_id: str) -> None:
    """Delivers what an earlier process has left of a run, before the run goes on."""
    for journal in orphaned_journals(run_id):
        receipt = deliver_journal(journal, end_run=False, seconds=GRACE_SECONDS)
        if receipt.pending:
            _logger.warning("Run %s goes on before all of it is in the store: %s", run_id, receipt)


def uri_with_login(uri: str) -> str:
    """The address of a store that was noted without a password.

    With user and password if MLflow is configured with the same address and them.
    """
    configured = configured_uri()
    return configured if normalized_uri(configured) == uri else uri


def _correct(client: MlflowClient, folder: Path, receipt: Receipt) -> None:
    """Corrects the receipt on the run, which was written before all of a journal was delivered."""
    journal = Journal.take_over(folder)
    if journal is None:
        return
    counted, done = journal.notes.counted(), False
    try:
        if counted is not None:
            probe(client.tracking_uri)
            tags = client.get_run(journal.about.run_id).data.tags
            if (earlier := Receipt.of_tags(tags)) is not None:
                names = Counter(earlier.refused_names | receipt.refused_names)
                corrected = replace(earlier + receipt.since(*counted), refused_names=names)
                new = [RunTag(key, text) for key, text in corrected.tags().items()]
                client.log_batch(journal.about.run_id, tags=new, synchronous=True)
            done = True
    except Exception as error:
        done = not may_succeed_later(error)
        _logger.debug("the receipt of run %s stays as it is: %r", journal.about.run_id, error)
    finally:
        journal.close(delete=done, empty=counted is None)


def _taken_up(client: MlflowClient, journal: Journal) -> TakenUp | None:
    try:
        probe(client.tracking_uri)
        return taken_up(client, journal)
    except (MlflowException, OSError, ValueError):  # as far as is known here
        return None


def _is_running(client: MlflowClient, run_id: str) -> bool:
    try:
        probe(client.tracking_uri)
        return bool(client.get_run(run_id).info.status == "RUNNING")
    except MlflowException:
        return True  # as far as is known here


def _age(folder: Path) -> float:
    """When something was last written to a journal, in seconds since the epoch."""
    try:
        return max(path.stat().st_mtime for path in [folder, *folder.glob("*.log")])
    except OSError:
        return time.time()

"""Delivery of all that is pending on this machine: journals, and runs recorded offline."""

import contextlib
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from mlflow_keras_adv.compat.mlflow import client_of
from mlflow_keras_adv.tracking import offline
from mlflow_keras_adv.tracking.copy_runs import Copied, copy_runs
from mlflow_keras_adv.tracking.journal import Journal, holds_records, left_here
from mlflow_keras_adv.tracking.names import UID_TAG
from mlflow_keras_adv.tracking.orphaned_journals import (
    deliver_journal,
    orphaned_journals,
    uri_with_login,
)
from mlflow_keras_adv.tracking.outbox import GRACE_SECONDS, SHORT_GRACE_SECONDS
from mlflow_keras_adv.tracking.paths import journals_folder, offline_uri, state_folder
from mlflow_keras_adv.tracking.process_end import started
from mlflow_keras_adv.tracking.store import probe, without_password
from mlflow_keras_adv.tracking.target import pages

_logger = logging.getLogger(__name__)


@dataclass
class Outcome:
    """What a sync has done, a line for each run.

    Attributes:
        delivered: Runs of which nothing is pending any more.
        pending: Runs of which something is, and why.
        keeps_files: Whether an artifact store has not taken the files of a run.
    """

    delivered: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)
    keeps_files: bool = False


def sync(uri: str | None = None, *, progress: Callable[[], None] = lambda: None) -> Outcome:
    """Delivers what is pending on this machine, and waits for it.

    Journals first, each to its own store, and runs whose process has died without a word are ended
    as KILLED. Then whole runs that were recorded offline. A process that is alive keeps what it
    holds. To call it again, or twice at a time, makes no duplicate.

    Args:
        uri: Where offline runs go; default: the store that was configured when they were recorded.
        progress: Called after each step.
    """
    outcome = Outcome()
    for journal in orphaned_journals():
        _sync_journal(journal, outcome)
        progress()
    by_target: dict[str, list[Run]] = defaultdict(list)
    for run in _offline_runs():
        by_target[uri or uri_with_login(run.data.tags[offline.TARGET_TAG])].append(run)
    for target, runs in by_target.items():
        _sync_runs(target, runs, outcome, progress)
    return outcome


def catch_up() -> None:
    """Delivers what this process could not deliver before, if there is any.

    The store is given as long as it takes values, and `GRACE_SECONDS` if it takes none.
    """
    if (left_here or offline.recorded_here) and not offline.is_wanted():
        _sync_within(GRACE_SECONDS)


def _sync_journal(journal: Journal, outcome: Outcome) -> None:
    about, folder = journal.about, journal.folder
    if not holds_records(folder) and journal.is_a_part() and journal.notes.counted() is None:
        journal.close(delete=False, empty=True)  # whoever ends the run takes it
        return
    name = f"run {about.run_id} of {about.tracking_uri}"
    try:
        probe(uri_with_login(about.tracking_uri))
    except MlflowException as error:
        journal.close(delete=False)
        outcome.pending.append(f"{name}: {without_password(error.message)}")
        return
    # One artifact store that is away must not cost as many graces as there are runs.
    hopeless = about.aside and outcome.keeps_files
    seconds = SHORT_GRACE_SECONDS if hopeless else GRACE_SECONDS
    receipt = deliver_journal(journal, end_run=True, seconds=seconds)
    outcome.keeps_files |= bool(receipt.artifacts)
    waits = holds_records(folder) or receipt.artifacts
    lines = outcome.pending if waits else outcome.delivered
    lines.append(f"{name}: {receipt}")


def _sync_runs(uri: str, runs: list[Run], outcome: Outcome, progress: Callable[[], None]) -> None:
    here, waiting = MlflowClient(offline_uri()), {run.info.run_id: run for run in runs}
    ids = _Ids(state_folder() / "offline-ids.json", uri)
    try:
        probe(uri)
        for copied in copy_runs(here, client_of(uri), list(waiting), ids, progress):
            run, place = waiting.pop(copied.run_id), copied.target_run_id
            if place is None:
                outcome.pending.append(f"{_named(run)} for {uri}: {_said(copied)}")
                continue
            here.set_tag(copied.run_id, offline.DELIVERED_TAG, place)
            offline.recorded_here.discard(copied.run_id)
            outcome.delivered.append(f"{_named(run)} as {place}: {_said(copied)}")
    except Exception as error:
        _logger.debug("copying to %s", without_password(uri), exc_info=True)
        reason = without_password(str(error))
        outcome.pending += [f"{_named(run)} for {uri}: {reason}" for run in waiting.values()]


def _offline_runs() -> list[Run]:
    """Those that are not delivered, and not being written by a process that is alive."""
    if not (state_folder() / "offline.db").exists():
        return []
    client = MlflowClient(offline_uri())
    experiments = [each.experiment_id for each in pages(client.search_experiments)]
    runs = [
        run
        for run in pages(client.search_runs, experiments, f"tags.`{UID_TAG}` != ''")
        if offline.DELIVERED_TAG not in run.data.tags
    ]
    alive = {path.name.rpartition("-")[0] for path in journals_folder().glob("*")}
    return [run for run in runs if run.info.run_id not in alive]


def _sync_within(seconds: float) -> None:
    """Syncs on a thread, which is left alone when it makes no progress for `seconds`."""
    last = time.monotonic()

    def note() -> None:
        nonlocal last
        last = time.monotonic()

    def work() -> None:
        with contextlib.suppress(Exception):
            outcome = sync(progress=note)
            for line in outcome.delivered:
                _logger.info("Delivered: %s", line)

    thread = started(work, "catching-up")
    while thread is not None and thread.is_alive() and time.monotonic() - last < seconds:
        thread.join(0.1)


def _named(run: Run) -> str:
    return f"run {run.info.run_name} ({run.info.run_id})"


def _said(copied: Copied) -> str:
    refused = "".join(f"; {name} refused: {why}" for name, why in copied.refused.items())
    return f"{copied.points} points delivered, {copied.refused_points} refused{refused}"


class _Ids(MutableMapping[str, str]):
    """The id in the target of each run and model that was copied, kept in a file."""

    def __init__(self, path: Path, uri: str) -> None:
        self._path, self._uri = path, without_password(uri)
        self._all = json.loads(path.read_text()) if path.exists() else {}
        self._ids: dict[str, str] = self._all.setdefault(self._uri, {})

    def __getitem__(self, key: str) -> str:
        return self._ids[key]

    def __setitem__(self, key: str, value: str) -> None:
        self._ids[key] = value
        self._write()

    def __delitem__(self, key: str) -> None:
        del self._ids[key]
        self._write()

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def _write(self) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self._all))
        new.replace(self._path)

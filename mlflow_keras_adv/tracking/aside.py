"""Aside: files and models of a run that wait for their store, while the rest goes on.

They have a journal of their own, beside that of the run, and threads of their own: what is put off
does not hold up the values, params, tags and the status, whose store answers.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mlflow import MlflowClient

from mlflow_keras_adv.tracking.journal import Journal
from mlflow_keras_adv.tracking.journal_delivery import JournalDelivery
from mlflow_keras_adv.tracking.outbox import Outbox
from mlflow_keras_adv.tracking.pending import Pending, Receipt
from mlflow_keras_adv.tracking.records import Record, WithCopy


class Aside:
    """What is put off of one run.

    Args:
        run_id: The run.
        client: Its store.
        new_journal: Makes a journal for it.
        in_use: As `Outbox` has it.
    """

    def __init__(
        self,
        run_id: str,
        client: MlflowClient,
        new_journal: Callable[[], Journal],
        in_use: Callable[[], bool],
    ) -> None:
        self._pending = Pending(new_journal)
        self._outbox = Outbox(
            run_id, self._pending, JournalDelivery(run_id, client, self._pending), in_use
        )

    @property
    def receipt(self) -> Receipt:
        """What became of it: how many wait, and what was refused."""
        return self._pending.receipt()

    @property
    def folder(self) -> Path | None:
        """Its journal; None if there is none now."""
        return self._pending.folder

    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return self._pending.count() == 0

    def put(self, record: Record) -> None:
        """Takes a record, and a copy of the file that it names.

        Raises:
            OSError: There is no room for it.
        """
        if isinstance(record, WithCopy):
            record = replace(record, path=self._copy(record.path))  # type: ignore[type-var]
        self._outbox.put(record, seconds=None)  # the journal that it was in lets it go

    def flush(self, seconds: float | None) -> bool:
        """Waits until nothing waits, for so long at most; returns whether it is so."""
        return self._outbox.flush(seconds)

    def close(self, seconds: float) -> bool:
        """Delivers what can be delivered, and takes no more; see `Outbox.close`."""
        return self._outbox.close(seconds)

    def _copy(self, path: Path) -> Path:
        """A second name for each file: the first goes with the journal that it is in."""
        place = Path(tempfile.mkdtemp(prefix="mlflow-artifact-", dir=self._pending.open()))
        try:
            if path.is_dir():
                shutil.copytree(path, place / path.name, copy_function=_link)
            else:
                _link(path, place / path.name)
        except OSError:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return place / path.name


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one that knows no links
        shutil.copyfile(source, target)

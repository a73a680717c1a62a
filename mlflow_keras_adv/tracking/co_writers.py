"""Co-writers: other processes of this machine that write to a run which this one ends.

A forked worker, or a process that was given the run's id, hands in to a journal of its own. The
receipt of the run counts their values too; what a process that has ended has left in its journal is
delivered before the run ends.
"""

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

from mlflow_keras_adv.tracking.journal import Journal, is_held_here, journals_of, peek
from mlflow_keras_adv.tracking.journal_notes import FullDiskNotes
from mlflow_keras_adv.tracking.paths import journals_folder
from mlflow_keras_adv.tracking.pending import Pending, Receipt
from mlflow_keras_adv.tracking.records import decode


class CoWriters:
    """Those of one run, when it ends.

    Args:
        run_id: The run.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._ended: list[Pending] = []
        self._at_work: dict[Path, Receipt] = {}

    def deliver(self, drain: Callable[[Pending], None]) -> Receipt:
        """Delivers what those have left that have ended.

        Args:
            drain: Delivers all that is pending in a journal.

        Returns:
            What became of the values of all of them. Those of a process that goes on are pending
            unless its journal says otherwise.
        """
        total = Receipt(0, 0, 0, 0)
        for folder, about in journals_of(self._run_id, journals_folder()):
            if is_held_here(folder) or about.ends_run or about.host != socket.gethostname():
                continue
            journal = Journal.take_over(folder)
            if journal is None:
                with contextlib.suppress(OSError, ValueError):
                    self._at_work[folder] = _receipt_of(folder)
                    total += self._at_work[folder]
                continue
            pending = Pending(_never, journal)
            self._ended.append(pending)
            drain(pending)
            total += pending.receipt()
        return total

    def counted(self) -> None:
        """Notes that the run's receipt counts what `deliver` has found."""
        for pending in self._ended:
            pending.release(counted=True)
        self._ended.clear()
        for folder, receipt in self._at_work.items():
            FullDiskNotes(folder).mark_counted(receipt.produced, receipt.delivered, receipt.refused)

    def leave(self) -> None:
        """Lets go of the journals that `deliver` has taken over, if they were not counted."""
        for pending in self._ended:
            pending.release()
        self._ended.clear()


def _receipt_of(folder: Path) -> Receipt:
    acknowledged, records = peek(folder)
    waiting = sum(decode(record, folder).points for record in records)
    return Receipt.of(acknowledged, pending=waiting)


def _never() -> Journal:
    raise OSError("the journal of another process takes nothing from this one")

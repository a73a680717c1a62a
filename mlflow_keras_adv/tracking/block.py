"""Block: one block of `track`, and which of them hold the runs of this process."""

import threading
from typing import TYPE_CHECKING

from mlflow_keras_adv.tracking.ending import deactivate, end

if TYPE_CHECKING:
    from mlflow_keras_adv.tracking.run import Run

# One Run for each id, so that all count on the same axis; and the block that holds each.
runs: dict[str, "Run"] = {}
holders: dict[str, "Block"] = {}
_thread = threading.local()


def blocks() -> list["Block"]:
    """Those that this thread is in, innermost last."""
    found: list[Block] = _thread.__dict__.setdefault("blocks", [])
    return found


class Block:
    """One block of `track`: what it found, and what it has to undo.

    Args:
        run: Its run.
        activated: Whether it made the run active in this thread.
        opened: Whether it opened the run, and so has to end it.
    """

    def __init__(self, run: "Run", *, activated: bool, opened: bool) -> None:
        self.run = run
        self._activated = activated
        self._holds = holders.setdefault(run.run_id, self) is self
        self._opened = opened and self._holds
        if self._opened:
            run.announce_end()
        self._enclosing = blocks()
        self._enclosing.append(self)

    def leave(self, error: BaseException | None, seconds: float | None) -> bool:
        """Ends the block; see `ending.end`."""
        delivered = True
        try:
            if self._holds:
                self.run.call_at_exit()
        finally:
            self._enclosing.remove(self)
            if self._activated:
                deactivate(self.run.run_id)
            if self._holds:
                del holders[self.run.run_id]
            if self._opened:
                del runs[self.run.run_id]
                delivered = end(self.run, error, seconds)
            elif self._holds and seconds is not None:
                delivered = self.run.flush(seconds)
        return delivered

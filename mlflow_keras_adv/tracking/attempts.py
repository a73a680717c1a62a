"""Attempts: a call to a store, made again until the store has answered."""

import logging
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Lock
from typing import TypeVar

from mlflow_keras_adv.tracking.store import may_succeed_later

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")

# Between two attempts at a store that fails: doubled from the first to the longest.
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0


class AbandonedError(Exception):
    """The store did not take what was left in the time that was given."""


class Attempts:
    """Repeats calls to a store that does not answer, or cannot serve for now.

    An error of the connection or the server is retried until it passes, with one warning for each
    kind. One thread calls; any thread may hurry or abandon it.

    Args:
        run_id: The run that the calls are for, for messages.
        ask: Called before each attempt; raises, within seconds, if the store does not answer.
        progress: Called after each call that the store has answered.
    """

    def __init__(
        self, run_id: str, ask: Callable[[], object], progress: Callable[[], object]
    ) -> None:
        self._run_id = run_id
        self._ask = ask
        self._progress = progress
        self._nudges: SimpleQueue[None] = SimpleQueue()
        self._abandoned = False
        self._failing_since: float | None = None
        self._warning = Lock()
        self._warned: set[str] = set()

    def until_answered(self, call: Callable[[], _T]) -> _T:
        """What the call returns, or raises because the store rejects it.

        Raises:
            AbandonedError: If `abandon` was called meanwhile.
        """
        while not self._nudges.empty():
            self._nudges.get()
        pause = FIRST_PAUSE_SECONDS
        while not self._abandoned:
            try:
                self._ask()
                result = call()
                self._progress()
                self._failing_since = None
                return result
            except Exception as error:
                if not may_succeed_later(error):
                    self._failing_since = None
                    raise
                self._failing_since = self._failing_since or time.monotonic()
                self.warn_once(
                    f"retry {getattr(error, 'error_code', type(error).__name__)}",
                    "The tracking store does not take the values of run %s for now; "
                    "they are kept and sent again: %s",
                    self._run_id,
                    error,
                )
            try:
                self._nudges.get(timeout=pause)
                pause = FIRST_PAUSE_SECONDS
            except Empty:
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        raise AbandonedError

    def hurry(self) -> None:
        """Ends the pause before the next attempt: somebody waits."""
        self._nudges.put(None)

    def abandon(self) -> None:
        """Makes the attempts end, as soon as the call to the store that is under way returns."""
        self._abandoned = True
        self.hurry()

    def failing_for(self) -> float:
        """Seconds since the store began to fail; 0 if it does not."""
        since = self._failing_since
        return 0.0 if since is None else time.monotonic() - since

    def warn_once(self, kind: str, message: str, *arguments: object) -> None:
        """Logs a warning, the first time for its kind."""
        with self._warning:
            if kind in self._warned:
                return
            self._warned.add(kind)
        _logger.warning(message, *arguments)

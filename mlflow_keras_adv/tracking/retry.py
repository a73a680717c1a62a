"""Retry: a call to a store, made again until the store has answered."""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from queue import Empty, SimpleQueue
from threading import Lock
from typing import TypeVar

from mlflow_keras_adv.compat.mlflow import asking_once
from mlflow_keras_adv.tracking.store import PROBE_SECONDS
from mlflow_keras_adv.tracking.verdict import (
    ArtifactStoreError,
    RejectedError,
    Verdict,
    verdict_of,
)

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")

# Between two attempts at a store that fails: doubled from the first to the longest.
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
# So often a store has to fail at one and the same call before it is asked whether it takes others;
# and so often at the parts of a call that it takes no part of.
FAILURES = 4
FAILURES_OF_A_PART = 2
# So often it has to take another one, and to fail at this one again, before that is its fault.
PROOFS = 2


class RetryCancelledError(Exception):
    """The store did not take what was left in the time that was given."""


class Retry:
    """Repeats calls to a store that does not answer, or cannot serve for now.

    An error of the connection or the server is retried until it passes, with one warning for each
    kind. A call that the store fails at, again and again, is rejected if it takes another one
    meanwhile: a text that its database cannot hold must not keep back all that comes after it. One
    thread calls; any thread may cancel, or have it retry now.

    Args:
        run_id: The run that the calls are for, for messages.
        prove: Writes something harmless to the store; raises if it does not take it. Without, no
            call is rejected because the store fails at it.
        progress: Called after each call that the store has answered, one of `prove` too.
        ask: Called before each further attempt; raises, within seconds, if the store does not
            answer.
        patient: Whether to wait for a store. Without, what may succeed later is raised, after the
            attempts that MLflow makes by itself.

    Attributes:
        fails_at_files: Whether what failed last was to be uploaded, and the store of the artifacts
            did not take it.
    """

    def __init__(
        self,
        run_id: str,
        prove: Callable[[], object] | None,
        progress: Callable[[], object],
        *,
        ask: Callable[[], object] = lambda: None,
        patient: bool = True,
    ) -> None:
        self._run_id = run_id
        self._ask = ask
        self._prove = prove
        self._progress = progress
        self._patient = patient
        self._nudges: SimpleQueue[None] = SimpleQueue()
        self._cancelled = False
        self._failing_since: float | None = None
        self.fails_at_files = False
        self._warning = Lock()
        self._warned: set[str] = set()

    def until_answered(
        self,
        call: Callable[[], _T],
        *,
        ask_first: bool = False,
        failures: int = 0,
        put_off: bool = False,
    ) -> _T:
        """What the call returns.

        Args:
            call: The call.
            ask_first: Whether to ask the store before the first attempt, too: for calls that MLflow
                makes on other threads, where it goes on for minutes.
            failures: How often the store may fail at it before it is asked whether it takes others;
                0: that does not matter, it is retried for ever.
            put_off: Whether the call can wait while others are made, if it is the store of the
                artifacts that does not take it.

        Raises:
            ArtifactStoreError: It is, and the tracking store answers.
            RejectedError: The store will never take it.
            RetryCancelledError: If `cancel` was called meanwhile.
            Exception: Not patient: the call may succeed later.
        """
        while not self._nudges.empty():
            self._nudges.get()
        pause, failed, proofs = FIRST_PAUSE_SECONDS, 0, 0
        asks = ask_first
        while not self._cancelled:
            verdict = Verdict.AWAY
            try:
                if asks:
                    self._ask()
                asks = True
                verdict = Verdict.UNKNOWN  # from here on it is the call's
                with self._asking(again=proofs > 0):
                    result = call()
                self._progress()
                self._failing_since = None
                return result
            except Exception as error:
                if verdict is Verdict.UNKNOWN:
                    verdict = verdict_of(error)
                failing = verdict is Verdict.FAILED
                unknown = verdict is Verdict.UNKNOWN and self._patient
                if verdict is Verdict.REJECTED or unknown or (failing and proofs == PROOFS):
                    self._progress()
                    self._failing_since = None
                    raise RejectedError(str(error)) from error
                failed = failed + 1 if failing else 0
                enough = failures > 0 and failed >= (failures if self._patient else 1)
                proofs = proofs + 1 if enough and self._takes_others() else 0
                if proofs:
                    continue
                if not self._patient:
                    if isinstance(error, ArtifactStoreError):
                        raise error.cause from None
                    raise
                if put_off and isinstance(error, ArtifactStoreError) and self._answers():
                    raise
                self._note_failure(error)
            try:
                self._nudges.get(timeout=pause)
                pause = FIRST_PAUSE_SECONDS
            except Empty:
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        raise RetryCancelledError

    def retry_now(self) -> None:
        """Ends the pause before the next attempt: somebody waits."""
        self._nudges.put(None)

    def cancel(self) -> None:
        """Makes the attempts end, as soon as the call to the store that is under way returns."""
        self._cancelled = True
        self.retry_now()

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

    def _note_failure(self, error: Exception) -> None:
        self._failing_since = self._failing_since or time.monotonic()
        self.fails_at_files = files = isinstance(error, ArtifactStoreError)
        self.warn_once(
            f"retry {getattr(error, 'error_code', type(error).__name__)}",
            "The %s store does not take the %s of run %s for now; they are kept and sent again: %s",
            "artifact" if files else "tracking",
            "files" if files else "values",
            self._run_id,
            error,
        )

    def _asking(self, again: bool) -> AbstractContextManager[None]:
        return asking_once(PROBE_SECONDS) if self._patient or again else nullcontext()

    def _answers(self) -> bool:
        try:
            self._ask()
        except Exception:
            return False
        return True

    def _takes_others(self) -> bool:
        if self._prove is None:
            return False
        try:
            with asking_once(PROBE_SECONDS):
                self._prove()
        except Exception as error:
            if verdict_of(error) is not Verdict.REJECTED:
                return False
        self._progress()  # it is not away, and nobody has to give it up
        return True

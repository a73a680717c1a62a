"""Whether a store answers, found out without anybody waiting for long."""

import logging
import time
from collections.abc import Callable
from threading import Lock
from typing import TypeVar

from mlflow_keras_adv.compat.mlflow import asking_once
from mlflow_keras_adv.tracking.process_end import started
from mlflow_keras_adv.tracking.store import answers, without_password
from mlflow_keras_adv.tracking.verdict import may_succeed_later

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")

# How long a call waits for a store that has answered before: once, then it is known to be away.
ANSWER_SECONDS = 5.0
# Between two questions whether it is back, which a thread asks beside the program.
_PAUSE_SECONDS = 1.0


class AwayError(Exception):
    """The store does not answer, or cannot serve for now; what it said is the cause."""


class Answers:
    """What is known of a store.

    Args:
        uri: Its plain tracking URI.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._away: Exception | None = None
        self._noting = Lock()

    @property
    def is_away(self) -> bool:
        """Whether it did not answer when it was last asked."""
        return self._away is not None

    def attempt(self, call: Callable[[], _T], *, seconds: float = ANSWER_SECONDS) -> _T:
        """What a call to the store returns.

        Args:
            call: The call.
            seconds: How long to wait for the answer.

        Raises:
            AwayError: The store is away; at once if that is known.
            Exception: What the store has answered.
        """
        if (away := self._away) is not None:
            raise AwayError(str(away)) from away
        try:
            with asking_once(ANSWER_SECONDS, seconds):
                return call()
        except Exception as error:
            if not may_succeed_later(error):
                raise
            self.note_away(error)
            raise AwayError(str(error)) from error

    def note_away(self, error: Exception) -> None:
        """Notes that the store does not answer; a thread asks until it does."""
        with self._noting:
            was_known, self._away = self._away is not None, error
        if was_known:
            return
        _logger.warning(
            "The tracking store %s takes nothing for now; what is logged is kept on this machine, "
            "and delivered once it is back: %s",
            without_password(self._uri),
            without_password(str(error)),
        )
        if started(self._ask, "is-the-store-back") is None:
            self._away = error  # the process is at its end: it stays so

    def _ask(self) -> None:
        while True:
            time.sleep(_PAUSE_SECONDS)
            if answers(self._uri):
                self._away = None
                return

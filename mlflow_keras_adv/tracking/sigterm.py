"""SIGTERM as an exception, so that a run which is told to stop ends as KILLED."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(SystemExit):
    """The process received SIGTERM. Ends it with exit code 143, as a shell would report it."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class _Handler:
    """Raises `Terminated` once, but not while runs are being ended."""

    def __init__(self) -> None:
        self._shields = 0
        self._received = False
        self._raised = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self._received = True
        self._raise_once()

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Holds the exception back until the block has ended."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
        self._raise_once()

    def _raise_once(self) -> None:
        if self._received and not self._raised and not self._shields:
            self._raised = True
            raise Terminated


_handler: _Handler | None = None


@contextmanager
def raises_terminated() -> Iterator[None]:
    """Makes SIGTERM raise `Terminated` inside the block.

    Only where nobody else handles SIGTERM, and in the main thread, the only one where Python lets
    a handler be set. The old handler is put back afterwards. A second SIGTERM is ignored.
    """
    global _handler
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    _handler = _Handler()
    signal.signal(signal.SIGTERM, _handler)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is _handler:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _handler = None


@contextmanager
def holds_back_terminated() -> Iterator[None]:
    """Lets the block end before a SIGTERM that arrives in it raises."""
    if _handler is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handler.shield():
        yield

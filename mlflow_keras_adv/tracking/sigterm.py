"""SIGTERM as an exception, so that a run which is told to stop ends as KILLED.

Classes and no generators: a block may be left by whoever collects what holds it, also late in the
end of the interpreter.
"""

import os
import signal
import threading
from contextlib import AbstractContextManager
from types import FrameType, TracebackType


class Terminated(SystemExit):
    """The process received SIGTERM. Ends it with exit code 143, as a shell would report it."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


def raises_terminated() -> AbstractContextManager[None]:
    """Makes SIGTERM raise `Terminated` inside the block.

    Only where nobody else handles SIGTERM, and in the main thread, the only one where Python lets
    a handler be set. The old handler is put back when the last of several blocks is left, in
    whichever order they are. A second SIGTERM is ignored.
    """
    return _Raising()


def holds_back_terminated(*, for_good: bool = False) -> AbstractContextManager[None]:
    """Lets the block end before a SIGTERM that arrives in it raises.

    Args:
        for_good: Never raise it, and have the next one end the process: it is at its end.
    """
    return _Shield(for_good)


def was_terminated() -> bool:
    """Whether `Terminated` was raised in this process."""
    return _terminated_in == os.getpid()


def raise_if_lost(*, terminated_before: bool) -> None:
    """Raises `Terminated` once more where it was raised and nobody was ended by it.

    It is raised wherever the main thread is, and some places drop every exception: C code that asks
    whether an object has an attribute, for one. To be called in what can only be reached if the
    exception is lost.

    Args:
        terminated_before: Whether it was raised before that began.
    """
    if was_terminated() and not terminated_before and _in_main_thread():
        raise Terminated


class _Handler:
    """Raises `Terminated` once, but not while runs are being ended.

    Attributes:
        blocks: How many want it.
    """

    def __init__(self) -> None:
        self.blocks = 0
        self._shields = 0
        self._received = False
        self._raised = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if not self.blocks:  # the last block was left in another thread, which can set no handler
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
            return
        self._received = True
        self._raise_once()

    def hold_back(self) -> None:
        """Does not raise until `let_go` was called as often."""
        self._shields += 1

    def let_go(self, *, for_good: bool) -> None:
        """Raises what was held back, unless that is `for_good`."""
        self._shields -= 1
        if for_good and signal.getsignal(signal.SIGTERM) is self:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        elif not for_good:
            self._raise_once()

    def _raise_once(self) -> None:
        global _terminated_in
        if self._received and not self._raised and not self._shields:
            self._raised = True
            _terminated_in = os.getpid()
            raise Terminated


_handler: _Handler | None = None
_terminated_in: int | None = None


class _AroundFork(threading.local):
    """A forked child ends by SIGTERM, as it would without us: it has no run to end.

    Its main thread may stand in a lock for good, where no handler is ever called; a pool of
    processes that is told to end would wait for it for ever. A signal that arrives before the child
    has its own way with it is kept by the kernel, not by Python, which would lose it.
    """

    mask: set[int] | None = None

    def before(self) -> None:
        if _handler is not None:
            self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def in_parent(self) -> None:
        if self.mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)
            self.mask = None

    def in_child(self) -> None:
        global _handler
        _handler = None
        if isinstance(signal.getsignal(signal.SIGTERM), _Handler):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.in_parent()


_around_fork = _AroundFork()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_around_fork.before,
        after_in_parent=_around_fork.in_parent,
        after_in_child=_around_fork.in_child,
    )


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class _Raising(AbstractContextManager[None]):
    def __init__(self) -> None:
        self._handler: _Handler | None = None

    def __enter__(self) -> None:
        global _handler
        if not _in_main_thread():
            return
        found = signal.getsignal(signal.SIGTERM)
        if found is signal.SIG_DFL:
            found = _handler = _Handler()
            signal.signal(signal.SIGTERM, _handler)
        if isinstance(found, _Handler):
            self._handler = found
            found.blocks += 1

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _handler
        handler, self._handler = self._handler, None
        if handler is None:
            return
        handler.blocks -= 1
        if handler.blocks or not _in_main_thread():
            return
        if signal.getsignal(signal.SIGTERM) is handler:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if _handler is handler:
            _handler = None


class _Shield(AbstractContextManager[None]):
    def __init__(self, for_good: bool) -> None:
        self._for_good = for_good
        self._handler: _Handler | None = None

    def __enter__(self) -> None:
        if _handler is not None and _in_main_thread():
            self._handler = _handler
            _handler.hold_back()

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        handler, self._handler = self._handler, None
        if handler is not None:
            handler.let_go(for_good=self._for_good)

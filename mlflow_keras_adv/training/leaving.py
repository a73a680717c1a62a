"""Tells how a `for` loop was left: by `break`, or by which exception.

Python tells an iterator that it is no longer needed, and not why: for both it is dropped. But an
exception that leaves the body of the loop has a traceback by then, at the very instruction at which
the frame stands; a `break` stands at one that cannot raise.
"""

import dis
import gc
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

# What raises an exception again has no traceback of its own: it has that of the first time.
_RAISES = {dis.opmap["RERAISE"], dis.opmap["RAISE_VARARGS"]}


class LeftByAnExceptionError(RuntimeError):
    """Stands for an exception that left a loop and could not be seen."""

    def __init__(self) -> None:
        super().__init__("The loop was left by an exception.")


def exception_leaving(frame: FrameType, *, interrupted: bool) -> BaseException | None:
    """The exception that is leaving the code of a frame; None if none is.

    Args:
        frame: The frame.
        interrupted: Whether Ctrl-C has come since the loop began.

    Returns:
        A `LeftByAnExceptionError` in place of one that cannot be seen: until Python 3.11 the
        interpreter makes an object of some of its own, a KeyError say, only when they are caught.
    """
    raised_anew = frame.f_code.co_code[frame.f_lasti] in _RAISES
    for referrer in gc.get_referrers(frame):
        if isinstance(referrer, TracebackType) and (
            raised_anew or referrer.tb_lasti == frame.f_lasti
        ):
            error = _exception_of(referrer)
            if error is None and interrupted:
                return KeyboardInterrupt()
            return error or LeftByAnExceptionError()
    return None


def _exception_of(traceback: TracebackType) -> BaseException | None:
    """The exception in flight that a traceback belongs to, if it is an object by now."""
    below = {id(each) for each in _chain(traceback)}
    for each in gc.get_objects():
        if isinstance(each, BaseException):
            own = each.__traceback__
            # Until Python 3.11 it gets its traceback when it is caught: raised for the first time
            # it has none, raised again that of before, and nothing that can be seen refers to it.
            if own is not None and id(own) in below:
                return each
            if own is None and sys.version_info < (3, 12) and len(gc.get_referrers(each)) <= 1:
                return each
    return None


def _chain(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


class NotesInterrupts:
    """Notes, while it is entered, whether Ctrl-C was pressed; it interrupts as ever.

    For Python 3.11 only, where the exception itself cannot be seen, and where nobody else has a
    handler.
    """

    def __init__(self) -> None:
        self.noted = False
        self._placed = False

    def begin(self) -> None:
        """Takes the place of Python's own handler."""
        if (
            sys.version_info < (3, 12)
            and threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            signal.signal(signal.SIGINT, self._note)
            self._placed = True

    def end(self) -> None:
        """Puts it back, if nobody has replaced ours since."""
        if (
            self._placed
            and threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) == self._note
        ):
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._placed = False

    def _note(self, signum: int, frame: FrameType | None) -> Any:
        self.noted = True
        signal.default_int_handler(signum, frame)


class Asker:
    """The code that has asked an iterator for its next value, without keeping it alive.

    Args:
        frame: Where it stood then.
    """

    def __init__(self, frame: FrameType) -> None:
        self._frame, self._code, self._at = id(frame), frame.f_code, frame.f_lasti

    def is_running(self) -> bool:
        """Whether it is still behind that place, on the stack of any thread.

        The same code that is run again, as a cell of a notebook is, stands before it.
        """
        for frame in sys._current_frames().values():
            each: FrameType | None = frame
            while each is not None:
                if id(each) == self._frame and each.f_code is self._code:
                    return each.f_lasti > self._at
                each = each.f_back
        return False

    def left_by(self) -> BaseException | None:
        """The exception that has left it, if somebody still holds that, as a notebook does."""
        for each in gc.get_objects():
            if isinstance(each, BaseException) and any(
                id(one.tb_frame) == self._frame and one.tb_frame.f_code is self._code
                for one in _chain(each.__traceback__)
            ):
                return each
        return None

"""The end of the process: the one place where what is still open then is ended.

One function, called by `atexit` before MLflow's own, which would call every run FINISHED. By then
the interpreter may refuse to start threads (Python 3.12 does), and soon afterwards a thread that is
started never runs, while whoever has started it waits for it for ever. So nothing here starts one:
what has to be delivered is delivered by threads that are at work already, and what is left is in
the journal.
"""

import atexit
import logging
import sys
import time
from collections.abc import Callable
from enum import IntEnum
from threading import Thread

# Imported for its own `atexit` function: of two, the one that was registered later is called first.
import mlflow.tracking.fluent  # noqa: F401

from mlflow_keras_adv.tracking.sigterm import (
    Terminated,
    holds_back_terminated,
    raises_terminated,
    was_terminated,
)

_logger = logging.getLogger(__name__)

AtEnd = Callable[[BaseException | None], None]


class Stage(IntEnum):
    """What is ended, in this order."""

    TRAININGS = 0
    RUNS = 1
    OUTBOXES = 2
    SENDERS = 3


def before_the_end(callback: AtEnd) -> Callable[[], None]:
    """Has `callback` called at the end of the process, before any run is ended.

    The place to hand in what a training has produced. It must start no thread. A forked child that
    ends by itself calls what its parent has registered, too.

    Args:
        callback: Receives the exception that ended the program; None if it came to its end.

    Returns:
        A function that withdraws the callback.
    """
    return _add(Stage.TRAININGS, callback)


def at(stage: Stage) -> Callable[[AtEnd], AtEnd]:
    """Decorates a function that is to be called at the end of the process."""

    def register(function: AtEnd) -> AtEnd:
        _add(stage, function)
        return function

    return register


def grace_left(seconds: float) -> float:
    """What is left of a time to wait: all of it, but at the end of the process it runs for all."""
    if _hurried:
        return 0.0
    return seconds if _began is None else max(_began + seconds - time.monotonic(), 0.0)


def has_begun() -> bool:
    """Whether the process is ending."""
    return _began is not None


def started(target: Callable[[], None], name: str) -> Thread | None:
    """A thread at work, or None if the interpreter, or the machine, does not give one any more."""
    thread = Thread(target=target, name=name, daemon=True)
    return thread if starts(thread) else None


def starts(thread: Thread) -> bool:
    """Starts a thread, if the interpreter and the machine still let it run."""
    if sys.is_finalizing():  # `Thread.start` would wait for it for ever
        return False
    try:
        thread.start()
    except RuntimeError:
        return False
    return True


def what_ended_the_program() -> BaseException | None:
    """The exception that nobody has caught, which Python notes before it says so."""
    if was_terminated():
        return Terminated()
    if hasattr(sys, "ps1"):  # at a prompt, in a notebook: an error is said, and ends nothing
        return None
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    return error if isinstance(error, BaseException) else None


_began: float | None = None
_hurried = False
_registered: dict[Stage, dict[object, AtEnd]] = {stage: {} for stage in Stage}


def _add(stage: Stage, function: AtEnd) -> Callable[[], None]:
    key = object()
    _registered[stage][key] = function

    def withdraw() -> None:
        _registered[stage].pop(key, None)

    return withdraw


@atexit.register
def _end() -> None:
    """Calls all stages, whatever goes wrong in one; a Ctrl-C ends the waiting, not the rest."""
    global _began, _hurried
    _began = time.monotonic()
    error = what_ended_the_program()
    with raises_terminated(), holds_back_terminated(for_good=True):
        for stage in Stage:
            for function in list(_registered[stage].values()):
                try:
                    function(error)
                except KeyboardInterrupt:
                    _hurried = True
                except Exception:
                    _logger.exception("At the end of the process %r failed.", function)

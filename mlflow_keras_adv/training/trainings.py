"""Training: one call of `fit`, or one `Loop`, from its begin to its end, however it ends.

Keras calls `on_train_end` only if a training does not fail. So code that needs the end registers
with the training: it is called when `fit` returns or raises, when a loop is left, and when the
process ends first.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

_logger = logging.getLogger(__name__)

# Receives the exception that ended the training; None if it was completed.
AtEnd = Callable[[BaseException | None], None]


class Training:
    """One training of one model. As a context manager it lasts as long as the block.

    Args:
        model: The model that is trained.
        arguments: Those of `fit`, by name; empty for a loop.

    Attributes:
        model: The model.
        arguments: The arguments.
    """

    def __init__(self, model: Any, arguments: Mapping[str, Any] | None = None) -> None:
        self.model = model
        self.arguments = dict(arguments or {})
        self._thread = threading.get_ident()
        self._process = os.getpid()
        self._at_end: dict[object, AtEnd] = {}

    def __enter__(self) -> Self:
        _under_way.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end(error)

    def at_end(self, callback: AtEnd) -> Callable[[], None]:
        """Registers a callback, which is called once, when the training ends.

        Returns:
            A function that withdraws it.
        """
        key = object()
        self._at_end[key] = callback

        def withdraw() -> None:
            self._at_end.pop(key, None)

        return withdraw

    def end(self, error: BaseException | None) -> None:
        """Ends it; later calls do nothing.

        Args:
            error: The exception that ended it; None if it was completed.
        """
        if self in _under_way:
            _under_way.remove(self)
        while self._at_end:
            _, callback = self._at_end.popitem()
            try:
                callback(error)
            except Exception:
                _logger.exception("What was to be done at the end of a training failed.")

    @property
    def is_of_this_process(self) -> bool:
        """Whether it began in this process, and not in one that this process was forked from."""
        return self._process == os.getpid()

    @property
    def is_of_this_thread(self) -> bool:
        """Whether the thread that asks is the one that trains, and no fork of it."""
        return self._thread == threading.get_ident() and self.is_of_this_process

    @property
    def is_under_way(self) -> bool:
        """Whether it has begun and not ended."""
        return self in _under_way


def training_of(model: Any) -> Training | None:
    """The innermost current training of a model; None if there is none."""
    own = [each for each in _under_way if each.model is model and each.is_of_this_process]
    return own[-1] if own else None


def training_around_own(model: Any) -> Training | None:
    """The training of a model in whose callbacks the same model is trained now."""
    own = [each for each in _under_way if each.model is model and each.is_of_this_thread]
    return own[-2] if len(own) > 1 else None


def training_around(model: Any) -> Training | None:
    """The training, of another model, in whose callbacks this thread trains a model now."""
    for each in reversed(_under_way):
        if each.is_of_this_thread and each.model is not model:
            return each
    return None


def end_all(error: BaseException | None) -> None:
    """Ends the trainings that are under way, as the process ends; the innermost first.

    Args:
        error: What ends the process.
    """
    while _under_way:
        training = _under_way.pop()
        if training.is_of_this_process:
            training.end(error)


_under_way: list[Training] = []

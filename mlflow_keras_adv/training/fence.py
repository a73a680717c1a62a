"""Fence: keeps what fails in ours from a training. Knows no TensorFlow."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow_keras_adv.errors import in_short

_logger = logging.getLogger(__name__)


class Fence:
    """Keeps what fails in ours from a training: the first failure is said.

    Args:
        what: What is recorded or done inside of it, as the subject of the warning.
        tries_again: Whether it is tried again after a failure; else the record of it ends.

    Attributes:
        whole: Whether nothing has failed yet.
    """

    def __init__(self, what: str, *, tries_again: bool = False) -> None:
        self._what = what
        self._tries_again = tries_again
        self.whole = True

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Ends the block, and not what is around it, when something in it fails."""
        try:
            yield
        except Exception as error:
            if self.whole:
                self.whole = False
                says = (
                    "%s failed, the training goes on without: %s"
                    if self._tries_again
                    else "%s: not recorded any more, the training goes on without. %s"
                )
                _logger.warning(says, self._what, in_short(error))

"""Fence: keeps failures of this package out of a training. Imports no TensorFlow."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow_keras_adv.errors import in_short

_logger = logging.getLogger(__name__)


class Fence:
    """Keeps failures of this package out of a training, and warns of the first one.

    Args:
        what: The values recorded inside of it, as the subject of the warning.
        tries_again: Whether recording continues after a failure; else it ends.

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

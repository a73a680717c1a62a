"""RecordedFits: `fit` of every model, as if it had been given an `MlflowLogger`."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras

from mlflow_keras_adv.callbacks.mlflow_logger import MlflowLogger
from mlflow_keras_adv.training.fits import additions, know_fits

# A fit with one of these is on record already, or is part of one that is.
_RECORDED = (MlflowLogger, keras.callbacks.CallbackList)


class RecordedFits:
    """Adds a logger to each `fit` that somebody wants recorded.

    The user's list of callbacks is left alone. A fit that is given an `MlflowLogger` is recorded by
    that one only.

    Args:
        wanted: Whether to record the fit that a thread begins now.
        within: What to record it in.
    """

    def __init__(
        self,
        wanted: Callable[[], bool],
        within: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._wanted = wanted
        self._within = within

    def put_on(self) -> None:
        """Begins; may be repeated."""
        know_fits()
        if self._addition not in additions:
            additions.append(self._addition)

    def take_off(self) -> None:
        """Ends; may be repeated."""
        if self._addition in additions:
            additions.remove(self._addition)

    def _addition(
        self, callbacks: list[Any]
    ) -> tuple[list[Any], AbstractContextManager[Any]] | None:
        if not self._wanted() or any(isinstance(each, _RECORDED) for each in callbacks):
            return None
        return [MlflowLogger()], self._within()

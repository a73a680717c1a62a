"""EitherKeras: what every callback of ours has in common, in `fit` of Keras 3 and of tf_keras."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import keras

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.training.fits import AsksForTheEnd, know_fits

_logger = logging.getLogger(__name__)


class EitherKeras(keras.callbacks.Callback, AsksForTheEnd):
    """A callback that never ends the training it looks at, and learns of its end however it ends.

    What fails in one of its hooks is logged, once for each hook, and the training goes on. Only a
    `UserError` at its begin is raised: what a user has to know before anything is trained.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()
        know_fits()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, hook in list(vars(cls).items()):
            if name.startswith("on_") and callable(hook):
                setattr(cls, name, _sparing(name, hook))

    def _implements_train_batch_hooks(self) -> bool:
        return True

    def _implements_test_batch_hooks(self) -> bool:
        return False

    def _implements_predict_batch_hooks(self) -> bool:
        return False


def _sparing(name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(hook)
    def sparing(self: EitherKeras, *args: Any, **kwargs: Any) -> None:
        try:
            hook(self, *args, **kwargs)
        except Exception as error:
            if name == "on_train_begin" and isinstance(error, UserError):
                raise
            if name not in self._said:
                self._said.add(name)
                _logger.warning(
                    "%s.%s failed, the training goes on without: %r",
                    type(self).__name__,
                    name,
                    error,
                )

    return sparing

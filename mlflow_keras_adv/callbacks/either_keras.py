"""EitherKeras: what every callback of ours has in common, in `fit` of Keras 3 and of tf_keras."""

import functools
from collections.abc import Callable
from typing import Any

import keras

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.training.fence import Fence
from mlflow_keras_adv.training.fits import AsksForTheEnd, know_fits


class EitherKeras(keras.callbacks.Callback, AsksForTheEnd):
    """A callback that never ends the training it looks at, and learns of its end however it ends.

    What fails in one of its hooks is logged, once for each hook, and the training goes on. Only a
    `UserError` at its begin is raised: what a user has to know before anything is trained.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fences: dict[str, Fence] = {}
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
        said: UserError | None = None
        what = f"{type(self).__name__}.{name}"
        with self._fences.setdefault(name, Fence(what, tries_again=True))():
            try:
                hook(self, *args, **kwargs)
            except UserError as error:
                if name != "on_train_begin":
                    raise
                said = error
        if said is not None:
            raise said

    return sparing

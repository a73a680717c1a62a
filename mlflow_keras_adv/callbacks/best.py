"""best_of: the best epoch of a training, according to its callbacks."""

import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from mlflow_keras_adv.callbacks.monitor import number_in


def best_of(callbacks: Any) -> dict[str, float]:
    """Reads the results of Keras' `EarlyStopping` and `ModelCheckpoint(save_best_only=True)`.

    Call it after `fit` has returned: weights are restored at the end of a training, and not at all
    if it raised.

    Args:
        callbacks: The callbacks of `fit`: a list, a single callback, a `CallbackList`, or None.

    Returns:
        Values about the finished model, by metric key, to be logged at step 0. Epochs count from 1,
        as `train/epoch` does. Empty without such callbacks, or if they never got a value.

        - `final/best/<monitor>`: best value of the monitored metric; if several callbacks monitor
          it, that of the first.
        - `final/best_epoch`: its epoch, according to the first `EarlyStopping`.
        - `final/restored_epoch`: the epoch whose weights the model has, if any were restored.
        - `final/stopped_epoch`: the last epoch, if the training was stopped early.
    """
    found: dict[str, float] = {}
    for callback in _flat(callbacks):
        stops = isinstance(callback, _classes("EarlyStopping"))
        saves = isinstance(callback, _classes("ModelCheckpoint"))
        saves = saves and callback.save_best_only
        # A training that has not begun leaves the attribute unset, tf_keras' begins at infinity.
        best = number_in(getattr(callback, "best", None)) if stops or saves else None
        if best is None or math.isinf(best):
            continue
        found.setdefault(f"final/best/{callback.monitor}", best)
        if not stops:
            continue
        found.setdefault("final/best_epoch", callback.best_epoch + 1)
        if callback.stopped_epoch > 0:
            found.setdefault("final/stopped_epoch", callback.stopped_epoch + 1)
        if _has_restored(callback):
            found["final/restored_epoch"] = callback.best_epoch + 1  # the last to do so prevails
    return found


def _has_restored(callback: Any) -> bool:
    if not callback.restore_best_weights or callback.best_weights is None:
        return False
    # Keras 3 restores at the end of every training, tf_keras where it stops one.
    return isinstance(callback, keras.callbacks.EarlyStopping) or callback.stopped_epoch > 0


def _flat(callbacks: Any) -> Iterator[Any]:
    if callbacks is None:
        return
    members = getattr(callbacks, "callbacks", callbacks)  # of a CallbackList
    if not isinstance(members, Iterable):
        yield members
        return
    for each in members:
        yield from _flat(each) if isinstance(each, list | tuple) else [each]


def _classes(name: str) -> Any:
    libraries = [keras, *filter(None, [sys.modules.get("tf_keras")])]
    return tuple(getattr(library.callbacks, name) for library in libraries)

"""autolog(): one line, and every later `fit` and `tuner.search` is on record."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from mlflow_keras_adv.recorded_fits import RecordedFits
from mlflow_keras_adv.tracking.run import current_run, track

_enabled = False


def autolog(*, disable: bool = False) -> None:
    """Records every later `fit` as if an `MlflowLogger` had been passed to it.

    A fit inside a run is recorded there; any other opens a run, which ends with it and with its
    true status. The user's list of callbacks is left alone. A fit that is given an `MlflowLogger`
    is recorded by that one only. Works beside `mlflow.keras.autolog()`, whose metrics have other
    names. Models of tf_keras are included if that is imported before; so are the searches of Keras
    Tuner, as `track_search` records them.

    Args:
        disable: Puts `fit` and `search` back.
    """
    global _enabled
    _enabled = not disable
    if disable:
        _fits.take_off()
    else:
        _fits.put_on()
    if "keras_tuner" in sys.modules:
        from mlflow_keras_adv.tuner.search import record_searches

        record_searches(disable=disable)


def _place() -> AbstractContextManager[Any]:
    return nullcontext() if current_run() is not None else track()


_fits = RecordedFits(lambda: _enabled, _place)

"""autolog(): one line, and every later `fit` and `tuner.search` is on record."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from mlflow_keras_adv.recorded_fits import RecordedFits
from mlflow_keras_adv.tracking.run import current_run, track

_enabled = _nested = False


def autolog(*, nested: bool = False, disable: bool = False) -> None:
    """Records every later `fit` as if an `MlflowLogger` had been passed to it.

    A fit inside a run is recorded there; any other opens a run, which ends with it and with its
    true status. The user's list of callbacks is left alone. A fit that is given an `MlflowLogger`
    is recorded by that one only. Works beside `mlflow.keras.autolog()`, whose metrics have other
    names. Models of tf_keras are included if that is imported before; so are the searches of Keras
    Tuner, as `track_search` records them.

    Args:
        nested: Give each fit inside a run a child of its own, `fit-1`, `fit-2`, …, as the folds of
            a cross-validation need.
        disable: Records no later `fit` or `search` any more.
    """
    global _enabled, _nested
    _enabled, _nested = not disable, nested
    if disable:
        _fits.take_off()
    else:
        _fits.put_on()
    if "keras_tuner" in sys.modules:
        from mlflow_keras_adv.tuner.search import record_searches

        record_searches(disable=disable)


def _place() -> AbstractContextManager[Any]:
    run = current_run()
    if run is None:
        return track()
    if not _nested:
        return nullcontext()
    run.counts["nested fits"] += 1
    return run.child(f"fit-{run.counts['nested fits']}")


_fits = RecordedFits(lambda: _enabled, _place)

"""autolog(): records every later `fit` and `tuner.search`."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from mlflow_keras_adv.callbacks.recorded_fits import RecordedFits
from mlflow_keras_adv.tracking.addresses import say
from mlflow_keras_adv.tracking.run import Run, current_run, track
from mlflow_keras_adv.tracking.texts import safe

_enabled = _nested = _said = False


def autolog(*, nested: bool = False, disable: bool = False) -> None:
    """Records every later `fit` as if an `MlflowLogger` had been passed to it.

    A fit inside a run is recorded there; any other opens a run, which ends with it: FINISHED,
    FAILED or KILLED. The user's list of callbacks is left alone. A fit that is given an
    `MlflowLogger` is recorded by that one only. Works beside `mlflow.keras.autolog()`, whose
    metrics have other names. Models of tf_keras are included if that is imported before; so are the
    searches of Keras Tuner, as `track_search` records them. The first fit prints what is recorded
    and where, and that no model is: `mka.log_model` keeps one.

    Args:
        nested: Give each fit inside a run a child of its own, `fit-1`, `fit-2`, …, as the folds of
            a cross-validation need.
        disable: Stop recording.
    """
    global _enabled, _nested, _said
    _enabled, _nested, _said = not disable, nested, False
    if disable:
        _fits.take_off()
    else:
        _fits.put_on()
    if "keras_tuner" in sys.modules:
        from mlflow_keras_adv.tuner.search import record_searches

        record_searches(disable=disable)


def _place() -> AbstractContextManager[Any]:
    run = current_run()
    _say_once(run)
    if run is None:
        return track()
    if not _nested:
        return nullcontext()
    run.internals.counts["nested fits"] += 1
    return run.child(f"fit-{run.internals.counts['nested fits']}")


def _say_once(run: Run | None) -> None:
    """Says what is recorded, and where, and what is not, which users may expect."""
    global _said
    if _said:
        return
    _said = True
    say(
        "autolog records the settings, metrics and end of every fit "
        + ("in a run of its own" if run is None else f"in the run {safe(run.name)}")
        + ", and no model. To keep one: `with mka.track(...):` around the fit, and in it "
        "`mka.log_model(model, name=..., input_example=x[:2])`."
    )


_fits = RecordedFits(lambda: _enabled, _place)

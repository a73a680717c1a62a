"""autolog(): one line, and every later `fit` and `tuner.search` is on record."""

import functools
import inspect
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import keras

from mlflow_keras_adv.callbacks.mlflow_logger import MlflowLogger
from mlflow_keras_adv.tracking.run import current_run, track

# A fit with one of these is on record already, or is part of one that is.
_RECORDED = (MlflowLogger, keras.callbacks.CallbackList)

_enabled = False
# Per class our wrapper, and what the class itself (not its bases) had before; None for nothing.
_wrapped: dict[Any, tuple[Callable[..., Any], Any]] = {}


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
    for model_class in _model_classes():
        wrapper, found = _wrapped.get(model_class, (None, None))
        if not disable and wrapper is None:
            wrapper = _recorded(model_class.fit)
            _wrapped[model_class] = wrapper, vars(model_class).get("fit")
            model_class.fit = wrapper
        # Whoever wrapped `fit` after us keeps calling ours, which then only passes the call on.
        elif disable and wrapper is not None and vars(model_class).get("fit") is wrapper:
            del _wrapped[model_class]
            del model_class.fit
            if found is not None:
                model_class.fit = found
    if "keras_tuner" in sys.modules:
        from mlflow_keras_adv.tuner.search import record_searches

        record_searches(disable=disable)


def _recorded(original: Callable[..., Any]) -> Callable[..., Any]:
    position = list(inspect.signature(original).parameters).index("callbacks")

    @functools.wraps(original)
    def fit(*args: Any, **kwargs: Any) -> Any:
        given = args[position] if len(args) > position else kwargs.get("callbacks")
        callbacks = keras.tree.flatten(given) if given is not None else []
        if not _enabled or any(isinstance(each, _RECORDED) for each in callbacks):
            return original(*args, **kwargs)
        logger = MlflowLogger()
        # Passed as it was, by position or by name: MLflow's autologging looks at both.
        if len(args) > position:
            args = (*args[:position], [*callbacks, logger], *args[position + 1 :])
        else:
            kwargs["callbacks"] = [*callbacks, logger]
        with nullcontext() if current_run() is not None else track():
            try:
                return original(*args, **kwargs)
            finally:
                logger.leave()

    return fit


def _model_classes() -> list[Any]:
    libraries = [keras, *filter(None, [sys.modules.get("tf_keras")])]
    return [library.Model for library in libraries]

"""Every fit of a trial on record, whoever calls it and whichever callbacks it is given.

A callback passed to `tuner.search` would reach only tuners that hand it on: SklearnTuner takes
none, a subclass with a `run_trial` of its own may drop it, and Keras Tuner copies it deeply.
"""

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras

from mlflow_keras_adv.callbacks.mlflow_logger import MlflowLogger

# A fit with one of these is on record already, or is part of one that is.
_RECORDED = (MlflowLogger, keras.callbacks.CallbackList)

_lock = threading.Lock()
_blocks = 0  # of all threads
# Per class our wrapper, and what the class itself (not its bases) had before; None for nothing.
_wrapped: dict[Any, tuple[Callable[..., Any], Any]] = {}
_thread = threading.local()


@contextmanager
def recorded_fits() -> Iterator[None]:
    """Records each `fit` that this thread calls in the block, in the run that is current then.

    As if an `MlflowLogger` had been passed to it; the user's callbacks are left alone, and so are
    the fits of other threads.
    """
    global _blocks
    with _lock:
        _blocks += 1
        if _blocks == 1:
            _wrap()
    _thread.depth = getattr(_thread, "depth", 0) + 1
    try:
        yield
    finally:
        _thread.depth -= 1
        with _lock:
            _blocks -= 1
            if not _blocks:
                _unwrap()


def _wrap() -> None:
    for library in (keras, *filter(None, [sys.modules.get("tf_keras")])):
        model_class = library.Model
        wrapper = _recorded(model_class.fit)
        _wrapped[model_class] = wrapper, vars(model_class).get("fit")
        model_class.fit = wrapper


def _unwrap() -> None:
    while _wrapped:
        model_class, (wrapper, found) = _wrapped.popitem()
        # Whoever wrapped `fit` after us keeps calling ours, which then only passes the call on.
        if vars(model_class).get("fit") is wrapper:
            del model_class.fit
            if found is not None:
                model_class.fit = found


def _recorded(original: Callable[..., Any]) -> Callable[..., Any]:
    position = list(inspect.signature(original).parameters).index("callbacks")

    @functools.wraps(original)
    def fit(*args: Any, **kwargs: Any) -> Any:
        given = args[position] if len(args) > position else kwargs.get("callbacks")
        callbacks = keras.tree.flatten(given) if given is not None else []
        if not getattr(_thread, "depth", 0) or any(isinstance(c, _RECORDED) for c in callbacks):
            return original(*args, **kwargs)
        logger = MlflowLogger()
        if len(args) > position:
            args = (*args[:position], [*callbacks, logger], *args[position + 1 :])
        else:
            kwargs["callbacks"] = [*callbacks, logger]
        try:
            return original(*args, **kwargs)
        finally:
            logger.leave()

    return fit

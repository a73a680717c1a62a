"""Records every fit of a trial, whichever code calls it and whichever callbacks it gets.

A callback passed to `tuner.search` would reach only tuners that hand it on: SklearnTuner takes
none, a subclass with a `run_trial` of its own may drop it, and Keras Tuner copies it deeply.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from mlflow_keras_adv.callbacks.recorded_fits import RecordedFits

_thread = threading.local()
_fits = RecordedFits(lambda: getattr(_thread, "depth", 0) > 0, lambda: _thread.within())


@contextmanager
def recorded_fits(
    within: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[None]:
    """Records each `fit` that this thread calls in the block, in the run that is current then.

    As if an `MlflowLogger` had been passed to it; the user's callbacks are left alone, and so are
    the fits of other threads.

    Args:
        within: Opens the run in which a fit is recorded.
    """
    _fits.put_on()  # and stays: it adds nothing to a fit outside of such blocks
    _thread.depth = getattr(_thread, "depth", 0) + 1
    enclosing, _thread.within = getattr(_thread, "within", nullcontext), within
    try:
        yield
    finally:
        _thread.depth -= 1
        _thread.within = enclosing

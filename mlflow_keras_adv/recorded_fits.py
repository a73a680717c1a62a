"""RecordedFits: `fit` of every model, as if it had been given an `MlflowLogger`."""

import functools
import inspect
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras

from mlflow_keras_adv.callbacks.mlflow_logger import MlflowLogger

# A fit with one of these is on record already, or is part of one that is.
_RECORDED = (MlflowLogger, keras.callbacks.CallbackList)


class RecordedFits:
    """Stands before `fit` of Keras' models, and of tf_keras' where that is imported by then.

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
        # Per class our wrapper, and what the class itself (not its bases) had before; None for
        # nothing.
        self._wrapped: dict[Any, tuple[Callable[..., Any], Any]] = {}

    def put_on(self) -> None:
        """Takes the place of `fit`; may be repeated."""
        for library in (keras, *filter(None, [sys.modules.get("tf_keras")])):
            model_class = library.Model
            if model_class not in self._wrapped:
                wrapper = self._recorded(model_class.fit)
                self._wrapped[model_class] = wrapper, vars(model_class).get("fit")
                model_class.fit = wrapper

    def take_off(self) -> None:
        """Puts `fit` back; may be repeated."""
        for model_class, (wrapper, found) in list(self._wrapped.items()):
            # Whoever wrapped `fit` after us keeps calling ours; it is put back another time.
            if vars(model_class).get("fit") is wrapper:
                del self._wrapped[model_class]
                del model_class.fit
                if found is not None:
                    model_class.fit = found

    def _recorded(self, original: Callable[..., Any]) -> Callable[..., Any]:
        position = list(inspect.signature(original).parameters).index("callbacks")

        @functools.wraps(original)
        def fit(*args: Any, **kwargs: Any) -> Any:
            given = args[position] if len(args) > position else kwargs.get("callbacks")
            callbacks = keras.tree.flatten(given) if given is not None else []
            if not self._wanted() or any(isinstance(each, _RECORDED) for each in callbacks):
                return original(*args, **kwargs)
            logger = MlflowLogger()
            # Passed as it was, by position or by name: MLflow's autologging looks at both.
            if len(args) > position:
                args = (*args[:position], [*callbacks, logger], *args[position + 1 :])
            else:
                kwargs["callbacks"] = [*callbacks, logger]
            with self._within():
                try:
                    return original(*args, **kwargs)
                finally:
                    logger.leave()

        return fit

"""Fits: what passes through `fit` of every model, for those who need to know its begin and end."""

import functools
import inspect
import logging
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import keras

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.training.trainings import Training
from mlflow_keras_adv.training.watching import Fence

_logger = logging.getLogger(__name__)

# Asked at the begin of a fit, with the callbacks that it was given: further callbacks for it, and
# what it is to run in.
Addition = Callable[[list[Any]], tuple[list[Any], AbstractContextManager[Any]] | None]


class _Fits:
    """Stands before `fit` of Keras' models, and of tf_keras' where that is imported by then.

    Only as long as somebody needs it: a callback of ours that exists, `autolog`, a search.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._needed_by: WeakKeyDictionary[Any, Addition | None] = WeakKeyDictionary()
        # Per class our wrapper, and what the class itself (not its bases) had before; None for
        # nothing.
        self._wrapped: dict[Any, tuple[Callable[..., Any], Any]] = {}

    def hold(self, owner: Any, addition: Addition | None = None) -> None:
        """Has every `fit` be known, as long as `owner` lives or until it lets go.

        Args:
            owner: Who needs it.
            addition: What it adds to each fit.
        """
        with self._lock:
            self._needed_by[owner] = addition
            for library in (keras, *filter(None, [sys.modules.get("tf_keras")])):
                model_class = library.Model
                if model_class not in self._wrapped:
                    wrapper = self._known(model_class.fit)
                    self._wrapped[model_class] = wrapper, vars(model_class).get("fit")
                    model_class.fit = wrapper

    def let_go(self, owner: Any) -> None:
        """Puts `fit` back when nobody else needs it; may be repeated."""
        with self._lock:
            self._needed_by.pop(owner, None)
            if self._needed_by:
                return
            for model_class, (wrapper, found) in list(self._wrapped.items()):
                # Whoever wrapped `fit` after us keeps calling ours; it is put back another time.
                if vars(model_class).get("fit") is wrapper:
                    del self._wrapped[model_class]
                    del model_class.fit
                    if found is not None:
                        model_class.fit = found

    def _known(self, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)
        position = list(signature.parameters).index("callbacks")

        @functools.wraps(original)
        def fit(*args: Any, **kwargs: Any) -> Any:
            try:
                arguments = signature.bind(*args, **kwargs).arguments
            except TypeError:
                return original(*args, **kwargs)  # which says so better
            model = arguments.pop("self")
            given = arguments.get("callbacks")
            with ExitStack() as stack:
                callbacks = keras.tree.flatten(given) if given is not None else []
                added: list[Any] = []
                for addition in filter(None, list(self._needed_by.values())):
                    added += _entered(addition, [*callbacks, *added], stack)
                # Passed as it was, by position or by name: MLflow's autologging looks at both.
                if added and len(args) > position:
                    args = (*args[:position], [*callbacks, *added], *args[position + 1 :])
                elif added:
                    kwargs["callbacks"] = [*callbacks, *added]
                arguments["callbacks"] = [*callbacks, *added]
                stack.enter_context(Training(model, arguments))
                return original(*args, **kwargs)

        return fit


def _entered(addition: Addition, callbacks: list[Any], stack: ExitStack) -> list[Any]:
    """The callbacks that are added; what they are to be called in is entered, and left by `stack`.

    Raises:
        UserError: What a user has to know before the training begins.
    """
    try:
        more = addition(callbacks)
        if more is None:
            return []
        added, place = more
        place.__enter__()
    except UserError:
        raise
    except Exception as error:
        _logger.warning("A training is not recorded: %r", error)
        return []

    def leave(*raised: Any) -> bool:
        with Fence("The end of a training")():
            place.__exit__(*raised)
        return False

    stack.push(leave)
    return added


_fits = _Fits()
hold_fits = _fits.hold
let_go_of_fits = _fits.let_go

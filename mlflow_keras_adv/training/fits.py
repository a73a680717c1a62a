"""Fits: what passes through `fit` of every model, for those who need to know its begin and end.

Our function stands before `fit` from the import of this package on, or from that of Keras if it is
later. Any later would be too late: in `model.fit(x, callbacks=[MlflowLogger()])` Python looks up
`fit` before it makes the callback. A fit without anything of ours passes through. Nothing is
imported here: of Keras and tf_keras a program may use only one.
"""

import functools
import inspect
import logging
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.training.fence import Fence
from mlflow_keras_adv.training.trainings import Training

_logger = logging.getLogger(__name__)

# Asked at the begin of a fit, with the callbacks that it was given: further callbacks for it, and
# what it is to run in; None if it adds nothing.
Addition = Callable[[list[Any]], tuple[list[Any], AbstractContextManager[Any]] | None]

additions: list[Addition] = []


class AsksForTheEnd:
    """A callback that is one of these learns how its training ends; see `trainings`."""


def know_fits() -> None:
    """Stands before `fit` of Keras' models, and of tf_keras' where it is imported; may be repeated.

    Where another library has put a function of its own before ours since, that keeps calling ours.
    """
    for name in ("keras", "tf_keras"):
        model_class = getattr(sys.modules.get(name), "Model", None)
        if model_class is not None and model_class not in _known:
            _known.add(model_class)
            model_class.fit = _known_fit(model_class.fit)


_known: set[Any] = set()


def _known_fit(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)
    position = list(signature.parameters).index("callbacks")

    @functools.wraps(original)
    def fit(*args: Any, **kwargs: Any) -> Any:
        keras = sys.modules.get("keras")
        if keras is None:  # then nothing of ours is in use
            return original(*args, **kwargs)
        given = args[position] if len(args) > position else kwargs.get("callbacks")
        callbacks = [] if given is None else keras.tree.flatten(given)
        for each in callbacks:
            if isinstance(each, type) and issubclass(each, AsksForTheEnd):
                raise TypeError(
                    f"Received the class {each.__name__} among the callbacks; expected an "
                    f"instance: {each.__name__}(...)."
                )
        with ExitStack() as stack:
            added: list[Any] = []
            for addition in list(additions):
                added += _entered(addition, [*callbacks, *added], stack)
            if not _ask_for_the_end([*callbacks, *added]):
                return original(*args, **kwargs)
            # Passed as it was, by position or by name: MLflow's autologging looks at both.
            if added and len(args) > position:
                args = (*args[:position], [*callbacks, *added], *args[position + 1 :])
            elif added:
                kwargs["callbacks"] = [*callbacks, *added]
            arguments = _bound(signature, args, kwargs)
            if "self" in arguments:
                stack.enter_context(Training(arguments.pop("self"), arguments))
            return original(*args, **kwargs)

    return fit


def _ask_for_the_end(callbacks: list[Any]) -> bool:
    for each in callbacks:
        members = getattr(each, "callbacks", None)  # of a CallbackList
        if isinstance(each, AsksForTheEnd):
            return True
        if isinstance(members, list) and any(isinstance(one, AsksForTheEnd) for one in members):
            return True
    return False


def _bound(signature: inspect.Signature, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments by name; none if they do not fit, which `fit` says better."""
    try:
        return dict(signature.bind(*args, **kwargs).arguments)
    except TypeError:
        return {}


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

"""Methods of somebody else's object, replaced for the length of a block."""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.replacing import Replacement

_logger = logging.getLogger(__name__)

_Call = TypeVar("_Call", bound=Callable[..., Any])


@contextmanager
def hooked(owner: Any, **hooks: Callable[..., Any]) -> Iterator[None]:
    """Lets hooks stand before methods of one object, and puts it back as it was.

    Args:
        owner: The object. Neither its class nor any other object of it is changed.
        hooks: Per name of a method what is called in its place: with the method itself, and then
            what the caller passed. Plain functions: a copy of the object, as `copy.deepcopy` makes
            it of a callback that refers to a tuner, must not copy what they hold.
    """
    with ExitStack() as stack:
        for name, hook in hooks.items():
            stack.enter_context(Replacement(owner, name, _before(getattr(owner, name), hook)))
        yield


def harmless(call: _Call) -> _Call:
    """Makes of a function one that never raises, and leaves the user's random numbers alone.

    What records a trial must not end it, nor change it.
    """

    @keeps_random_state()
    @functools.wraps(call)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except Exception:
            _logger.warning("The search goes on, but its record has a gap.", exc_info=True)
            return None

    return guarded  # type: ignore[return-value]


def _before(method: Callable[..., Any], hook: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return hook(method, *args, **kwargs)

    return wrapper

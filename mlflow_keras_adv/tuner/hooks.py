"""Replaces methods of another object within a block."""

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
    """Replaces methods of one object by hooks, and restores them after the block.

    Args:
        owner: The object. Neither its class nor other objects of it are changed.
        hooks: By name of a method, the function that is called instead: with the method itself, and
            then the caller's arguments. They are plain functions, so that a deep copy of the object
            (of a callback that refers to a tuner, say) does not copy what they hold.
    """
    with ExitStack() as stack:
        for name, hook in hooks.items():
            stack.enter_context(Replacement(owner, name, _before(getattr(owner, name), hook)))
        yield


def harmless(call: _Call) -> _Call:
    """Wraps a function so that it never raises, and does not change the user's random state.

    Recording a trial must neither end nor change it.
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

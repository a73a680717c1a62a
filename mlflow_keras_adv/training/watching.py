"""Watching: observes methods of the user's objects without changing their behaviour.

The one rule: the observed call, its arguments and its result or exception stay as they are without
us. A failure of ours ends the recording, with one warning, and never the training.
"""

import functools
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from mlflow_keras_adv.replacing import Replacement
from mlflow_keras_adv.training.fence import Fence

_looking_away = threading.local()


@contextmanager
def looking_away() -> Iterator[None]:
    """Nothing is looked at in this thread meanwhile: what is called is not the training."""
    found = getattr(_looking_away, "now", False)
    _looking_away.now = True
    try:
        yield
    finally:
        _looking_away.now = found


# Receives the arguments of a call; is sent what the method returned, and closed if it raised.
Look = Callable[..., Generator[None, Any, None]]


class Watch:
    """Observes each call of a method of one instance, from `begin` to `end`.

    The method is called once, with the arguments of the caller, and its result or exception is
    passed on. After the first failure of an observer a warning says what is no longer recorded.

    Args:
        owner: The instance; nothing is done if it has no such method.
        name: Name of the method.
        what: The recorded values, for the warning.
        replays: Whether arguments that can be read only once (a generator, a `zip`) are kept, so
            that both sides can read them.
    """

    def __init__(self, owner: Any, name: str, *, what: str, replays: bool = False) -> None:
        self._what = what
        self._look: Look | None = None
        self._fence = Fence(what)
        self._place: Replacement | None = None
        if (original := getattr(owner, name, None)) is not None:
            self._place = Replacement(owner, name, self._wrapped(original, replays))

    def begin(self, look: Look) -> None:
        """Takes the method's place. What was made with it in an earlier place serves again.

        Args:
            look: A generator function: what stands before its `yield` runs before the method, what
                stands behind it receives the result, unless the method raised.
        """
        if self._place is not None:
            self._look, self._fence = look, Fence(self._what)
            self._place.begin()

    def end(self) -> None:
        """Puts back what was found, if nobody has replaced it since, and looks at nothing more."""
        self._look = None
        if self._place is not None:
            self._place.end()

    def _wrapped(self, original: Callable[..., Any], replays: bool) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            method = _as_the_caller_has_it(original)
            look, fence = self._look, self._fence
            if look is None or not fence.whole or getattr(_looking_away, "now", False):
                return method(*args, **kwargs)
            seen, seen_by_name = args, kwargs
            if replays:
                seen = tuple(_kept(each) for each in args)
                seen_by_name = {key: _kept(each) for key, each in kwargs.items()}
                args = tuple(_anew(each, kept) for each, kept in zip(args, seen, strict=True))
                kwargs = {key: _anew(each, seen_by_name[key]) for key, each in kwargs.items()}
            looking: Generator[None, Any, None] | None = None
            with fence():
                looking = look(*seen, **seen_by_name)
                next(looking, None)
            try:
                result = method(*args, **kwargs)
            except BaseException:
                if looking is not None:
                    with fence():
                        looking.close()
                raise
            if looking is not None and fence.whole:
                with fence():
                    _send(looking, result)
            return result

        if hasattr(original, "__name__"):
            # Not its attributes: TensorFlow would take ours for theirs, and call theirs.
            functools.update_wrapper(watched, original, updated=())
        # AutoGraph calls what is marked so as it stands; `_as_the_caller_has_it` sees to the rest.
        watched.autograph_info__ = None  # type: ignore[attr-defined]
        return watched


def watch_method(
    owner: Any, name: str, look: Look, *, what: str, replays: bool = False
) -> Callable[[], None]:
    """Begins a `Watch`, and returns the function that ends it."""
    watch = Watch(owner, name, what=what, replays=replays)
    watch.begin(look)
    return watch.end


def _as_the_caller_has_it(method: Callable[..., Any]) -> Callable[..., Any]:
    """Converted by AutoGraph, if that would have converted it without us in between."""
    autograph = tf.__internal__.autograph  # what Keras 2 called layers with; no public name
    context = autograph.control_status_ctx()
    if context.status.name != "ENABLED":
        return method
    return autograph.tf_convert(method, context)


def _kept(argument: Any) -> Any:
    return list(argument) if isinstance(argument, Iterator) else argument


def _anew(argument: Any, kept: Any) -> Any:
    """The argument once more: as it was, or an iterator of its kind, as an error may name it."""
    if kept is argument:
        return argument
    if isinstance(argument, Generator):
        return (each for each in kept)
    if isinstance(argument, zip) and kept:
        return zip(*zip(*kept, strict=True), strict=True)
    if isinstance(argument, map):
        return map(_itself, kept)
    return iter(kept)


def _itself(value: Any) -> Any:
    return value


def _send(looking: Generator[None, Any, None], result: Any) -> None:
    try:
        looking.send(result)
    except StopIteration:
        return
    raise RuntimeError("A look has one yield.")

"""An unknown keyword of a public callable raises an error that suggests the right one."""

import difflib
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any


def answers_keywords(value: Any) -> Any:
    """Makes the TypeError for an unknown keyword name the closest known one.

    Python does so from 3.13 on, but does not list the keywords.

    Args:
        value: A function, a class or another public object.

    Returns:
        A wrapped function, which also replaces the original in its module, where pickle looks for
        it. A class is changed in place; other objects are returned unchanged.
    """
    if isinstance(value, type):
        made: Any = vars(value).get("__init__")  # an inherited one is another's
        if (
            inspect.isfunction(made)
            and not hasattr(made, _MARK)
            and not getattr(value, "_is_protocol", False)
        ):
            value.__init__ = _answering(made, value.__name__)  # type: ignore[misc]
    elif inspect.isfunction(value) and not hasattr(value, _MARK):
        name, home = value.__name__, sys.modules[value.__module__]
        answering = _answering(value, name)
        if vars(home).get(name) is value:
            setattr(home, name, answering)
        return answering
    return value


_MARK = "__answers_keywords__"


def _answering(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    signature = inspect.signature(function)
    named = [
        each.name
        for each in signature.parameters.values()
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) and each.name != "self"
    ]
    in_order = [
        each.name
        for each in signature.parameters.values()
        if each.kind is each.POSITIONAL_OR_KEYWORD and each.name != "self"
    ]
    takes_more = any(each.kind is each.VAR_POSITIONAL for each in signature.parameters.values())
    takes_any = any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values())

    @functools.wraps(function)
    def answering(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except TypeError:
            unknown = [each for each in kwargs if each not in named]
            if takes_any:  # it hands on what it does not know itself, where that may be welcome
                free = [each for each in named if each not in kwargs]
                unknown = [each for each in unknown if _near(each, free, 0.75)]
            if unknown:
                raise TypeError(_answer(name, unknown[0], named)) from None
            if len(args) - ("self" in signature.parameters) > len(in_order) and not takes_more:
                raise TypeError(_too_many(name, in_order, named)) from None
            raise

    # Keras reads the arguments of its objects from here, and does not look through wrappers.
    answering.__signature__ = signature  # type: ignore[attr-defined]
    setattr(answering, _MARK, True)
    return answering


def _answer(name: str, received: str, named: list[str]) -> str:
    near = _near(received, named, 0.5)
    meant = f"Did you mean {near[0]!r}? " if near else ""
    return (
        f"{name}() received the keyword {received!r}, which it does not have. {meant}It has: "
        f"{', '.join(named) or 'none'}."
    )


def _too_many(name: str, in_order: list[str], named: list[str]) -> str:
    others = ", ".join(f"{each}=" for each in named if each not in in_order)
    return (
        f"{name}() received too many arguments without a name; it takes "
        f"{', '.join(in_order) or 'none'} so, and by name: {others or 'nothing else'}."
    )


def _near(received: str, named: list[str], cutoff: float) -> list[str]:
    return difflib.get_close_matches(received, named, n=1, cutoff=cutoff)

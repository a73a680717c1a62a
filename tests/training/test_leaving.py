"""exception_leaving: a `break` is told from an exception, and one exception from another."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from mlflow_keras_adv.training.leaving import LeftByAnExceptionError, exception_leaving

SEEN = sys.version_info >= (3, 12)  # exceptions of the interpreter's own, too


class Numbers:
    """Endless; notes what left it."""

    def __init__(self, found: list[Any]) -> None:
        self._found = found

    def __iter__(self) -> "Numbers":
        return self

    def __next__(self) -> int:
        return 1

    def __del__(self) -> None:
        self._found.append(exception_leaving(sys._getframe(1), interrupted=False))


class Passes:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *raised: object) -> bool:
        return False


def breaks(found: list[Any]) -> None:
    for _ in Numbers(found):
        break


def breaks_inside_a_with(found: list[Any]) -> None:
    for _ in Numbers(found):
        with Passes():
            break


def returns(found: list[Any]) -> int:
    for each in Numbers(found):
        return each
    return 0


def breaks_after_an_error_that_is_kept(found: list[Any]) -> None:
    kept: list[Exception] = []
    for _ in Numbers(found):
        try:
            raise ValueError("caught")
        except ValueError as error:
            kept.append(error)
        break


def raises(found: list[Any]) -> None:
    for _ in Numbers(found):
        raise ValueError("out")


def raises_in_a_call(found: list[Any]) -> None:
    for _ in Numbers(found):
        fails()


def raises_again(found: list[Any]) -> None:
    for _ in Numbers(found):
        try:
            fails()
        except ValueError:
            raise


def raises_through_a_with(found: list[Any]) -> None:
    for _ in Numbers(found):
        with Passes():
            fails()


def raises_through_a_finally(found: list[Any]) -> None:
    for _ in Numbers(found):
        try:
            fails()
        finally:
            found[:0] = []


def raises_and_catches_in_one_function(found: list[Any]) -> None:
    try:
        for _ in Numbers(found):
            fails()
    except ValueError:
        pass


def raises_one_of_the_interpreter(found: list[Any]) -> None:
    for each in Numbers(found):
        each / 0


def fails() -> None:
    raise ValueError("out")


@pytest.mark.parametrize(
    "loop", [breaks, breaks_inside_a_with, returns, breaks_after_an_error_that_is_kept]
)
def test_a_loop_that_ends_by_itself_is_left_by_nothing(loop: Callable[[list[Any]], Any]) -> None:
    found: list[Any] = []
    loop(found)
    assert found == [None]


@pytest.mark.parametrize(
    "loop",
    [
        raises,
        raises_in_a_call,
        raises_again,
        raises_through_a_with,
        raises_through_a_finally,
        raises_and_catches_in_one_function,
    ],
)
def test_an_exception_that_leaves_a_loop_is_found(loop: Callable[[list[Any]], Any]) -> None:
    found: list[Any] = []
    caught: list[BaseException] = []
    try:
        loop(found)
    except ValueError as error:
        caught.append(error)
    (left,) = found
    assert isinstance(left, ValueError)
    assert left.args == ("out",)
    assert not caught or left is caught[0]


def test_one_that_is_no_object_yet_is_an_exception_all_the_same() -> None:
    found: list[Any] = []
    with pytest.raises(ZeroDivisionError):
        raises_one_of_the_interpreter(found)
    (left,) = found
    assert isinstance(left, ZeroDivisionError if SEEN else LeftByAnExceptionError)

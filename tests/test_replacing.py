"""What somebody else has, replaced for a time."""

import types
from typing import Any

import pytest
import tensorflow as tf

from mlflow_keras_adv.replacing import Replacement


class Owner:
    def method(self) -> str:
        return "theirs"


def ours(*_: Any) -> str:
    return "ours"


def _instance() -> Any:
    return Owner()


def _instance_with_its_own() -> Any:
    owner: Any = Owner()
    owner.method = lambda: "its own"
    return owner


def _class() -> Any:
    return type("Copy", (), {"method": staticmethod(lambda: "theirs")})


def _subclass() -> Any:
    return type("Sub", (Owner,), {})


def _module() -> Any:
    module: Any = types.ModuleType("theirs")
    module.method = lambda: "theirs"
    return module


@pytest.mark.parametrize(
    "made",
    [_instance, _instance_with_its_own, _class, _subclass, _module],
    ids=lambda f: f.__name__,
)
def test_what_was_found_is_put_back(made: Any) -> None:
    owner = made()
    before = dict(vars(owner))
    with Replacement(owner, "method", ours) as replacement:
        assert owner.method is ours or owner.method() == "ours"
        assert replacement.stands
        replacement.begin()  # it stands already
    assert dict(vars(owner)) == before
    assert not replacement.stands
    assert not replacement.end()


def test_what_somebody_has_put_there_since_stays() -> None:
    owner: Any = Owner()
    replacement = Replacement(owner, "method", ours)
    replacement.begin()
    theirs = owner.method = lambda: "newer"
    assert not replacement.stands
    assert not replacement.end()
    assert owner.method is theirs

    replacement.begin()  # and is what is found the next time
    assert owner.method() == "ours"
    assert replacement.found is theirs
    assert replacement.end()
    assert owner.method is theirs


def test_several_end_in_any_order_and_leave_nothing_of_theirs_out() -> None:
    owner: Any = Owner()
    outer, inner = Replacement(owner, "method", ours), Replacement(owner, "method", lambda: "inner")
    outer.begin()
    inner.begin()
    assert not outer.end()
    assert inner.end()
    assert owner.method() == "ours"
    assert outer.end()
    assert owner.method() == "theirs"
    assert not vars(owner)


def test_it_knows_its_own_in_the_wrapper_that_tensorflow_puts_around_it() -> None:
    module = tf.Module()
    module.members = [1]
    others = [2]
    with Replacement(module, "members", others):
        assert module.members == others
        assert module.members is not others
    assert module.members == [1]

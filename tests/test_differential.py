"""The differential sees what it is there to see: an observer of each bad kind is found out."""

import random
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from tests.differential import Watch, difference
from tests.peers.programs.data import table
from tests.peers.programs.guides import CROSSENTROPY, classifier


class _Spoiled(Watch):
    """Does one thing to the model at the end of each epoch."""

    def __init__(self, spoil: Callable[[Any], Any]) -> None:
        self._spoil = spoil

    @property
    def callbacks(self) -> list[Any]:
        return [keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: self._spoil(self.model))]


def _program(watch: Any) -> Any:
    x, y = table()
    watch.model = model = classifier()
    model.compile("adam", CROSSENTROPY, jit_compile=False)
    history = model.fit(x, y, epochs=2, verbose=0, callbacks=watch.callbacks)
    return model, history


def _one_bit(model: Any) -> None:
    bias = model.layers[-1].bias
    bias.assign(np.nextafter(np.asarray(bias.value), np.float32(1)))


def _wrap_function(model: Any) -> None:
    function = model.train_function
    model.train_function = lambda iterator: function(iterator)


def _raise(model: Any) -> None:
    raise NotImplementedError("of the observer")


@pytest.mark.parametrize(
    ("spoil", "seen"),
    [
        (_one_bit, "/0/variables/3"),
        (lambda model: model.optimizer.iterations.assign_add(1), "/0/optimizer/variables/0"),
        (lambda model: setattr(model, "observed", True), "/0/attributes/observed: only observed"),
        (lambda model: setattr(model, "fit", len), "/0/attributes/fit: only observed"),
        (lambda model: setattr(model.optimizer, "apply", len), "/0/optimizer/attributes/apply"),
        (_wrap_function, "/0/attributes/train_function"),
        (lambda model: random.random(), "random/python"),
        (lambda model: np.random.random(), "random/numpy"),
        (lambda model: keras.random.uniform([]), "random/keras"),
        (lambda model: warnings.warn("of the observer", stacklevel=1), "warnings"),
        (_raise, "raised, observed only: NotImplementedError"),
    ],
)
def test_it_sees_an_observer_that_changes_something(spoil: Callable[[Any], Any], seen: str) -> None:
    lines = difference(_program, _Spoiled(spoil))
    assert any(line.startswith(seen) for line in lines), lines


def test_it_sees_nothing_where_nothing_is_changed() -> None:
    assert difference(_program, _Spoiled(lambda model: model.get_weights())) == []
    assert difference(_program, Watch()) == []

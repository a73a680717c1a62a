"""Watch: whoever calls a watched method, and the method, notice nothing."""

import inspect
import logging
from collections.abc import Generator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from mlflow_keras_adv.training.watching import Watch, watch_method


class Adder:
    def add(self, first: Any, second: Any = ()) -> Any:
        """Adds."""
        return sum([*first, *second])


def test_the_method_gets_what_the_caller_gives_and_the_caller_what_it_returns() -> None:
    adder, seen = Adder(), list[Any]()

    def look(first: Any, second: Any = ()) -> Generator[None, Any, None]:
        seen.append((first, second))
        seen.append((yield))

    end = watch_method(adder, "add", look, what="Sums")
    assert adder.add([1], second=[2]) == 3
    assert seen == [([1], [2]), 3]
    assert inspect.signature(adder.add) == inspect.signature(Adder().add)
    assert adder.add.__doc__ == "Adds."
    end()
    assert vars(adder) == {}


@pytest.mark.parametrize(
    "made",
    [lambda: (each for each in [1, 2]), lambda: map(int, "12"), lambda: iter([1, 2])],
    ids=["generator", "map", "iterator"],
)
def test_what_can_be_read_once_is_read_by_both(made: Any) -> None:
    adder, seen = Adder(), list[Any]()

    def look(first: Any, second: Any = ()) -> Generator[None, Any, None]:
        seen.append(list(second))
        yield

    watch_method(adder, "add", look, what="Sums", replays=True)
    assert adder.add([], made()) == adder.add([], second=made()) == 3
    assert seen == [[1, 2], [1, 2]]


def test_an_iterator_stays_one_for_the_method() -> None:
    class Counts:
        def count(self, values: Any) -> int:
            return len(values)

    counts = Counts()

    def look(values: Any) -> Generator[None, Any, None]:
        yield

    watch_method(counts, "count", look, what="Counts", replays=True)
    for once in ((each for each in [1]), map(int, "1"), zip([1], [2], strict=True), iter([1])):
        kind = type(once).__name__
        with pytest.raises(TypeError, match=f"object of type '{kind}' has no len"):
            counts.count(once)


@pytest.mark.parametrize("where", ["at the call", "before", "behind", "twice"])
def test_a_look_that_fails_is_the_last_and_said_once(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    adder, looks = Adder(), list[int]()

    def look(first: Any, second: Any = ()) -> Generator[None, Any, None]:
        looks.append(1)
        if where == "before":
            raise RuntimeError("ours")
        yield
        if where == "behind":
            raise RuntimeError("ours")
        if where == "twice":
            yield

    def takes_nothing() -> Generator[None, Any, None]:
        yield

    chosen: Any = takes_nothing if where == "at the call" else look
    watch_method(adder, "add", chosen, what="The sums of the test")
    with caplog.at_level(logging.WARNING, "mlflow_keras_adv"):
        assert [adder.add([1, 2]) for _ in range(3)] == [3, 3, 3]
    (said,) = caplog.records
    assert "The sums of the test" in said.getMessage()
    assert len(looks) <= 1


def test_an_exception_of_the_method_is_the_callers_and_closes_the_look() -> None:
    class Fails:
        def fail(self) -> None:
            raise KeyError("theirs")

    fails, closed = Fails(), list[bool]()

    def look() -> Generator[None, Any, None]:
        try:
            yield
        finally:
            closed.append(True)

    watch_method(fails, "fail", look, what="Nothing")
    with pytest.raises(KeyError, match="theirs"):
        fails.fail()
    assert closed == [True]


def test_what_somebody_has_put_over_it_stays_and_goes_on_without_us() -> None:
    adder, seen = Adder(), list[Any]()

    def look(first: Any, second: Any = ()) -> Generator[None, Any, None]:
        seen.append(first)
        yield

    end = watch_method(adder, "add", look, what="Sums")
    ours = adder.add
    adder.add = theirs = lambda first: 10 * ours(first)  # type: ignore[method-assign]
    assert adder.add([1]) == 10
    end()
    assert adder.add is theirs
    assert adder.add([1]) == 10
    assert seen == [[1]], "not looked at after the end"


def test_what_was_found_on_the_instance_is_put_back() -> None:
    adder = Adder()
    adder.add = own = lambda first: 7  # type: ignore[method-assign]

    def look(first: Any) -> Generator[None, Any, None]:
        yield

    end = watch_method(adder, "add", look, what="Sums")
    assert adder.add([1]) == 7
    end()
    assert adder.add is own


def test_a_watch_that_begins_again_serves_what_was_made_with_it() -> None:
    adder, seen = Adder(), list[str]()

    def look_as(name: str) -> Any:
        def look(first: Any, second: Any = ()) -> Generator[None, Any, None]:
            seen.append(name)
            yield

        return look

    watch = Watch(adder, "add", what="Sums")
    watch.begin(look_as("first"))
    kept = adder.add
    watch.end()
    kept([1])
    watch.begin(look_as("second"))
    kept([1])
    watch.end()
    assert seen == ["second"]


class Branching(keras.Sequential):
    """A step that AutoGraph has to convert: it branches on a tensor."""

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(y - self(x, training=True)))
        gradients = tape.gradient(loss, self.trainable_variables)
        if loss > 0.5:  # noqa: SIM108
            rate = 0.1
        else:
            rate = 0.01
        for gradient, variable in zip(gradients, self.trainable_variables, strict=True):
            variable.assign_sub(rate * gradient)
        return {"loss": loss}


@pytest.mark.parametrize("watched", [False, True])
def test_autograph_converts_the_method_as_without_us(watched: bool) -> None:
    keras.utils.set_random_seed(0)
    model = Branching([keras.Input((2,)), keras.layers.Dense(1)])
    looks: list[int] = []

    def look(data: Any) -> Generator[None, Any, None]:
        looks.append(1)
        yield

    if watched:
        watch_method(model, "train_step", look, what="Steps")
    step = tf.function(model.train_step)
    batch = tf.ones([4, 2]), tf.ones([4, 1])
    losses = [float(step(batch)["loss"]) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert len(looks) == (1 if watched else 0)
    np.testing.assert_array_equal(losses, LOSSES.setdefault("plain", losses))


LOSSES: dict[str, list[float]] = {}

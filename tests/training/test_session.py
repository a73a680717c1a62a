"""TrainingSession: when the tables are read, and by whom."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from mlflow_keras_adv.training.readings import Readings
from mlflow_keras_adv.training.session import HAND_IN_SECONDS, TrainingSession


class Clock:
    """Monotonic time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """A session on one variable, whose steps write their number; notes when each is handed in."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.optimizer = keras.optimizers.SGD(0.0)
        self.variable = keras.Variable([0.0])
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        self.session = TrainingSession(
            model, {"optimizer": self.optimizer}, token=object(), clock=self.clock
        )
        self.session.subscribe(self._receive)
        self.produced: list[float] = []
        self.handed_in: list[float] = []
        self.numbers: list[float] = []
        self.readings = 0

    def step(self, seconds: float, *, update: bool = True) -> None:
        self.session.advance(np.zeros([2, 1], np.float32))
        self.session.primary.write("batch/number", len(self.produced))
        if update:
            self.optimizer.apply([tf.ones([1])], [self.variable])
        self.clock.now += seconds
        self.produced.append(self.clock.now)

    def _receive(self, readings: Readings) -> None:
        self.readings += 1
        self.handed_in += [self.clock.now] * readings.batches
        self.numbers += readings.columns["batch/number"].tolist()


@pytest.fixture
def watched() -> Iterator[Watched]:
    watched = Watched()
    yield watched
    watched.session.close()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """With tables of 16 rows."""
    monkeypatch.setattr("mlflow_keras_adv.training.observe.CAPACITY", 16)
    watched = Watched()
    yield watched
    watched.session.close()


@pytest.mark.parametrize("seconds", [0.05, 0.9, 2.4, 4.9, 60.0])
@pytest.mark.parametrize("steps", [1, 3])
def test_what_was_produced_is_handed_in_within_the_bound(
    seconds: float, steps: int, watched: Watched
) -> None:
    """Steps of equal length, `steps` of them in one call, during which nothing can be read."""
    calls = max(4, int(12 / (seconds * steps)))
    for call in range(calls):
        watched.session.steps_begin(steps, call * steps)
        for _ in range(steps):
            watched.step(seconds)
    watched.session.steps_end()
    assert watched.numbers == list(range(calls * steps))
    waited = np.subtract(watched.handed_in, watched.produced)
    in_its_call = (steps - 1) * seconds
    assert waited.max() <= max(HAND_IN_SECONDS, in_its_call) + 1e-6
    # And not more often than it needs: two readings are most of the bound apart.
    apart = np.diff(np.unique(watched.handed_in))
    assert apart.min() >= min(HAND_IN_SECONDS / 2, seconds * steps) - 1e-6 or len(apart) < 3


def test_a_pause_between_epochs_is_no_long_step(watched: Watched) -> None:
    for _ in range(3):
        for batch in range(10):
            watched.session.steps_begin(1, batch)
            watched.step(0.01)
        watched.session.read()
        watched.clock.now += 100  # validation
    assert watched.readings == 3


def test_however_many_callbacks_look_on_each_batch_counts_once(small: Watched) -> None:
    capacity = small.session.primary.capacity
    for batch in range(capacity - 1):
        for _ in range(4):
            small.session.steps_begin(1, batch)
        small.step(0.0)
    assert small.readings == 0
    for batch in range(capacity - 1, 2 * capacity):
        small.session.steps_begin(1, batch)
        small.step(0.0)
    small.session.read()
    assert small.numbers == list(range(2 * capacity)), "none was overwritten"


def test_a_reading_between_two_hooks_of_one_batch_loses_no_row(small: Watched) -> None:
    capacity = small.session.primary.capacity
    for batch in range(capacity + 2):
        small.session.steps_begin(1, batch)
        if batch == 0:
            small.session.read()
        small.step(0.0)
    small.session.read()
    assert small.numbers == list(range(capacity + 2))


def test_a_batch_without_update_waits_for_one_that_completes_it(watched: Watched) -> None:
    for batch in range(3):
        watched.session.steps_begin(1, batch)
        watched.step(1.0, update=batch != 2)
    watched.session.steps_end()
    assert watched.numbers == [0, 1]
    norms: list[Any] = []
    watched.session.subscribe(lambda r: norms.extend(r.columns["gradient/norm"].tolist()))
    until: list[float] = []
    watched.session.subscribe(lambda readings: until.append(readings.until))
    watched.clock.now += 100
    watched.optimizer.apply([3 * tf.ones([1])], [watched.variable])
    watched.session.read()
    assert watched.numbers == [0, 1, 2]
    assert norms == [3.0]
    assert until == [1003.0], "when the batch ended, not when it was read"


def test_a_model_that_is_saved_has_its_steps_on_record_before(
    watched: Watched, tmp_path: Path
) -> None:
    model = watched.session.model
    watched.session.steps_begin(1, 0)
    watched.step(0.0)
    model.save_weights(tmp_path / "some.weights.h5")
    assert watched.numbers == [0]
    watched.session.steps_begin(1, 1)
    watched.step(0.0)
    model.save(tmp_path / "model.keras")
    assert watched.numbers == [0, 1]
    watched.session.close()
    assert not {"save", "save_weights"} & set(vars(model))

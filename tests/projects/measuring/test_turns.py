"""Who trains when, and what is made of the times; the clock is the test's own."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from projects.measuring import turns
from projects.measuring.turns import Pairs, Training, Turn, Turns, race


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    fake = SimpleNamespace(now=0.0)
    monkeypatch.setattr(turns.time, "perf_counter", lambda: fake.now)
    return fake


def training(
    name: str, log: list[str], clock: SimpleNamespace, seconds: Callable[[int], float]
) -> Training:
    """Epochs that take `seconds(epoch)` each, and 100 s until what they log is delivered."""

    def settle() -> None:
        log.append(f"{name} settles")
        clock.now += 100

    def train(own: Turns) -> None:
        own.set_model(SimpleNamespace(stop_training=False))
        own.settle = settle
        epoch = 0
        while not own.model.stop_training:
            own.on_epoch_begin(epoch)
            log.append(name)
            clock.now += seconds(epoch)
            own.on_epoch_end(epoch)
            epoch += 1
        log.append(f"{name} ends")

    return train


def test_one_trains_at_a_time_with_the_reference_before_and_after(clock: SimpleNamespace) -> None:
    log: list[str] = []
    reference = training("reference", log, clock, lambda epoch: 1.0)
    others = {name: training(name, log, clock, lambda epoch: 1.0) for name in "ab"}

    race(reference, others, rounds=2, seed=0)

    played = [log[place : place + 3] for place in range(0, len(log) - 3, 3)]
    names = [turn[0] for turn in played]
    assert played == [[name, name, f"{name} settles"] for name in names]
    assert names[:4] == ["reference", "a", "b", "reference"]  # each traces its step, then it begins
    assert names[5::2] == ["reference"] * 4
    assert sorted(names[4:7:2]) == sorted(names[8::2]) == ["a", "b"]
    assert sorted(log[-3:]) == ["a ends", "b ends", "reference ends"]


def test_the_second_epoch_counts_and_delivery_is_timed_apart(clock: SimpleNamespace) -> None:
    log: list[str] = []
    reference = training("reference", log, clock, lambda epoch: 1.0)
    other = training("other", log, clock, lambda epoch: 3.0 if epoch % 2 else 50.0)

    pairs = race(reference, {"other": other}, rounds=3)["other"]

    assert pairs.turns == [Turn(seconds=3.0, settling=100.0)] * 3
    assert pairs.before == pairs.after == [Turn(seconds=1.0, settling=100.0)] * 3
    np.testing.assert_array_equal(pairs.ratios, [3.0] * 6)
    assert (pairs.seconds, pairs.reference_seconds, pairs.settling) == (3.0, 1.0, 100.0)


def test_a_steady_drift_cancels() -> None:
    # Every turn takes twice as long as the one before it, so the two trainings are equal.
    times = [Turn(2.0**place, 0.0) for place in range(7)]
    pairs = Pairs(turns=times[1::2], before=times[0:6:2], after=times[2::2])

    assert np.exp(np.median(np.log(pairs.ratios))) == 1


@pytest.mark.parametrize("breaks_in", [0, 3])
def test_what_a_training_raises_ends_them_all(clock: SimpleNamespace, breaks_in: int) -> None:
    log: list[str] = []

    def broken(epoch: int) -> float:
        if epoch == breaks_in:
            raise ZeroDivisionError
        return 1.0

    reference = training("reference", log, clock, lambda epoch: 1.0)
    with pytest.raises(ZeroDivisionError):
        race(reference, {"broken": training("broken", log, clock, broken)}, rounds=5)

    assert log[-1] == "reference ends"


def test_a_training_that_ends_by_itself_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="ended by itself"):
        race(lambda own: None, {}, rounds=1)

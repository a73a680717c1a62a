"""Trainings that take turns, so that what slows the machine down slows all of them alike.

Each training is one long `fit` or loop in a thread of its own, as it is in life: traced once, its
callbacks and their background threads alive. One of them trains at a time. A turn is two epochs, of
which the second is timed: while it runs, the values of the first are on their way to the store, as
in every epoch but the first of a long training. At the end of a turn everything is delivered, so
that nobody pays for the values of another. The reference has a turn before and after each turn of
the others, which gives two ratios: a drift raises one and lowers the other. (Against the mean of
the two, equal trainings would not seem equal: a mean catches a disturbance more often than the
single turn beside it.)

The alternative, one `fit` per turn in one thread, would trace the step again at each, and never
have a value under way.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import keras
import numpy as np

# The epochs of a training whose end is decided by its turns.
ENDLESS = 10**9


@dataclass(frozen=True)
class Turn:
    """What one turn took.

    Attributes:
        seconds: The second of its two epochs, with all that callbacks do at its end.
        settling: From then until all values of both epochs were delivered, in seconds.
    """

    seconds: float
    settling: float


class Turns(keras.callbacks.Callback):
    """Makes a training wait for its turns. Last of the callbacks: the others' work is timed.

    Attributes:
        settle: Waits until what the training has logged is delivered. The training sets it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.settle: Callable[[], object] = lambda: None
        self._go: SimpleQueue[bool] = SimpleQueue()
        self._done: SimpleQueue[Turn | None] = SimpleQueue()
        self._training: Future[None] = Future()
        self._began = 0.0

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Starts the clock."""
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Ends the turn after its second epoch, and waits for the next."""
        trained = time.perf_counter()
        if epoch % 2:
            self.settle()
            self._done.put(Turn(trained - self._began, time.perf_counter() - trained))
            self.model.stop_training = not self._go.get()

    def start(self, training: "Training", executor: Executor) -> None:
        """Starts the training in a thread, and waits for the end of its first turn."""
        self._training = executor.submit(training, self)
        self._training.add_done_callback(lambda _: self._done.put(None))
        self._end_of_turn()

    def take(self) -> Turn:
        """Lets the training have one more turn, and waits for its end."""
        self._go.put(True)
        return self._end_of_turn()

    def end(self) -> None:
        """Makes the training end instead of waiting for another turn."""
        self._go.put(False)

    def _end_of_turn(self) -> Turn:
        turn = self._done.get()
        if turn is None:
            self._training.result()  # raises what the training raised
            raise RuntimeError("A training ended by itself; expected it to go on until stopped.")
        return turn


Training = Callable[[Turns], None]


@dataclass(frozen=True)
class Pairs:
    """The turns of a training, and those of the reference around them; one of each per round."""

    turns: list[Turn] = field(default_factory=list)
    before: list[Turn] = field(default_factory=list)
    after: list[Turn] = field(default_factory=list)

    @property
    def ratios(self) -> np.ndarray:
        """Time of an epoch as a multiple of the reference's just before and just after."""
        before, after = _seconds(self.before), _seconds(self.after)
        return np.concatenate([_seconds(self.turns) / before, _seconds(self.turns) / after])

    @property
    def seconds(self) -> float:
        """Median time of an epoch."""
        return float(np.median(_seconds(self.turns)))

    @property
    def reference_seconds(self) -> float:
        """Median time of an epoch of the reference."""
        return float(np.median(_seconds(self.before + self.after)))

    @property
    def settling(self) -> float:
        """Median time in seconds from the end of two epochs until their values are delivered."""
        return float(np.median([turn.settling for turn in self.turns]))


def race(
    reference: Training, others: Mapping[str, Training], *, rounds: int, seed: int = 0
) -> dict[str, Pairs]:
    """Has trainings take turns.

    Args:
        reference: What the others are compared with. Like them it is called with a `Turns`, uses it
            as its last callback and trains until that stops it.
        others: The others by name.
        rounds: Turns of each. The first one of each training, which traces the step, does not
            count.
        seed: Seed of the order within a round.

    Returns:
        For each of the others what its turns took.
    """
    order = np.random.default_rng(seed)
    pairs = {name: Pairs() for name in others}
    with _started([reference, *others.values()]) as (first, *rest):
        turns = dict(zip(others, rest, strict=True))
        before = first.take()
        for _ in range(rounds):
            for name in order.permutation(list(others)):
                pairs[name].before.append(before)
                pairs[name].turns.append(turns[name].take())
                before = first.take()
                pairs[name].after.append(before)
    return pairs


@contextmanager
def _started(trainings: Sequence[Training]) -> Iterator[list[Turns]]:
    """Starts the trainings one after the other, and ends them all."""
    turns = [Turns() for _ in trainings]
    with ThreadPoolExecutor(len(trainings)) as executor:
        try:
            for each, training in zip(turns, trainings, strict=True):
                each.start(training, executor)
            yield turns
        finally:
            for each in turns:
                each.end()


def _seconds(turns: Sequence[Turn]) -> np.ndarray:
    return np.array([turn.seconds for turn in turns])

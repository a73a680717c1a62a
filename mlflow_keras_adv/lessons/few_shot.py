"""Few-shot tasks: tell N classes apart after seeing K samples of each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
    """Several tasks; each array's first axis counts them.

    Attributes:
        x: Samples to learn from, shape [tasks, ways * shots, ...].
        y: Their labels within the task, int32 from 0 to ways - 1, shape [tasks, ways * shots].
        queries: Other samples, to evaluate on, shape [tasks, ways * queries, ...].
        labels: Their labels.
    """

    x: np.ndarray
    y: np.ndarray
    queries: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Tasks:
    """The data from which tasks are drawn.

    Attributes:
        classes: The samples of each class, shapes [n, ...].
        ways: N, the classes of a task.
        shots: K, the samples of each class to learn from.
        queries: The samples of each class to evaluate on.

    Raises:
        ValueError: There are too few classes, or too few samples of one.
    """

    classes: Sequence[np.ndarray]
    ways: int
    shots: int
    queries: int

    def __post_init__(self) -> None:
        most, fewest = len(self.classes), min(map(len, self.classes)) - self.queries
        if self.ways > most or self.shots > fewest:
            raise ValueError(
                f"ways and shots: got {self.ways} and {self.shots}, but the data have tasks of "
                f"{most} classes and {fewest} samples of each at most; choose fewer"
            )

    def draw(self, rng: np.random.Generator, count: int) -> Batch:
        """Draws a batch of tasks.

        Args:
            rng: Chooses classes and samples.
            count: Number of tasks.

        Returns:
            The tasks, each with its own classes and samples.
        """
        drawn = [
            rng.choice(self.classes[each], self.shots + self.queries, replace=False)
            for _ in range(count)
            for each in rng.choice(len(self.classes), self.ways, replace=False)
        ]
        x = np.stack(drawn).reshape(count, self.ways, -1, *drawn[0].shape[1:])
        y = np.broadcast_to(np.arange(self.ways, dtype=np.int32)[:, None], x.shape[:3])
        ends = slice(self.shots), slice(self.shots, None)
        parts = [each[:, :, end] for end in ends for each in (x, y)]
        return Batch(*(part.reshape(count, -1, *part.shape[3:]) for part in parts))


def turned(x: np.ndarray, y: np.ndarray, labels: Iterable[int]) -> list[np.ndarray]:
    """Makes eight classes of images of each class, by rotation and reflection.

    Args:
        x: Square images, shape [n, side, side, channels].
        y: Their labels, shape [n].
        labels: The labels to use.

    Returns:
        The images of each new class.
    """
    both = [each for label in labels for each in (x[y == label], x[y == label][:, :, ::-1])]
    return [np.rot90(each, turn, axes=(1, 2)) for each in both for turn in range(4)]

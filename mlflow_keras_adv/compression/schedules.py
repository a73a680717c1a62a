"""Sparsity schedules: how the sparsity grows while a model is pruned, and on which steps."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# From progress, 0 to 1 between the first and the last renewal of the masks, to the share of the way
# from the model's sparsity to the target.
Schedule = Callable[[float], float]

_RENEWALS = 30


def constant(_progress: float) -> float:
    """Returns 1 at any progress: the target is reached at once.

    Args:
        _progress: Not used.

    Returns:
        1.
    """
    return 1.0


def polynomial(progress: float, *, power: float = 3.0) -> float:
    """Grows fast at first, then slower: `1 - (1 - progress) ** power`.

    Zhu, Gupta: To prune, or not to prune, 2017, arXiv:1710.01878, equation 1. For another power:
    `functools.partial(polynomial, power=2)`.

    Args:
        progress: Share of the pruning that is done, from 0 to 1.
        power: The higher, the more is pruned early.

    Returns:
        The share of the target that is reached, from 0 to 1.
    """
    return float(1 - (1 - progress) ** power)


@dataclass(frozen=True)
class Renewals:
    """The training steps on which the masks are renewed, evenly spaced; 1 is the first batch.

    Attributes:
        first: The first of them.
        last: The last of them, on which the target is reached.
        frequency: Steps from one to the next.
        progress: What the schedule says at each of them: 0 to 1.
    """

    first: int
    last: int
    frequency: int
    progress: tuple[float, ...]

    @property
    def steps(self) -> range:
        """Each of them."""
        return range(self.first, self.last + 1, self.frequency)


def renewals(schedule: Schedule, *, begin: float, end: float, total_steps: int) -> Renewals:
    """Lays a schedule on the steps of a training; whatever its length, the target is reached.

    Args:
        schedule: `constant`, `polynomial`, or another function from progress to progress.
        begin: The share of the training before the first renewal: 0 to below 1.
        end: The share of the training after which the masks stay as they are: `begin` to 1.
        total_steps: Batches of the whole training.

    Raises:
        ValueError: Shares out of range, no steps, or a schedule that leaves 0 to 1 or does not end
            at 1.
    """
    if total_steps < 1:
        raise ValueError(f"pruning needs at least one training step; got {total_steps}")
    if not 0 <= begin < 1 or not begin <= end <= 1:
        raise ValueError(
            f"begin={begin!r} and end={end!r} are shares of the training; expected 0 <= begin < 1 "
            "and begin <= end <= 1. A schedule cannot be longer than the training."
        )
    first = 1 + int(begin * (total_steps - 1))
    last = 1 + int(end * (total_steps - 1))
    frequency = max(1, (last - first) // _RENEWALS)
    last = first + frequency * ((last - first) // frequency)
    shares = np.linspace(0, 1, 1 + (last - first) // frequency) if last > first else [1.0]
    progress = tuple(float(schedule(float(share))) for share in shares)
    if not all(-1e-6 <= each <= 1 + 1e-6 for each in progress) or abs(progress[-1] - 1) > 1e-6:
        raise ValueError(
            f"the schedule gives {min(progress):.3g} to {max(progress):.3g} and ends at "
            f"{progress[-1]:.3g}; expected 0 to 1, ending at 1, where the target is reached"
        )
    return Renewals(first, last, frequency, tuple(min(max(each, 0.0), 1.0) for each in progress))

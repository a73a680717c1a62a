"""Statistics over a few seeds: confidence intervals of means, and tests of two variants."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mlflow.entities import Run
from scipy.stats import t, ttest_ind, ttest_rel  # type: ignore[import-untyped]

from mlflow_keras_adv.comparison.groups import Group, is_seed

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The difference of the means of two variants.

    Attributes:
        mean: The mean of the first minus that of the second.
        p: The two-sided p-value of the difference: Student's paired t-test if both were trained
            with the same seeds, else Welch's.
        paired: Whether it is the paired test.
        seeds: Number of runs of each.
    """

    mean: float
    p: float
    paired: bool
    seeds: tuple[int, int]


def interval(group: Group, key: str) -> tuple[float, float] | None:
    """Computes the 95 % confidence interval of a metric's mean over seeds, by Student's t.

    Returns:
        Its bounds; None for fewer than two seeds, or if a value is not finite.
    """
    values = np.array([value for _, value in _values(group, key)])
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1))
    half /= math.sqrt(len(values))
    mean = float(values.mean())
    return mean - half, mean + half


def differ(groups: Sequence[Group], key: str) -> Difference | None:
    """Tests whether two variants differ by more than their seeds explain.

    Returns:
        The difference; None unless there are two variants with two seeds or more each, and all
        values are finite.
    """
    if len(groups) != 2:
        return None
    ours, theirs = (_values(group, key) for group in groups)
    a, b = (np.array([value for _, value in each]) for each in (ours, theirs))
    if min(len(a), len(b)) < 2 or not np.isfinite([*a, *b]).all():
        return None
    seeds = [[seed for seed, _ in each] for each in (ours, theirs)]
    paired = (
        sorted(seeds[0]) == sorted(seeds[1])
        and len(set(seeds[0])) == len(seeds[0])
        and "" not in seeds[0]
    )
    if paired:
        other = dict(theirs)
        b = np.array([other[seed] for seed, _ in ours])
    apart = a - b if paired else np.concatenate([a - a.mean(), b - b.mean()])
    if np.ptp(apart) == 0:  # no seed makes any difference
        p = 1.0 if a.mean() == b.mean() else 0.0
    else:
        p = float((ttest_rel(a, b) if paired else ttest_ind(a, b, equal_var=False)).pvalue)
    return Difference(float(a.mean() - b.mean()), p, paired, (len(a), len(b)))


def _values(group: Group, key: str) -> list[tuple[str, float]]:
    """Seed and value of each run that has the metric; "" for a run without a seed."""
    runs = [run for run in group.runs if key in run.data.metrics]
    return [(_seed(run), float(run.data.metrics[key])) for run in runs]


def _seed(run: Run) -> str:
    known = sorted((key, value) for key, value in run.data.params.items() if is_seed(key))
    return ", ".join(f"{key}={value}" for key, value in known)

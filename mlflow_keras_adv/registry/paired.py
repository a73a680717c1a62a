"""Statistics for two models that were measured on the same samples."""

import math
from statistics import NormalDist

import numpy as np
from scipy.stats import binomtest, bootstrap  # type: ignore[import-untyped]


def exact_mcnemar(only_champion: int, only_candidate: int) -> float:
    """Computes the exact, one-sided p-value of McNemar, Psychometrika 12, 1947.

    If two models are equally good, the candidate is right on each sample on which they differ with
    probability 1/2. The p-value is the probability that it is right on so few of them, or fewer.

    Args:
        only_champion: Number of samples that only the champion classifies correctly.
        only_candidate: Number of samples that only the candidate classifies correctly.

    Returns:
        The p-value; 1 if they differ on no sample.
    """
    differ = only_champion + only_candidate
    if differ == 0:
        return 1.0
    return float(binomtest(only_champion, differ, 0.5, alternative="greater").pvalue)


def score_test(only_champion: int, only_candidate: int, samples: int, margin: float) -> float:
    """Computes the p-value of the hypothesis that the candidate is worse by the margin or more.

    The score test for paired proportions with a margin: Tango, Statistics in Medicine 17, 1998,
    and Nam, Biometrics 53, 1997. At a margin of 0 it is the asymptotic test of McNemar.

    Args:
        only_champion: Number of samples that only the champion classifies correctly.
        only_candidate: Number of samples that only the candidate classifies correctly.
        samples: Number of all samples.
        margin: Share of the samples that the candidate may lose.

    Returns:
        The p-value: small where non-inferiority is shown.
    """
    if margin >= 1:
        return 0.0
    # Tango's b is the champion's, his c the candidate's, and q the share of c if b - c is margin.
    b, c, n = only_champion, only_candidate, samples
    linear = -b - c + (2 * n - b + c) * margin
    root = math.sqrt(max(0.0, linear**2 + 8 * n * c * margin * (1 - margin)))
    q = (root - linear) / (4 * n)
    variance = n * (2 * q + margin * (1 - margin))
    if variance <= 0:  # nothing differs, and nothing may: no evidence either way
        return 0.5
    return NormalDist().cdf((b - c - n * margin) / math.sqrt(variance))


def bootstrap_bound(
    losses: np.ndarray, confidence: float, weights: np.ndarray | None = None
) -> float:
    """Computes an upper confidence bound of the mean loss by the paired percentile bootstrap.

    Efron and Tibshirani: An Introduction to the Bootstrap, 1993. 9999 resamples, with a fixed seed.

    Args:
        losses: By how much the candidate is worse on each sample, shape (samples,).
        confidence: From 0 to 1.
        weights: Weights of the samples, of that shape; default: equal weights.

    Returns:
        The bound.
    """
    shown = np.ones(len(losses)) if weights is None else np.asarray(weights, float)
    losses, shown = losses[shown > 0], shown[shown > 0]
    if len(losses) < 2 or np.ptp(losses) == 0:
        return float(np.average(losses, weights=shown)) if len(losses) else math.nan

    def mean(values: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.sum(values * counts, axis=axis) / np.sum(counts, axis=axis)

    found = bootstrap(
        (losses, shown),
        mean,
        paired=True,
        vectorized=True,
        confidence_level=confidence,
        alternative="less",
        method="percentile",
        batch=max(1, 2_000_000 // len(losses)),
        rng=0,
    )
    return float(found.confidence_interval.high)

"""Confidence intervals over seeds, and whether two variants differ, against SciPy and by hand."""

import math

import numpy as np
import pytest
from mlflow.entities import Run
from scipy import stats

import mlflow_keras_adv as mka
from mlflow_keras_adv.comparison.chance import differ, interval
from mlflow_keras_adv.comparison.groups import Group
from tests.comparison import made_runs

A, B = [0.91, 0.93, 0.90, 0.94], [0.88, 0.92, 0.87, 0.93]


def group(values: list[float], seeds: list[object] | None = None) -> Group:
    runs: list[Run] = []
    for place, value in enumerate(values):
        params = {} if seeds is None else {"seed": str(seeds[place])}
        runs.append(made_runs.entity(f"{place:032x}", "a", {"final/accuracy": value}, params))
    return Group("a", tuple(runs), {})


def test_the_interval_is_students() -> None:
    found = interval(group(A), "final/accuracy")
    half = stats.t.ppf(0.975, 3) * np.std(A, ddof=1) / 2
    assert found == pytest.approx((np.mean(A) - half, np.mean(A) + half))
    assert interval(group([0.9]), "final/accuracy") is None
    assert interval(group([0.9, math.nan]), "final/accuracy") is None
    assert interval(group(A), "absent") is None


def test_the_same_seeds_are_paired_in_whatever_order_they_ran() -> None:
    seeds = [0, 1, 2, 3]
    found = differ([group(A, seeds), group(B[::-1], seeds[::-1])], "final/accuracy")
    assert found is not None
    assert found.paired
    assert found.p == pytest.approx(stats.ttest_rel(A, B).pvalue)
    assert found.mean == pytest.approx(np.mean(A) - np.mean(B))


@pytest.mark.parametrize("seeds", [None, [0, 1, 2, 4], [0, 0, 1, 2]])
def test_other_seeds_are_not(seeds: list[object] | None) -> None:
    ours = group(A, [0, 1, 2, 3] if seeds != [0, 0, 1, 2] else seeds)
    found = differ([ours, group(B, seeds)], "final/accuracy")
    assert found is not None
    assert not found.paired
    assert found.p == pytest.approx(stats.ttest_ind(A, B, equal_var=False).pvalue)


def test_what_no_seed_changes_and_what_cannot_be_said() -> None:
    same = differ([group([0.5, 0.5]), group([0.5, 0.5])], "final/accuracy")
    assert same is not None
    assert same.p == 1
    other = differ([group([0.5, 0.5]), group([0.4, 0.4])], "final/accuracy")
    assert other is not None
    assert other.p == 0
    assert differ([group(A), group([0.5])], "final/accuracy") is None
    assert differ([group(A), group(B), group(B)], "final/accuracy") is None
    assert differ([group(A), group([math.inf, 1.0])], "final/accuracy") is None


def test_the_comparison_says_how_sure_it_is(experiment: str) -> None:
    for name, values in (("wide", A), ("narrow", B)):
        for seed, value in enumerate(values):
            with mka.track(f"{name}-seed{seed}", params={"seed": seed, "width": len(name)}) as run:
                run.log_metrics({"final/accuracy": value}, step=0)
    found = mka.compare(experiments=[experiment], log=False)
    assert found.sentence.startswith(
        "First of 2 by final/accuracy: `wide`, 0.92 (95 % 0.8909 to 0.9491, 4 seeds)."
    )
    chance = f"p = {stats.ttest_rel(A, B).pvalue:.2g} (Student's t-test, paired by seed)"
    assert f"It is 0.02 from `narrow`; seeds alone do that with {chance}." in found.sentence
    assert chance.replace("'", "&#39;") in found.html
    low, high = stats.t.interval(0.95, 3, np.mean(A), stats.sem(A))
    assert found.table["final/accuracy 95 % low"][0] == pytest.approx(low)
    assert found.table["final/accuracy 95 % high"][0] == pytest.approx(high)

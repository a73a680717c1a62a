"""What each ready-made gate lets through, and what it says."""

import math

import numpy as np
import pytest
from scipy.stats import multinomial

from mlflow_keras_adv.registry import (
    Gate,
    Measurements,
    Verdict,
    agreement,
    budget,
    ceiling,
    floor,
    loads_and_serves,
    non_inferiority,
    same_dataset,
)
from mlflow_keras_adv.registry.gates import Judged, judge
from mlflow_keras_adv.registry.paired import bootstrap_bound, exact_mcnemar, score_test
from mlflow_keras_adv.tracking.values import Dataset


def measured(**metrics: float) -> Measurements:
    return Measurements(metrics)


def answers(right: str) -> Measurements:
    """One that is right on the samples marked 1."""
    correct = np.array([int(mark) for mark in right], float)
    return Measurements({"accuracy": correct.mean()}, {"accuracy": correct})


def verdict(gate: Gate, candidate: Measurements, champion: Measurements | None = None) -> Judged:
    return judge(gate, candidate, champion)


@pytest.mark.parametrize(
    ("gate", "value", "passes"),
    [
        (floor("accuracy", 0.9), 0.9, True),
        (floor("accuracy", 0.9), 0.8999, False),
        (ceiling("accuracy", 0.9), 0.9, True),
        (ceiling("accuracy", 0.9), 0.9001, False),
        (budget(max_size_bytes=1000), 1000, True),
        (budget(max_size_bytes=1000), 1001, False),
    ],
)
def test_a_limit_is_part_of_what_passes(gate: Gate, value: float, passes: bool) -> None:
    assert verdict(gate, measured(accuracy=value, size_bytes=value)).passed is passes


RELATIVE = [non_inferiority(), budget(max_latency_ratio=2)]
ALL = [floor("accuracy", 0), ceiling("accuracy", 1), budget(max_size_bytes=9), *RELATIVE]


@pytest.mark.parametrize("gate", ALL, ids=lambda gate: gate.title)
@pytest.mark.parametrize("champion", [None, measured(accuracy=1, size_bytes=1, latency_ms_p50=1)])
@pytest.mark.parametrize("value", [None, math.nan])
def test_a_number_that_is_missing_or_nan_fails_every_gate(
    gate: Gate, champion: Measurements | None, value: float | None
) -> None:
    keys = ("accuracy", "size_bytes", "latency_ms_p50")
    candidate = measured(**({} if value is None else dict.fromkeys(keys, value)))
    assert not verdict(gate, candidate, champion).passed


@pytest.mark.parametrize("gate", RELATIVE, ids=lambda gate: gate.title)
def test_a_champion_without_the_number_fails_what_compares(gate: Gate) -> None:
    candidate = measured(accuracy=1, latency_ms_p50=1)
    broken = verdict(gate, candidate, Measurements(problem="its file is gone"))
    assert not broken.passed
    assert "the champion: it could not be measured: its file is gone" in broken.reason
    assert not verdict(gate, candidate, measured(accuracy=math.nan, latency_ms_p50=math.nan)).passed


@pytest.mark.parametrize("gate", [*RELATIVE, agreement(0.9)], ids=lambda gate: gate.title)
def test_a_first_version_passes_what_compares(gate: Gate) -> None:
    candidate = Measurements({"accuracy": 0.1, "latency_ms_p50": 1.0}, chosen=np.zeros(3))
    said = verdict(gate, candidate)
    assert said.passed
    assert "no champion" in said.reason


def test_a_typo_names_what_was_measured() -> None:
    said = verdict(floor("acuracy", 0.9), measured(accuracy=0.95, size_bytes=3))
    assert not said.passed
    assert said.reason == "no 'acuracy' was measured, but accuracy, size_bytes"


def test_a_gate_that_breaks_lets_nobody_through() -> None:
    def half(candidate: Measurements, champion: Measurements | None) -> Verdict:
        raise ZeroDivisionError("by hand")

    said = verdict(half, measured(accuracy=1))
    assert said == Judged("half", False, "the gate failed: ZeroDivisionError: by hand")
    assert not verdict(lambda *_: None, measured(accuracy=1)).passed  # and one that says nothing


@pytest.mark.parametrize(
    ("gate", "loss", "passes"),
    [
        (non_inferiority(margin=0.01), 0.01, True),  # 0.95 - 0.94 is a little more than 0.01
        (non_inferiority(margin=0.01), 0.011, False),
        (non_inferiority(margin=0), -0.1, True),
        (non_inferiority("accuracy", 0.01, higher_is_better=False), -0.01, True),
        (non_inferiority("accuracy", 0.01, higher_is_better=False), -0.02, False),
    ],
)
def test_non_inferiority_keeps_to_the_margin(gate: Gate, loss: float, passes: bool) -> None:
    said = verdict(gate, measured(accuracy=0.95 - loss), measured(accuracy=0.95))
    assert said.passed is passes
    assert "not measured sample by sample" in said.reason


def test_paired_answers_are_counted_and_tested() -> None:
    champion, candidate = answers("1111111110"), answers("1111110011")
    said = verdict(non_inferiority(margin=0.1), candidate, champion)
    # The champion alone has 2 right, the candidate alone 1: P(at least 2 of 3 heads) is 1/2.
    assert said.passed
    assert "of 10 samples 2 lost and 1 won (exact McNemar p = 0.5)" in said.reason


def test_confidence_asks_for_more_than_the_numbers_seen() -> None:
    champion, candidate = answers("1" * 90 + "0" * 10), answers("1" * 89 + "0" * 11)
    assert verdict(non_inferiority(margin=0.02), candidate, champion).passed
    assert not verdict(non_inferiority(margin=0.02, confidence=0.95), candidate, champion).passed
    assert verdict(non_inferiority(margin=0.1, confidence=0.95), candidate, champion).passed
    unpaired = measured(accuracy=0.9), measured(accuracy=0.9)
    assert not verdict(non_inferiority(margin=0.5, confidence=0.95), *unpaired).passed


def test_numbers_that_are_no_answers_are_resampled() -> None:
    noise = np.random.default_rng(0).normal(size=400)
    ours, theirs = 1 + 0.1 * noise, np.ones(400)
    models = [Measurements({"error": each.mean()}, {"error": each}) for each in (ours, theirs)]
    gate = non_inferiority("error", 0.05, higher_is_better=False, confidence=0.95)
    said = verdict(gate, *models)
    assert said.passed
    # The 95 % bound of a mean of 400 with deviation 0.1 is 1.645 * 0.1 / 20 above it.
    bound = bootstrap_bound(ours - theirs, 0.95)
    assert bound == pytest.approx((ours - theirs).mean() + 1.645 * 0.1 / 20, abs=0.002)
    assert f"loss below {bound:.4g} with 95% confidence (paired bootstrap)" in said.reason
    reverse = non_inferiority("error", 0.05, confidence=0.95)
    shifted = [
        Measurements({"error": m.metrics["error"] - k}, m.per_sample) for k, m in enumerate(models)
    ]
    assert verdict(reverse, *models).passed
    assert verdict(reverse, *reversed(shifted)).passed is False


def test_the_exact_test_is_the_binomial_one() -> None:
    assert exact_mcnemar(0, 0) == 1
    assert exact_mcnemar(5, 0) == pytest.approx(1 / 32)
    assert exact_mcnemar(0, 5) == 1
    assert exact_mcnemar(9, 1) == pytest.approx((10 + 1) / 1024)


def test_the_score_test_is_mcnemars_at_no_margin() -> None:
    for b, c in ((3, 9), (9, 3), (20, 20)):
        z = (b - c) / math.sqrt(b + c)
        assert score_test(b, c, 100, 0) == pytest.approx(0.5 * math.erfc(-z / math.sqrt(2)))
    assert score_test(0, 0, 100, 0) == 0.5
    assert score_test(100, 0, 100, 1) == 0


@pytest.mark.parametrize("margin", [0.02, 0.05])
def test_the_score_test_errs_as_often_as_it_says(margin: float) -> None:
    """Of all outcomes of 200 samples with exactly that loss, about 5 % are judged non-inferior."""
    n, shared = 200, 0.03
    wrong = 0.0
    chances = [margin + shared, shared, 1 - margin - 2 * shared]
    for b in range(60):
        for c in range(60):
            if score_test(b, c, n, margin) <= 0.05:
                wrong += multinomial.pmf([b, c, n - b - c], n, chances)
    assert 0.03 < wrong < 0.065


def test_latency_is_compared_with_the_champions() -> None:
    gate = budget(max_latency_ratio=1.5)
    champion = measured(latency_ms_p50=2)
    assert verdict(gate, measured(latency_ms_p50=3), champion).passed
    assert not verdict(gate, measured(latency_ms_p50=3.01), champion).passed
    both = budget(max_size_bytes=10, max_latency_ratio=1.5)
    assert both.title == "at most 10 bytes, latency ratio at most 1.5"
    assert not verdict(both, measured(latency_ms_p50=1, size_bytes=11), champion).passed


def test_agreement_counts_equal_choices_and_no_nan() -> None:
    def chose(*classes: int) -> Measurements:
        return Measurements(chosen=np.array(classes))

    assert verdict(agreement(0.75), chose(0, 1, 2, 2), chose(0, 1, 2, 1)).passed
    assert not verdict(agreement(0.76), chose(0, 1, 2, 2), chose(0, 1, 2, 1)).passed
    assert not verdict(agreement(0.5), chose(-1, -1), chose(-1, -1)).passed  # NaN agrees with none
    assert not verdict(agreement(0.1), chose(0, 1), chose(0, 1, 2)).passed
    assert not verdict(agreement(0.1), measured(), chose(0)).passed


def test_the_dataset_has_to_be_that_of_the_record() -> None:
    def recorded(*digests: str) -> Measurements:
        return Measurements(dataset=Dataset("toy", "d1"), recorded_on=frozenset(digests))

    assert verdict(same_dataset(), recorded("d1"), recorded("d0", "d1")).passed
    assert verdict(same_dataset(), recorded("d1")).passed
    other = verdict(same_dataset(), recorded("d1"), recorded("d2"))
    assert other.reason == "measured on d1; the champion was recorded on d2"
    assert not other.passed
    assert not verdict(same_dataset(), recorded()).passed


def test_serving_is_tried_only_by_the_gate_that_asks() -> None:
    asked = []

    def serve() -> str:
        asked.append(1)
        return "port in use" if len(asked) > 1 else ""

    candidate = Measurements({"accuracy": 1.0}, serve=serve)
    verdict(floor("accuracy", 0), candidate)
    assert asked == []
    assert verdict(loads_and_serves(), candidate).passed
    assert verdict(loads_and_serves(), candidate).reason == "port in use"
    assert not verdict(loads_and_serves(), Measurements(problem="torn", serve=serve)).passed
    assert len(asked) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: non_inferiority(margin=-0.1),
        lambda: non_inferiority(margin=math.nan),
        lambda: non_inferiority(confidence=95),
        lambda: budget(),
    ],
)
def test_gates_that_cannot_be_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="received|needs"):
        wrong()

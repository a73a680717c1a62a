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
    difference,
    floor,
    loads_and_serves,
    non_inferiority,
    per_slice,
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
        (budget(max_flops=1000), 1000, True),
        (budget(max_flops=1000), 1001, False),
    ],
)
def test_a_limit_is_part_of_what_passes(gate: Gate, value: float, passes: bool) -> None:
    assert verdict(gate, measured(accuracy=value, size_bytes=value, flops=value)).passed is passes


RELATIVE = [non_inferiority(), budget(max_latency_ratio=2)]
ALL = [floor("accuracy", 0), ceiling("accuracy", 1), budget(max_size_bytes=9), budget(max_flops=9)]
ALL += RELATIVE


@pytest.mark.parametrize("gate", ALL, ids=lambda gate: gate.title)
@pytest.mark.parametrize("champion", [None, measured(accuracy=1, size_bytes=1, latency_ms_p50=1)])
@pytest.mark.parametrize("value", [None, math.nan])
def test_a_number_that_is_missing_or_nan_fails_every_gate(
    gate: Gate, champion: Measurements | None, value: float | None
) -> None:
    keys = ("accuracy", "size_bytes", "latency_ms_p50", "flops")
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
    candidate = Measurements({"accuracy": 0.1, "latency_ms_p50": 1.0})
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
        (non_inferiority("accuracy", 0.01, mode="min"), -0.01, True),
        (non_inferiority("accuracy", 0.01, mode="min"), -0.02, False),
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
    assert (
        "only the champion is right on 2 of 10 samples, only the candidate on 1 (is the candidate "
        "worse? one-sided exact McNemar test: p = 0.5)"
    ) in said.reason


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
    gate = non_inferiority("error", 0.05, mode="min", confidence=0.95)
    said = verdict(gate, *models)
    assert said.passed
    # The 95 % bound of a mean of 400 with deviation 0.1 is 1.645 * 0.1 / 20 above it.
    bound = bootstrap_bound(ours - theirs, 0.95)
    assert bound == pytest.approx((ours - theirs).mean() + 1.645 * 0.1 / 20, abs=0.002)
    assert f"loss below {bound:.4g} with 95% confidence (paired bootstrap)" in said.reason
    reverse = non_inferiority("error", 0.05, mode="max", confidence=0.95)
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


def test_a_budget_says_what_it_found_and_asks_of_the_record_what_stands_there() -> None:
    gate = budget(max_size_bytes=10, max_latency_ratio=1.5, max_flops=5e6)
    assert gate.title == "at most 10 bytes, latency ratio at most 1.5, at most 5000000 FLOPs"
    candidate = measured(latency_ms_p50=1, size_bytes=9, flops=6e6)
    said = verdict(gate, candidate, measured(latency_ms_p50=2))
    assert not said.passed
    assert said.reason == "9 bytes, 6000000 FLOPs, 1 ms against 2 ms side by side"
    assert gate.on_record is not None
    assert not verdict(gate.on_record, measured(size_bytes=9, flops=6e6)).passed
    assert verdict(gate.on_record, measured(size_bytes=9, flops=5e6)).passed


def test_a_metric_goes_the_way_that_is_recorded_or_that_its_name_says() -> None:
    worse, better = measured(mae=2.0), measured(mae=1.0)
    gate = non_inferiority("mae", 0.5)
    assert not verdict(gate, worse, better).passed
    assert verdict(gate, better, worse).passed
    odd = Measurements({"odd": 1.0}, directions={"odd": "max"})
    assert not verdict(non_inferiority("odd", 0.5), odd, measured(odd=2)).passed
    unknown = verdict(non_inferiority("odd", 0.5), measured(odd=1), measured(odd=2))
    assert not unknown.passed
    assert "mode='min'" in unknown.reason


def test_a_relative_margin_is_of_the_champions_value() -> None:
    gate = non_inferiority("mae", 0.1, relative=True)
    assert verdict(gate, measured(mae=22.0), measured(mae=20.0)).passed
    assert not verdict(gate, measured(mae=22.1), measured(mae=20.0)).passed
    assert verdict(gate, measured(mae=22.1), measured(mae=20.0)).gate == "mae worse by at most 10 %"


def test_the_deciding_metric_is_asked_of_unless_one_is_named() -> None:
    def of(mae: float) -> Measurements:
        return Measurements({"mae": mae, "loss": 0}, deciding="mae", directions={"mae": "min"})

    said = verdict(non_inferiority(margin=0.5), of(2), of(1))
    assert not said.passed
    assert said.reason.startswith("mae 2 after 1")
    refused = Measurements({"size_bytes": 1}, unscored="the labels do not fit")
    assert "the labels do not fit" in verdict(non_inferiority(), refused, of(1)).reason


def test_samples_count_by_their_weights() -> None:
    losses, weights = np.array([1.0, 0.0, 0.0, 5.0]), np.array([1.0, 1.0, 2.0, 0.0])
    bound = bootstrap_bound(losses, 0.95, weights)
    # Of three that count the one with a loss weighs 1 of 4; thrice drawn it is the mean.
    assert 0.25 < bound <= 1
    assert bootstrap_bound(np.full(4, 0.5), 0.95, weights) == 0.5

    def of(values: np.ndarray) -> Measurements:
        mean = float(np.average(values, weights=weights))
        return Measurements({"accuracy": mean}, {"accuracy": values}, {"accuracy": weights})

    said = verdict(non_inferiority("accuracy", 0.9), of(1 - np.minimum(losses, 1)), of(np.ones(4)))
    assert "paired bootstrap" in said.reason  # right and wrong, but not of equal weight


def test_no_group_pays_for_the_others() -> None:
    def of(north: float, south: float) -> Measurements:
        slices = {
            "side=north": Measurements({"accuracy": north}, samples=30),
            "side=south": Measurements({"accuracy": south}, samples=7),
        }
        return Measurements({"accuracy": (north + south) / 2}, slices=slices)

    gate = per_slice(non_inferiority("accuracy", 0.05), "side")
    better, before = of(0.99, 0.7), of(0.8, 0.8)
    assert verdict(non_inferiority("accuracy", 0.05), better, before).passed
    said = verdict(gate, better, before)
    assert not said.passed
    assert said.gate == "in each side: accuracy worse by at most 0.05"
    assert said.reason.startswith("side=south (7 samples): 0.7 after 0.8")
    assert "north" not in said.reason
    assert verdict(gate, of(0.78, 0.8), before).passed
    assert verdict(gate, better, None).passed
    missing = verdict(per_slice(floor("accuracy", 0.1), "age"), better)
    assert not missing.passed
    assert "but by side" in missing.reason
    assert not verdict(gate, better, measured(accuracy=0.1)).passed  # it has no such groups


def test_agreement_and_difference_are_with_the_champion() -> None:
    apart = Measurements(beside={"agreement": 0.75, "difference": 0.02, "difference_max": 0.3})
    champion = measured()
    assert verdict(agreement(0.75), apart, champion).passed
    assert not verdict(agreement(0.76), apart, champion).passed
    assert verdict(difference(0.02), apart, champion).passed
    assert not verdict(difference(0.01), apart, champion).passed
    assert not verdict(difference(0.2, largest=True), apart, champion).passed
    assert verdict(difference(0.0), apart, None).passed
    regressor = Measurements(beside={"difference": 0.02})
    said = verdict(agreement(0.1), regressor, champion)
    assert not said.passed
    assert "no 'agreement' was measured, but difference" in said.reason
    assert not verdict(difference(1.0), Measurements(problem="torn"), champion).passed
    assert not verdict(difference(1.0), apart, Measurements(problem="torn")).passed


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

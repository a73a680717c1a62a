"""Claims: a number, its limits, the verdict; on a run and back."""

import math
from typing import Any

import mlflow
import numpy as np
import pytest

import mlflow_keras_adv as mka


@pytest.mark.parametrize(
    ("value", "limits", "holds"),
    [
        (0.5, {"at_least": 0.5}, True),
        (0.4999, {"at_least": 0.5}, False),
        (0.0, {"at_most": 0.0}, True),
        (1e-9, {"at_most": 0.0}, False),
        (1.0, {"at_least": 0.2, "at_most": 5}, True),
        (0.1, {"at_least": 0.2, "at_most": 5}, False),
        (6.0, {"at_least": 0.2, "at_most": 5}, False),
        (math.inf, {"at_least": 1}, True),
        (math.inf, {"at_most": 1}, False),
        (math.nan, {"at_least": -1e9, "at_most": 1e9}, False),
    ],
)
def test_a_claim_holds_within_its_limits(
    value: float, limits: dict[str, float], holds: bool
) -> None:
    assert mka.Claim("c", "c", value, **limits).holds is holds


def test_a_claim_without_a_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="'c' has no limit"):
        mka.Claim("c", "c", 1.0)


def test_a_claim_reads_as_a_line() -> None:
    kept = mka.Claim("gain", "accuracy gained", 0.123456, at_least=0.1)
    missed = mka.Claim("ratio", "ratio of norms", 7, at_least=0.2, at_most=5)

    assert str(kept) == "accuracy gained: 0.1235, claimed at least 0.1: holds"
    assert str(missed) == "ratio of norms: 7, claimed at least 0.2 and at most 5: MISSED"


CLAIMS = (
    mka.Claim("kept", "a difference", 1e-7, at_most=1e-6),
    mka.Claim("low", "a gain", np.float32(0.25), at_least=0.5),
    mka.Claim("nothing", "a loss", math.nan, at_most=1.0),
)


@pytest.mark.quick
def test_claims_on_a_run_are_metrics_a_tag_and_a_file(
    experiment: str, client: mlflow.MlflowClient, curves: Any
) -> None:
    with mka.track("claims", log_system_metrics=False) as run:
        text = mka.log_claims(*CLAIMS)

    found = curves(run.run_id)
    assert set(found) == {"final/claim/kept", "final/claim/low", "final/claim/nothing"}
    assert found["final/claim/kept"] == {0: 1e-7}
    assert math.isnan(found["final/claim/nothing"][0])
    recorded = client.get_run(run.run_id)
    assert recorded.data.tags["claims"] == "missed: low, nothing"
    assert recorded.info.status == "FINISHED"
    assert text.splitlines() == [f"- {claim}" for claim in CLAIMS]


def test_claims_come_back_from_a_run(experiment: str) -> None:
    with mka.track("claims", log_system_metrics=False) as run:
        mka.log_claims(*CLAIMS)

    kept, low, nothing = mka.logged_claims(run.run_id)

    assert (kept, low) == CLAIMS[:2]
    assert (nothing.name, nothing.at_most, math.isnan(nothing.value)) == ("nothing", 1.0, True)
    assert [claim.holds for claim in (kept, low, nothing)] == [True, False, False]


def test_claims_that_all_hold_say_so(experiment: str, client: mlflow.MlflowClient) -> None:
    with mka.track("claims", log_system_metrics=False) as run:
        mka.log_claims(CLAIMS[0])

    assert client.get_run(run.run_id).data.tags["claims"] == "hold"


def test_a_run_without_claims_has_none(experiment: str) -> None:
    with mka.track("bare", log_system_metrics=False) as run:
        pass

    with pytest.raises(mlflow.exceptions.MlflowException):
        mka.logged_claims(run.run_id)


@pytest.mark.parametrize("claims", [(), (CLAIMS[0], CLAIMS[0])], ids=["none", "twice"])
def test_no_claim_and_two_of_one_name_are_refused(
    experiment: str, claims: tuple[mka.Claim, ...]
) -> None:
    with (
        mka.track("claims", log_system_metrics=False),
        pytest.raises(ValueError, match="one or more different names"),
    ):
        mka.log_claims(*claims)


def test_the_largest_difference_is_that_of_all_arrays() -> None:
    first = [np.array([1.0, 2.0]), np.array([[3.0]])]
    second = [np.array([1.5, 2.0]), np.array([[1.0]])]

    assert mka.largest_difference(first, second) == 2
    assert mka.largest_difference(first[0], second[0]) == 0.5
    assert mka.largest_difference(np.float16(60_000), np.float16(-60_000)) == 2 * float(
        np.float16(60_000)
    )


def test_arrays_of_other_shapes_have_no_difference() -> None:
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(1,\)"):
        mka.largest_difference([np.zeros(2)], [np.zeros(1)])
    with pytest.raises(ValueError, match="zip"):
        mka.largest_difference([np.zeros(2)], [])

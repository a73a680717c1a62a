"""On which steps a model is pruned, and how far."""

from functools import partial

import pytest

from mlflow_keras_adv.compression.schedules import constant, polynomial, renewals


@pytest.mark.parametrize("schedule", [constant, polynomial, partial(polynomial, power=1)])
@pytest.mark.parametrize("total_steps", [1, 2, 3, 29, 31, 61, 430, 100_003])
@pytest.mark.parametrize(("begin", "end"), [(0.0, 0.0), (0.0, 0.7), (0.0, 1.0), (0.99, 1.0)])
def test_the_target_is_reached_within_any_training(
    schedule, total_steps: int, begin: float, end: float
) -> None:
    plan = renewals(schedule, begin=begin, end=end, total_steps=total_steps)
    steps = list(plan.steps)
    assert 1 <= steps[0] <= steps[-1] <= total_steps
    assert steps[-1] == plan.last
    assert len(steps) == len(plan.progress)
    assert plan.progress[-1] == 1
    assert len(steps) <= 62, "a mask costs a sort"


def test_the_polynomial_is_that_of_zhu_and_gupta() -> None:
    # s_t = s_f + (s_i - s_f) (1 - t)^3 with s_i = 0.2, s_f = 0.8, at half time
    assert 0.2 + (0.8 - 0.2) * polynomial(0.5) == pytest.approx(0.8 + (0.2 - 0.8) * 0.5**3)
    plan = renewals(polynomial, begin=0.0, end=1.0, total_steps=5)
    assert plan.steps == range(1, 6)
    assert plan.progress == pytest.approx([1 - (1 - t / 4) ** 3 for t in range(5)])


@pytest.mark.parametrize(
    ("begin", "end"), [(0.0, 1.1), (-0.1, 0.5), (0.6, 0.5), (1.0, 1.0), (0.0, float("nan"))]
)
def test_a_schedule_longer_than_the_training_is_refused(begin: float, end: float) -> None:
    with pytest.raises(ValueError, match="shares of the training"):
        renewals(polynomial, begin=begin, end=end, total_steps=10)


def test_a_schedule_that_stops_short_of_the_target_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ends at 0\.5"):
        renewals(lambda progress: progress / 2, begin=0.0, end=0.7, total_steps=10)


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one training step"):
        renewals(polynomial, begin=0.0, end=0.7, total_steps=0)

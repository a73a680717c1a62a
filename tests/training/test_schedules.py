"""Learning-rate schedules against their closed forms in float64."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras.optimizers import schedules

from mlflow_keras_adv import ConstantThenExponential, CyclicalRate, WarmUp

STEPS = np.arange(60)
EPS = float(np.finfo("float32").eps)

Form = Callable[[np.ndarray], np.ndarray]


def triangle(t: np.ndarray, size: int) -> np.ndarray:
    """0 at multiples of two `size`, 1 between them."""
    return np.interp(t, np.arange(0, 100, size), np.arange(len(range(0, 100, size))) % 2)


FORMS: dict[str, tuple[Any, Form]] = {
    "warm-up to a constant": (
        WarmUp(0.2, warmup_steps=10),
        lambda t: np.where(t < 10, 0.2 * t / 10, 0.2),
    ),
    "warm-up, then cosine": (
        WarmUp(schedules.CosineDecay(0.2, 40), warmup_steps=10, initial_learning_rate=0.1),
        lambda t: np.where(
            t < 10,
            0.1 + 0.1 * t / 10,
            0.1 * (1 + np.cos(np.pi * np.clip(t - 10, 0, 40) / 40)),
        ),
    ),
    "warm-up, then step": (
        WarmUp(schedules.ExponentialDecay(0.2, 15, 0.5, staircase=True), warmup_steps=1),
        lambda t: np.where(t < 1, 0, 0.2 * 0.5 ** (np.maximum(t - 1, 0) // 15)),
    ),
    "constant, then exponential": (
        ConstantThenExponential(0.1, constant_steps=20, decay_steps=8, decay_rate=0.5),
        lambda t: np.where(t < 20, 0.1, 0.1 * 0.5 ** ((t - 20) / 8)),
    ),
    "exponential at once": (
        ConstantThenExponential(0.1, constant_steps=0, decay_steps=10),
        lambda t: 0.1 * np.exp(-t / 10),
    ),
    "triangular": (
        CyclicalRate(0.01, 0.1, step_size=7),
        lambda t: 0.01 + 0.09 * triangle(t, 7),
    ),
    "triangular2": (
        CyclicalRate(0.01, 0.1, step_size=7, policy="triangular2"),
        lambda t: 0.01 + 0.09 * triangle(t, 7) * 0.5 ** (t // 14),
    ),
    "exp_range": (
        CyclicalRate(0.01, 0.1, step_size=7, policy="exp_range", gamma=0.95),
        lambda t: 0.01 + 0.09 * triangle(t, 7) * 0.95**t,
    ),
    # What the module's docstring says of Keras' own.
    "step, by Keras": (
        schedules.ExponentialDecay(0.1, decay_steps=15, decay_rate=0.5, staircase=True),
        lambda t: 0.1 * 0.5 ** (t // 15),
    ),
    "time-based, by Keras": (
        schedules.InverseTimeDecay(0.1, decay_steps=1, decay_rate=0.05),
        lambda t: 0.1 / (1 + 0.05 * t),
    ),
}
ours = pytest.mark.parametrize(
    "schedule", [pair[0] for name, pair in FORMS.items() if "Keras" not in name]
)


@pytest.mark.parametrize(("schedule", "form"), FORMS.values(), ids=list(FORMS))
def test_the_rate_is_that_of_the_closed_form(schedule: Any, form: Form) -> None:
    expected = form(STEPS)
    peak = expected.max()

    rates = np.array([float(schedule(keras.ops.convert_to_tensor(step))) for step in STEPS])

    # A few operations in float32; in `factor ** t` an error of the base counts t times.
    np.testing.assert_allclose(rates, expected, rtol=2 * len(STEPS) * EPS, atol=8 * EPS * peak)


@ours
def test_a_saved_model_brings_it_back(schedule: Any, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(schedule), loss="mse")
    model.fit(np.ones((6, 2)), np.ones(6), batch_size=2, verbose=0)

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")

    assert type(loaded.optimizer._learning_rate) is type(schedule)
    assert int(loaded.optimizer.iterations) == 3
    assert float(loaded.optimizer.learning_rate) == float(schedule(3))


def test_far_steps_are_exact() -> None:
    schedule = CyclicalRate(0.0, 1.0, step_size=1000)

    assert float(schedule(2000 * 8000 + 500)) == 0.5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: WarmUp(0.1, warmup_steps=0), "warmup_steps=0"),
        (lambda: WarmUp(-0.1, warmup_steps=1), "learning_rate=-0.1"),
        (lambda: WarmUp(0.1, 1, math.nan), "initial_learning_rate=nan"),
        (lambda: ConstantThenExponential(math.inf, 1, 1), "initial_learning_rate=inf"),
        (lambda: ConstantThenExponential(0.1, -1, 1), "constant_steps=-1"),
        (lambda: ConstantThenExponential(0.1, 1, 0), "decay_steps=0"),
        (lambda: ConstantThenExponential(0.1, 1, 1, decay_rate=1.5), "decay_rate=1.5"),
        (
            lambda: CyclicalRate(0.2, 0.1, 5),
            "initial_learning_rate=0.2 and maximal_learning_rate=0.1",
        ),
        (lambda: CyclicalRate(0.1, 0.2, 0), "step_size=0"),
        (lambda: CyclicalRate(0.1, 0.2, 5, policy="square"), "policy='square'"),  # type: ignore[arg-type]
        (lambda: CyclicalRate(0.1, 0.2, 5, gamma=0), "gamma=0"),
    ],
)
def test_a_bad_argument_is_named(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()

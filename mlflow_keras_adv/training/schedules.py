"""Learning-rate schedules that Keras lacks.

Step decay and time-based decay it has under other names: `ExponentialDecay(staircase=True)` is
`rate · factor ** floor(step / every)`, `InverseTimeDecay(decay_steps=1)` is
`rate / (1 + decay · step)`. It has `CosineDecay`, with a warm-up of its own, and `PolynomialDecay`
too.

A schedule is called with the number of updates made so far and returns the rate of the next one, a
float32 scalar; steps up to 2**24 are exact. Those below are registered with Keras: a compiled model
that is saved brings its schedule back.
"""

import math
from typing import Any, Literal

import keras
from keras.optimizers.schedules import LearningRateSchedule

Policy = Literal["triangular", "triangular2", "exp_range"]


@keras.saving.register_keras_serializable(package="mlflow_keras_adv")
class WarmUp(LearningRateSchedule):
    """A linear rise to the rate at which another schedule begins, then that schedule.

    At step t the rate is `start + (peak - start) · t / steps` while t < `steps`, then
    `after(t - steps)`, where `peak` is `after(0)`.

    Gradual warm-up: Goyal et al. 2017, arXiv:1706.02677, section 2.2.

    Example:
        ```python
        decay = keras.optimizers.schedules.CosineDecay(0.1, decay_steps=900)
        optimizer = keras.optimizers.SGD(WarmUp(decay, steps=100))
        ```

    Args:
        after: The schedule that follows, or a constant rate.
        steps: Updates of the rise, 1 or more.
        start: Rate of the first update.

    Raises:
        ValueError: If `steps` is less than 1, or a rate is negative or not finite.
    """

    def __init__(self, after: Any, steps: int, start: float = 0.0) -> None:
        super().__init__()
        _check_steps("steps", steps)
        _check_rate("start", start)
        if not isinstance(after, LearningRateSchedule):
            _check_rate("after", after)
        self.after = after
        self.steps = steps
        self.start = start

    def __call__(self, step: Any) -> Any:
        """The rate of the update that follows `step` others."""
        step = _float(step)
        peak = self._rate_after(keras.ops.zeros_like(step))
        rising = self.start + (peak - self.start) * step / self.steps
        later = self._rate_after(keras.ops.maximum(step - self.steps, 0.0))
        return keras.ops.where(step < self.steps, rising, later)

    def get_config(self) -> dict[str, Any]:
        """What `from_config` rebuilds it from."""
        is_schedule = isinstance(self.after, LearningRateSchedule)
        after = keras.saving.serialize_keras_object(self.after) if is_schedule else self.after
        return {"after": after, "steps": self.steps, "start": self.start}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "WarmUp":
        """Rebuilds it, and the schedule in it."""
        after = config["after"]
        if isinstance(after, dict):
            after = keras.saving.deserialize_keras_object(after)
        return cls(**{**config, "after": after})

    def _rate_after(self, step: Any) -> Any:
        return _float(self.after(step) if callable(self.after) else self.after)


@keras.saving.register_keras_serializable(package="mlflow_keras_adv")
class ConstantThenExponential(LearningRateSchedule):
    """A constant rate for a while, then an exponential decay.

    At step t the rate is `rate · factor ** (max(0, t - constant_steps) / decay_steps)`.

    Args:
        rate: The constant rate.
        constant_steps: Updates made with it.
        decay_steps: Updates in which the rate then becomes `factor` times itself.
        factor: Above 0, at most 1.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self, rate: float, constant_steps: int, decay_steps: int, factor: float = math.exp(-1)
    ) -> None:
        super().__init__()
        _check_rate("rate", rate)
        _check_steps("constant_steps", constant_steps, least=0)
        _check_steps("decay_steps", decay_steps)
        if not 0 < factor <= 1:
            raise ValueError(f"Received factor={factor}; expected a number above 0, at most 1.")
        self.rate = rate
        self.constant_steps = constant_steps
        self.decay_steps = decay_steps
        self.factor = factor

    def __call__(self, step: Any) -> Any:
        """The rate of the update that follows `step` others."""
        decayed = keras.ops.maximum(_float(step) - self.constant_steps, 0.0) / self.decay_steps
        return self.rate * keras.ops.power(_float(self.factor), decayed)

    def get_config(self) -> dict[str, Any]:
        """What `from_config` rebuilds it from."""
        return {
            "rate": self.rate,
            "constant_steps": self.constant_steps,
            "decay_steps": self.decay_steps,
            "factor": self.factor,
        }


@keras.saving.register_keras_serializable(package="mlflow_keras_adv")
class CyclicalRate(LearningRateSchedule):
    """A rate that goes up and down between two bounds, in straight lines.

    With `cycle = floor(t / (2 · step_size))` and `x = |t / step_size - 2 · cycle - 1|`, which runs
    from 1 to 0 and back within each cycle, the rate at step t is
    `low + (high - low) · (1 - x) · scale`. The scale is 1 for "triangular", `0.5 ** cycle` for
    "triangular2" and `gamma ** t` for "exp_range".

    Smith 2015, Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186.

    Args:
        low: The paper's base_lr.
        high: Its max_lr; not below `low`.
        step_size: Updates of half a cycle; the paper advises 2 to 10 epochs.
        policy: How the height of the cycles changes.
        gamma: The factor of "exp_range", above 0, at most 1.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        low: float,
        high: float,
        step_size: int,
        policy: Policy = "triangular",
        gamma: float = 1.0,
    ) -> None:
        super().__init__()
        _check_rate("low", low)
        _check_rate("high", high)
        _check_steps("step_size", step_size)
        if low > high:
            raise ValueError(f"Received low={low} and high={high}; expected low <= high.")
        if policy not in ("triangular", "triangular2", "exp_range"):
            raise ValueError(
                f"Received policy={policy!r}; expected triangular, triangular2 or exp_range."
            )
        if not 0 < gamma <= 1:
            raise ValueError(f"Received gamma={gamma}; expected a number above 0, at most 1.")
        self.low = low
        self.high = high
        self.step_size = step_size
        self.policy = policy
        self.gamma = gamma

    def __call__(self, step: Any) -> Any:
        """The rate of the update that follows `step` others."""
        step = _float(step)
        cycle = keras.ops.floor(step / (2 * self.step_size))
        x = keras.ops.abs((step - cycle * (2 * self.step_size)) / self.step_size - 1)
        scale = {
            "triangular": 1.0,
            "triangular2": keras.ops.power(0.5, cycle),
            "exp_range": keras.ops.power(_float(self.gamma), step),
        }[self.policy]
        return self.low + (self.high - self.low) * (1 - x) * scale

    def get_config(self) -> dict[str, Any]:
        """What `from_config` rebuilds it from."""
        return {
            "low": self.low,
            "high": self.high,
            "step_size": self.step_size,
            "policy": self.policy,
            "gamma": self.gamma,
        }


def _float(value: Any) -> Any:
    return keras.ops.cast(value, "float32")


def _check_rate(name: str, rate: float) -> None:
    if not 0 <= rate < math.inf:
        raise ValueError(f"Received {name}={rate}; expected a finite learning rate, 0 or more.")


def _check_steps(name: str, steps: int, least: int = 1) -> None:
    if steps < least:
        raise ValueError(f"Received {name}={steps}; expected {least} or more updates.")

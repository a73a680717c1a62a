"""Learning-rate schedules that Keras lacks.

Keras has step decay and time-based decay under other names: `ExponentialDecay(staircase=True)` is
`rate · factor ** floor(step / every)`, `InverseTimeDecay(decay_steps=1)` is
`rate / (1 + decay · step)`. It also has `PolynomialDecay`, and `CosineDecay` with its own warm-up.

A schedule is called with the number of updates made so far and returns the rate of the next one, a
float32 scalar; steps up to 2**24 are exact. Those below are registered with Keras: loading a
compiled model restores its schedule.
"""

import math
from typing import Any, Literal

import keras
from keras.optimizers.schedules import LearningRateSchedule

Policy = Literal["triangular", "triangular2", "exp_range"]


@keras.saving.register_keras_serializable(package="mlflow_keras_adv")
class WarmUp(LearningRateSchedule):
    """A linear warm-up to the first rate of another schedule, then that schedule.

    At step t the rate is `initial + (peak - initial) · t / warmup_steps` while t < `warmup_steps`,
    then `learning_rate(t - warmup_steps)`, where `peak` is `learning_rate(0)`.

    Gradual warm-up: Goyal et al. 2017, arXiv:1706.02677, section 2.2.

    Example:
        ```python
        decay = keras.optimizers.schedules.CosineDecay(0.1, decay_steps=900)
        optimizer = keras.optimizers.SGD(WarmUp(decay, warmup_steps=100))
        ```

    Args:
        learning_rate: The schedule after the warm-up, or a constant rate.
        warmup_steps: Number of updates of the warm-up, 1 or more.
        initial_learning_rate: Rate of the first update.
        name: Name of the schedule.

    Raises:
        ValueError: If `warmup_steps` is less than 1, or a rate is negative or not finite.
    """

    def __init__(
        self,
        learning_rate: Any,
        warmup_steps: int,
        initial_learning_rate: float = 0.0,
        name: str = "WarmUp",
    ) -> None:
        super().__init__()
        _check_steps("warmup_steps", warmup_steps)
        _check_rate("initial_learning_rate", initial_learning_rate)
        if not isinstance(learning_rate, LearningRateSchedule):
            _check_rate("learning_rate", learning_rate)
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.initial_learning_rate = initial_learning_rate
        self.name = name

    def __call__(self, step: Any) -> Any:
        """The rate of the update that follows `step` others."""
        step = _float(step)
        peak = self._rate_after(keras.ops.zeros_like(step))
        initial, steps = self.initial_learning_rate, self.warmup_steps
        rising = initial + (peak - initial) * step / steps
        later = self._rate_after(keras.ops.maximum(step - steps, 0.0))
        return keras.ops.where(step < steps, rising, later)

    def get_config(self) -> dict[str, Any]:
        """The arguments, for `from_config`."""
        after = self.learning_rate
        if isinstance(after, LearningRateSchedule):
            after = keras.saving.serialize_keras_object(after)
        return {
            "learning_rate": after,
            "warmup_steps": self.warmup_steps,
            "initial_learning_rate": self.initial_learning_rate,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "WarmUp":
        """Rebuilds it, and the schedule in it."""
        after = config["learning_rate"]
        if isinstance(after, dict):
            after = keras.saving.deserialize_keras_object(after)
        return cls(**{**config, "learning_rate": after})

    def _rate_after(self, step: Any) -> Any:
        after = self.learning_rate
        return _float(after(step) if callable(after) else after)


@keras.saving.register_keras_serializable(package="mlflow_keras_adv")
class ConstantThenExponential(LearningRateSchedule):
    """A constant rate for a while, then an exponential decay.

    At step t the rate is
    `initial_learning_rate · decay_rate ** (max(0, t - constant_steps) / decay_steps)`.

    Args:
        initial_learning_rate: The constant rate.
        constant_steps: Number of updates with that rate.
        decay_steps: Number of updates in which the rate is then multiplied by `decay_rate`.
        decay_rate: Above 0, at most 1.
        name: Name of the schedule.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        constant_steps: int,
        decay_steps: int,
        decay_rate: float = math.exp(-1),
        name: str = "ConstantThenExponential",
    ) -> None:
        super().__init__()
        _check_rate("initial_learning_rate", initial_learning_rate)
        _check_steps("constant_steps", constant_steps, least=0)
        _check_steps("decay_steps", decay_steps)
        if not 0 < decay_rate <= 1:
            raise ValueError(
                f"Received decay_rate={decay_rate}; expected a number above 0, at most 1."
            )
        self.initial_learning_rate = initial_learning_rate
        self.constant_steps = constant_steps
        self.decay_steps = decay_steps
        self.decay_rate = decay_rate
        self.name = name

    def __call__(self, step: Any) -> Any:
        """The rate of the update that follows `step` others."""
        decayed = keras.ops.maximum(_float(step) - self.constant_steps, 0.0) / self.decay_steps
        return self.initial_learning_rate * keras.ops.power(_float(self.decay_rate), decayed)

    def get_config(self) -> dict[str, Any]:
        """The arguments, for `from_config`."""
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "constant_steps": self.constant_steps,
            "decay_steps": self.decay_steps,
            "decay_rate": self.decay_rate,
            "name": self.name,
        }


@keras.saving.register_keras_serializable(package="mlflow_keras_adv")
class CyclicalRate(LearningRateSchedule):
    """A rate that rises and falls linearly between two bounds.

    With `cycle = floor(t / (2 · step_size))` and `x = |t / step_size - 2 · cycle - 1|`, which runs
    from 1 to 0 and back within each cycle, the rate at step t is
    `initial + (maximal - initial) · (1 - x) · scale`. The scale is 1 for "triangular",
    `0.5 ** cycle` for "triangular2" and `gamma ** t` for "exp_range".

    Smith 2015, Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186.

    Args:
        initial_learning_rate: The lower bound, base_lr in the paper.
        maximal_learning_rate: The upper bound, max_lr there; not below the lower one.
        step_size: Number of updates of half a cycle; the paper advises 2 to 10 epochs.
        policy: How the amplitude of the cycles changes: "triangular", "triangular2" or "exp_range".
        gamma: The factor of "exp_range", above 0, at most 1.
        name: Name of the schedule.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        maximal_learning_rate: float,
        step_size: int,
        policy: Policy = "triangular",
        gamma: float = 1.0,
        name: str = "CyclicalRate",
    ) -> None:
        super().__init__()
        _check_rate("initial_learning_rate", initial_learning_rate)
        _check_rate("maximal_learning_rate", maximal_learning_rate)
        _check_steps("step_size", step_size)
        if initial_learning_rate > maximal_learning_rate:
            raise ValueError(
                f"Received initial_learning_rate={initial_learning_rate} and "
                f"maximal_learning_rate={maximal_learning_rate}; expected the second not below the "
                "first."
            )
        if policy not in ("triangular", "triangular2", "exp_range"):
            raise ValueError(
                f"Received policy={policy!r}; expected triangular, triangular2 or exp_range."
            )
        if not 0 < gamma <= 1:
            raise ValueError(f"Received gamma={gamma}; expected a number above 0, at most 1.")
        self.initial_learning_rate = initial_learning_rate
        self.maximal_learning_rate = maximal_learning_rate
        self.step_size = step_size
        self.policy = policy
        self.gamma = gamma
        self.name = name

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
        low, high = self.initial_learning_rate, self.maximal_learning_rate
        return low + (high - low) * (1 - x) * scale

    def get_config(self) -> dict[str, Any]:
        """The arguments, for `from_config`."""
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "maximal_learning_rate": self.maximal_learning_rate,
            "step_size": self.step_size,
            "policy": self.policy,
            "gamma": self.gamma,
            "name": self.name,
        }


def _float(value: Any) -> Any:
    return keras.ops.cast(value, "float32")


def _check_rate(name: str, rate: float) -> None:
    if not 0 <= rate < math.inf:
        raise ValueError(f"Received {name}={rate}; expected a finite learning rate, 0 or more.")


def _check_steps(name: str, steps: int, least: int = 1) -> None:
    if steps < least:
        raise ValueError(f"Received {name}={steps}; expected {least} or more updates.")

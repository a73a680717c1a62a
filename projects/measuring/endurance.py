"""What only a long training shows: whether it grows, and whether delivery makes it wait."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Thread
from typing import Any

import keras
import numpy as np
import psutil
import tensorflow as tf

import mlflow_keras_adv as mka
from projects.measuring.stores import scratch_run

EPOCHS = 100
# Steps of one call of the train function: in single steps the measurement would take minutes.
STEPS_PER_EXECUTION = 10
# As many rows as the logger hands in at once.
ROWS = 1024
KEYS = ("batch/loss", "gradient/norm", "gradient/norm_clipped", "optimizer/learning_rate")
IDLE_STEPS = 2000


@dataclass(frozen=True)
class Growth:
    """The last tenth of a long training against its first.

    Attributes:
        steps: Training steps in all.
        step_ms: Median time of a step in the first tenth, in milliseconds.
        time_ratio: Median time of a step in the last tenth, as a multiple of that.
        memory_bytes: By how much the process is larger in the last tenth than in the first.
    """

    steps: int
    step_ms: float
    time_ratio: float
    memory_bytes: float

    def __str__(self) -> str:
        return (
            f"Over {self.steps:,} steps with `MlflowLogger` the time of a step changes by a factor "
            f"of {self.time_ratio:.2f} ({self.step_ms:.3f} ms in the first tenth), the memory of "
            f"the process by {self.memory_bytes / 1e6:+.1f} MB."
        )


@dataclass(frozen=True)
class Delivery:
    """What a training thread felt while values were delivered beside it.

    Attributes:
        points: Metric values handed in.
        points_per_second: From the first that was handed in until the last was in the store.
        longest_handover_ms: Longest call of `Run.log_series`.
        longest_step_ms: Longest step during delivery.
        longest_idle_step_ms: Longest of `IDLE_STEPS` steps with nothing to deliver.
        step_ratio: Mean time of a step during delivery, as a multiple of that without.
    """

    points: int
    points_per_second: float
    longest_handover_ms: float
    longest_step_ms: float
    longest_idle_step_ms: float
    step_ratio: float

    def __str__(self) -> str:
        return (
            f"{self.points:,} values are delivered at {self.points_per_second:,.0f} a second. "
            f"Handing them in takes the training at most {self.longest_handover_ms:.1f} ms at a "
            f"time; beside the delivery its longest step takes {self.longest_step_ms:.1f} ms "
            f"({self.longest_idle_step_ms:.1f} ms without), the mean step {self.step_ratio:.2f} "
            "times as long."
        )


class _Watch(keras.callbacks.Callback):
    """Notes time and memory of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self.memory: list[int] = []
        self._process = psutil.Process()
        self._began = 0.0

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self.seconds.append(time.perf_counter() - self._began)
        self.memory.append(self._process.memory_info().rss)


def measure_growth(steps: int) -> Growth:
    """Trains a model of two weights with `MlflowLogger`, for about `steps` steps."""
    per_epoch = max(steps // EPOCHS, 1)
    x = np.random.default_rng(0).normal(size=(per_epoch, 8, 1)).astype(np.float32)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", steps_per_execution=min(STEPS_PER_EXECUTION, per_epoch))
    watch = _Watch()
    data = tf.data.Dataset.from_tensor_slices((x, x))
    with scratch_run():
        # The first epoch traces the step.
        callbacks = [mka.MlflowLogger(), watch]
        model.fit(data, epochs=1 + EPOCHS, callbacks=callbacks, shuffle=False, verbose=0)
    tenth = EPOCHS // 10
    seconds, memory = watch.seconds[1:], watch.memory[1:]
    first = float(np.median(seconds[:tenth]))
    return Growth(
        steps=(1 + EPOCHS) * per_epoch,
        step_ms=1000 * first / per_epoch,
        time_ratio=float(np.median(seconds[-tenth:])) / first,
        memory_bytes=float(np.median(memory[-tenth:]) - np.median(memory[:tenth])),
    )


def measure_delivery(points: int) -> Delivery:
    """Hands in `points` values, and goes on training until they are in the store."""
    train_step = _train_step()
    train_step()
    idle = [_timed(train_step) for _ in range(IDLE_STEPS)]
    rows = -(-points // len(KEYS))
    values = np.random.default_rng(0).random(rows)
    steps = np.arange(1, rows + 1)
    times = time.time_ns() // 1_000_000 + steps
    busy: list[float] = []
    handovers: list[float] = []
    with scratch_run(), mka.track() as run:
        began = time.perf_counter()
        for start in range(0, rows, ROWS):
            chunk = slice(start, start + ROWS)
            columns = dict.fromkeys(KEYS, values[chunk])
            handovers.append(
                _timed(run.log_series, columns, steps=steps[chunk], timestamps_ms=times[chunk])
            )
            busy.append(_timed(train_step))
        waiting = Thread(target=run.flush)
        waiting.start()
        while waiting.is_alive():
            busy.append(_timed(train_step))
        seconds = time.perf_counter() - began
    return Delivery(
        points=rows * len(KEYS),
        points_per_second=rows * len(KEYS) / seconds,
        longest_handover_ms=1000 * max(handovers),
        longest_step_ms=1000 * max(busy),
        longest_idle_step_ms=1000 * max(idle),
        step_ratio=float(np.mean(busy) / np.mean(idle)),
    )


def _train_step() -> Callable[[], object]:
    """A step that Python is most of: what a thread feels that shares the interpreter."""
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    optimizer = keras.optimizers.Adam()
    x, y = np.ones((32, 64), np.float32), np.zeros(32, np.int32)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = keras.losses.sparse_categorical_crossentropy(y, model(x), from_logits=True)
        optimizer.apply(tape.gradient(loss, model.trainable_weights), model.trainable_weights)
        return loss

    return lambda: step(x, y)


def _timed(call: Callable[..., object], *args: Any, **kwargs: Any) -> float:
    began = time.perf_counter()
    call(*args, **kwargs)
    return time.perf_counter() - began

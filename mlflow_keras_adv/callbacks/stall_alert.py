"""StallAlert: warns of a training that no longer improves, or has bad gradients."""

import logging
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlflow_keras_adv.callbacks.base import Joined, RunCallback
from mlflow_keras_adv.callbacks.monitor import Monitor, number_in
from mlflow_keras_adv.tracking.run import Run
from mlflow_keras_adv.training.readings import Readings

_logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]


class StallAlert(RunCallback):
    """Tags a run whose training stalls, logs a warning and, if asked, stops the training.

    Each kind of alert is given once per training, at the step at which it was found:

    - `no_improvement`: `monitor` did not improve for `patience` epochs.
    - `vanishing_gradients`, `exploding_gradients`: the global norm of the gradients was below
      `vanishing`, or above `exploding`, at each of `window` updates in a row.
    - `nonfinite_gradients`: a NaN or an infinity among the gradients of an update. Under loss
      scaling such updates are skipped, which is normal, unless `window` are in a row.
    - `nan_loss`: the loss of a batch or an epoch, or `monitor`, is NaN or infinite.

    The run's tag `alert` holds the kinds, in the order in which they came, and `alert.step` their
    steps. Steps are read in bulk, so an alert comes some seconds after its step.

    Args:
        monitor: Name of the value in the epoch's logs that should improve.
        mode: "min", "max" or "auto"; see `Monitor`.
        patience: Epochs without improvement until the alert.
        min_delta: Smallest change that counts as an improvement, in the unit of `monitor`.
        vanishing: Norm below which gradients count as vanishing.
        exploding: Norm above which gradients count as exploding.
        window: Number of consecutive updates.
        stop: Whether an alert stops the training.
        run: The run to write to, or its id. Default: the innermost `track`, else MLflow's active
            run; without any, nothing is watched and that is logged.

    Raises:
        ValueError: If `mode` is unknown, or `patience` or `window` is less than 1.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        mode: str = "auto",
        patience: int = 5,
        min_delta: float = 0.0,
        vanishing: float = 1e-7,
        exploding: float = 1e4,
        window: int = 50,
        stop: bool = False,
        run: Run | str | None = None,
    ) -> None:
        super().__init__(run)
        if patience < 1 or window < 1:
            raise ValueError(
                f"Received patience={patience} and window={window}; expected 1 or more of each."
            )
        self._monitor = Monitor(monitor, mode)
        self._patience = patience
        self._min_delta = min_delta
        self._vanishing = vanishing
        self._exploding = exploding
        self._window = window
        self._stop = stop

    def begin(self, joined: Joined) -> None:
        """Begins anew: what a training before was warned of counts no more."""
        self._best: float | None = None
        self._waited = 0
        self._streaks: Counter[tuple[str, str]] = Counter()
        self._alerts: dict[str, int] = {}

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Lets the readings come before the table of the steps is full."""
        if self._joined is not None:
            self._joined.batch_begin(batch)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Judges the epoch's values."""
        if self._joined is None:
            return
        step, logs = self._joined.step(), logs or {}
        for name in dict.fromkeys(["loss", self._monitor.name]):
            number = number_in(logs.get(name))
            if number is not None and not math.isfinite(number):
                self._alert("nan_loss", step, f"the epoch's {name} is not finite")
        value = self._monitor.read(logs, self.model)
        if value is None:
            return
        if self._best is None or self._monitor.improves(value, self._best, by=self._min_delta):
            self._best, self._waited = (None if math.isnan(value) else value), 0
            return
        self._waited += 1
        if self._waited == self._patience:
            what = f"{self._monitor.name} is {value:g}, its best {self._best:g} was"
            self._alert("no_improvement", step, f"{what} {self._waited} epochs ago")

    def receive(self, readings: Readings, steps: Array) -> None:
        """Judges the losses and gradients of the steps."""
        every = np.ones(readings.batches, bool)
        for key, column in readings.columns.items():
            values, present = column.data, ~np.ma.getmaskarray(column)
            if key == "batch/loss":
                self._alert_at_first("nan_loss", key, steps, present & ~np.isfinite(values))
            if key.startswith("gradient/") and key.endswith("/norm"):
                vanished, exploded = values < self._vanishing, values > self._exploding
                self._alert_in_a_row("vanishing_gradients", key, steps, vanished, present)
                self._alert_in_a_row("exploding_gradients", key, steps, exploded, present)
        for key, event in readings.events.items():
            if key.endswith("nonfinite"):
                gradient = key.removesuffix("nonfinite")
                skips = gradient.replace("gradient/", "optimizer/") + "skipped_updates"
                skipped = readings.events.get(skips, ~every)
                self._alert_at_first("nonfinite_gradients", gradient, steps, event & ~skipped)
                self._alert_in_a_row("nonfinite_gradients", skips, steps, skipped, every)

    def _alert_at_first(self, kind: str, key: str, steps: Array, bad: Array) -> None:
        if bad.any():
            self._alert(kind, int(steps[np.argmax(bad)]), f"{key.rstrip('/')} is not finite")

    def _alert_in_a_row(
        self, kind: str, key: str, steps: Array, bad: Array, present: Array
    ) -> None:
        """Alerts at `window` bad ones in a row, of those that are present."""
        for step, is_bad in zip(steps[present].tolist(), bad[present].tolist(), strict=True):
            streak = self._streaks[kind, key] = self._streaks[kind, key] + 1 if is_bad else 0
            if streak == self._window:
                self._alert(kind, step, f"{key}, for {streak} updates in a row")

    def _alert(self, kind: str, step: int, what: str) -> None:
        if kind in self._alerts or self._joined is None:
            return
        self._alerts[kind] = step
        steps = ", ".join(str(each) for each in self._alerts.values())
        self._joined.run.set_tags({"alert": ", ".join(self._alerts), "alert.step": steps})
        _logger.warning("%s at step %d: %s.", kind, step, what)
        if self._stop:
            self.model.stop_training = True

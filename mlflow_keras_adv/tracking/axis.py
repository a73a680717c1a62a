"""StepAxis: the one axis of all curves of a run, also of one that is taken up again."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

_logger = logging.getLogger(__name__)

# Sections whose steps are training batches; `final/…` and `system/…` have steps of their own.
_ON_THE_AXIS = ("batch/", "gradient/", "optimizer/", "train/", "val/")
_COUNTS = ("nonfinite", "skipped_updates")


@dataclass(frozen=True)
class EarlierRecord:
    """What is in the store from before.

    Attributes:
        last_step: Training batches consumed.
        epoch_ends: Step at which each epoch ended, by the number of epochs that were done then.
        counts: Running counts, by metric key.
    """

    last_step: int = 0
    epoch_ends: Mapping[int, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


class StepAxis:
    """Counts the training batches that were consumed in a run so far.

    Args:
        earlier: Where the run has come to before.

    Attributes:
        batches: Training batches consumed.
    """

    def __init__(self, earlier: EarlierRecord) -> None:
        self.batches = earlier.last_step
        self._epoch_ends = dict(earlier.epoch_ends)
        self._reading: object = None

    def steps_of(self, reading: object, batches: int) -> "np.ndarray[Any, Any]":
        """The steps of the batches in a reading, which the axis advances by.

        However many callbacks ask for the same reading, it counts once.

        Args:
            reading: What was read; equal only to itself.
            batches: Training batches in it.

        Returns:
            int64 of shape `[batches]`.
        """
        if reading is not self._reading:
            self._reading = reading
            self.batches += batches
        return np.arange(self.batches - batches, self.batches) + 1

    def back_to_epoch(self, epochs: int) -> str | None:
        """Goes back to where an earlier training of this run had done `epochs` epochs.

        For a training that goes on from a checkpoint, before its first step.

        Args:
            epochs: Number of epochs done, `initial_epoch` of `fit`.

        Returns:
            What is superseded, as `121-140 before <ms>`: of two points at these steps the one that
            was stamped before that moment (milliseconds since the epoch) does not count. None where
            no such epoch is on record, or nothing came after it.
        """
        end = self._epoch_ends.get(epochs)
        self._epoch_ends = {}
        if end is None or end >= self.batches:
            return None
        superseded = f"{end + 1}-{self.batches} before {time.time_ns() // 1_000_000}"
        self.batches = end
        return superseded


def earlier_record(run_id: str, client: MlflowClient) -> EarlierRecord:
    """Reads how far an earlier process, or an earlier `track`, has come in a run.

    A store that fails is no reason to stop a training: the axis then starts anew, and that is said.
    """
    try:
        # Private, but the public dict has no steps.
        metrics = client.get_run(run_id).data._metric_objs
        ours = [metric for metric in metrics if metric.key.startswith(_ON_THE_AXIS)]
        if not ours:
            return EarlierRecord()
        epochs = client.get_metric_history(run_id, "train/epoch")
    except MlflowException as error:
        _logger.warning(
            "Run %s: its earlier steps cannot be read, so they start at 1: %s", run_id, error
        )
        return EarlierRecord()
    return EarlierRecord(
        last_step=max(metric.step for metric in ours),
        epoch_ends={int(point.value): point.step for point in sorted(epochs, key=_step)},
        counts={metric.key: int(metric.value) for metric in ours if metric.key.endswith(_COUNTS)},
    )


def _step(point: object) -> int:
    return int(getattr(point, "step", 0))

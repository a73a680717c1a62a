"""StepAxis: the one axis of all curves of a run, also of one that is taken up again."""

import logging
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from mlflow_keras_adv.compat.mlflow import last_metrics
from mlflow_keras_adv.tracking.names import KINDS, KeyTable

_logger = logging.getLogger(__name__)

# Sections whose steps are training batches; `final/…` and `system/…` have steps of their own.
_ON_THE_AXIS = ("batch/", "gradient/", "optimizer/", "train/", "val/")
_COUNTS = ("nonfinite", "skipped_updates")
# Tags: which points do not count any more, and where the axis stands off the optimizer's count.
_SUPERSEDED = re.compile(r"superseded(\.\d+)?")
_SPAN = re.compile(r"(\d+)-(\d+) before (\d+)")
_OFFSET_TAG = "step_offset"


@dataclass(frozen=True)
class EarlierRecord:
    """What is in the store from before.

    Attributes:
        last_step: Training batches consumed.
        epoch_ends: Step at which each epoch of the last training ended, by its number of epochs.
        complete: Whether that training had done all of its epochs.
        offset: The step less the batches that the weights had seen by then, as their optimizer
            counts them. None where it does not count batches.
        counts: Running counts, by metric key.
        key_tables: Which name has which key, by kind.
    """

    last_step: int = 0
    epoch_ends: Mapping[int, int] = field(default_factory=dict)
    complete: bool = False
    offset: int | None = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    key_tables: Mapping[str, KeyTable] = field(default_factory=dict)

    def place_of(self, epochs: int, batches: int | None) -> int | None:
        """The step of a checkpoint, from which a training goes on.

        Args:
            epochs: Epochs done, as the checkpoint says; `initial_epoch` of `fit`.
            batches: Batches that its weights have seen, as their optimizer counts them, which is
                what tells of a checkpoint inside of an epoch. None if it does not tell.

        Returns:
            None if the training is no continuation of the one on record.
        """
        step = None
        if batches is not None and self.offset is not None:
            step = max(0, batches + self.offset)
        if epochs == 0:
            step = 0 if batches == 0 else step
            return None if self.complete or step is None or step > self.last_step else step
        begin = self.epoch_ends.get(epochs)
        if begin is None:  # it was killed before the end of that epoch was on record
            return step if step and step > max(self.epoch_ends.values(), default=0) else None
        end = self.epoch_ends.get(epochs + 1, self.last_step)
        # Weights that were saved without their optimizer have seen nothing.
        return step if step is not None and begin <= step <= end else begin


class StepAxis:
    """Counts the training batches that were consumed in a run so far.

    Args:
        earlier: Where the run has come to before.

    Attributes:
        batches: Training batches consumed.
    """

    def __init__(self, earlier: EarlierRecord) -> None:
        self.batches = earlier.last_step
        self._earlier: EarlierRecord | None = earlier if earlier.last_step else None
        self._offset = earlier.offset
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

    def back_to_checkpoint(self, epochs: int, batches: int | None = None) -> str | None:
        """Goes to where a training begins: the first one in a run that is taken up again.

        Before its first step. Weights that have seen nothing begin at step 1 again, unless the
        training on record had come to its end; this one then comes after it.

        Args:
            epochs: Number of epochs done, `initial_epoch` of `fit`.
            batches: Batches that its weights have seen; see `EarlierRecord.place_of`.

        Returns:
            What is superseded, as `121-140 before <ms>`: of two points at these steps the one that
            was stamped before that moment (milliseconds since the epoch) does not count. None where
            nothing is on record after the checkpoint.
        """
        earlier, self._earlier = self._earlier, None
        place = None if earlier is None else earlier.place_of(epochs, batches)
        if place is None or place == self.batches:
            return None
        last, self.batches = self.batches, place
        return None if place > last else _span(place + 1, last)

    def back_to_begin(self) -> str | None:
        """Goes to before the first step, though the training on record may have come to its end.

        Returns:
            What is superseded, as `back_to_checkpoint` says it.
        """
        self._earlier = None
        last, self.batches = self.batches, 0
        return _span(1, last) if last else None

    def offset_tags(self, batches: int | None, *, begins: bool = False) -> dict[str, str]:
        """The tag that keeps `EarlierRecord.offset`, if it has to be written: most runs have none.

        Args:
            batches: Batches that the model's weights have seen, as their optimizer counts them.
            begins: Whether the training begins; later the offset may not change any more.
        """
        offset = None if batches is None else self.batches - batches
        if not begins and offset != self._offset:
            offset = None
        if offset == self._offset:
            return {}
        self._offset = offset
        return {_OFFSET_TAG: "unknown" if offset is None else str(offset)}


def earlier_record(run_id: str, client: MlflowClient) -> EarlierRecord:
    """Reads how far an earlier process, or an earlier `track`, has come in a run.

    A store that fails is no reason to stop a training: the axis then starts anew, and that is said.
    """
    try:
        data = client.get_run(run_id).data
        key_tables = {kind: KeyTable(kind, getattr(data, kind), data.tags) for kind in KINDS}
        ours = [metric for metric in last_metrics(data) if is_on_axis(metric.key)]
        if not ours:
            return EarlierRecord(key_tables=key_tables)
        points = client.get_metric_history(run_id, "train/epoch")
    except MlflowException as error:
        _logger.warning(
            "Run %s: its earlier steps cannot be read, so they start at 1: %s", run_id, error
        )
        return EarlierRecord()
    spans = superseded_spans(data.tags)
    epoch_ends: dict[int, int] = {}
    for point in sorted(points, key=lambda each: each.step):
        if not is_superseded(point, spans):
            epoch = int(point.value)
            # A later training begins with its first epoch.
            epoch_ends = {each: end for each, end in epoch_ends.items() if each < epoch}
            epoch_ends[epoch] = point.step
    planned = data.tags.get("param.fit.epochs.changed", data.params.get("fit.epochs", ""))
    offset = data.tags.get(_OFFSET_TAG, "0")
    counts = {metric.key: int(metric.value) for metric in ours if metric.key.endswith(_COUNTS)}
    return EarlierRecord(
        last_step=max(metric.step for metric in ours),
        epoch_ends=epoch_ends,
        complete=planned.isdecimal() and int(planned) in epoch_ends,
        offset=None if offset == "unknown" else int(offset),
        counts={**counts, "resumed": len(spans)},
        key_tables=key_tables,
    )


def _span(first: int, last: int) -> str:
    return f"{first}-{last} before {time.time_ns() // 1_000_000}"


def is_on_axis(key: str) -> bool:
    """Whether the steps of a metric are training batches."""
    return key.startswith(_ON_THE_AXIS)


def superseded_spans(tags: Mapping[str, str]) -> list[tuple[int, int, int]]:
    """What the tags of a run say to be superseded: first step, last step, and before which time."""
    named = [value for tag, value in tags.items() if _SUPERSEDED.fullmatch(tag)]
    found = [match.groups() for value in named if (match := _SPAN.fullmatch(value))]
    return [(int(first), int(last), int(before)) for first, last, before in found]


def is_superseded(point: Metric, spans: Iterable[tuple[int, int, int]]) -> bool:
    """Whether a point of a curve does not count any more, the training having gone back."""
    return any(
        first <= point.step <= last and point.timestamp < before for first, last, before in spans
    )

"""Where the record of a run that is taken up again has come to."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

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

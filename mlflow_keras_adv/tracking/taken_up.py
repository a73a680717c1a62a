"""Whether a run whose journal is delivered late has been taken up elsewhere meanwhile."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import compress

import numpy as np
from mlflow import MlflowClient

from mlflow_keras_adv.tracking.axis import is_on_axis
from mlflow_keras_adv.tracking.journal import Journal, peek
from mlflow_keras_adv.tracking.names import metric_key
from mlflow_keras_adv.tracking.records import Record, Series, Values, decode


@dataclass(frozen=True)
class TakenUp:
    """What a journal holds of steps that another process has gone through again.

    Attributes:
        first_step: The first step that the other process has gone through again.
        last_step: The last step of the journal.
        since: When the other process was there, in milliseconds since the epoch.
    """

    first_step: int
    last_step: int
    since: int

    def tags(self) -> dict[str, str]:
        """Says of the points of the journal that they do not count; see `axis.is_superseded`."""
        span = f"{self.first_step}-{self.last_step} before {self.since}"
        return {f"superseded.{self.since}": span}


def taken_up(client: MlflowClient, journal: Journal) -> TakenUp | None:
    """What of a journal another process has trained again, which went on with the run elsewhere.

    A point of the store that is at a step of the journal and not in it is of that process.

    Args:
        client: The store of the run.
        journal: Taken over.

    Returns:
        None if the store holds nothing of another process at these steps.

    Raises:
        mlflow.exceptions.MlflowException: The store does not answer.
    """
    texts = peek(journal.folder)[1]
    records = [record for text in texts if isinstance(record := _of(text, journal), Values)]
    counts: Counter[str] = Counter()
    for record in records:
        counts += record.names
    keys = [key for name, _ in counts.most_common() if is_on_axis(key := metric_key(name))]
    if not keys:
        return None
    # All keys of a training are at the same steps, more or less: one tells.
    run_id, own = journal.about.run_id, defaultdict(set)
    for record in records:
        for step, moment in _moments(record, keys[0]):
            own[step].add(moment)
    if keys[0] not in client.get_run(run_id).data.metrics:
        return None
    others = [
        point
        for point in client.get_metric_history(run_id, keys[0])
        if point.step in own and point.timestamp not in own[point.step]
    ]
    newest = max(moment for moments in own.values() for moment in moments)
    # An earlier point is one that the trainer itself has superseded.
    later = [point for point in others if point.timestamp > newest]
    if not later:
        return None
    first = min(point.step for point in later)
    return TakenUp(first, max(own), min(point.timestamp for point in later))


def _of(text: bytes, journal: Journal) -> Record | None:
    with suppress(ValueError, TypeError, KeyError):  # damaged: said when it is delivered
        return decode(text, journal.folder)
    return None


def _moments(record: Values, key: str) -> Iterator[tuple[int, int]]:
    """The step and the time of each value of a metric."""
    if isinstance(record, Series):
        steps, times = record.steps.tolist(), record.timestamps_ms.tolist()
        for name, column in record.columns.items():
            if metric_key(name) == key:
                valid = (~np.ma.getmaskarray(column)).tolist()
                yield from compress(zip(steps, times, strict=True), valid)
        return
    for point in record:
        if point.key == key:
            yield point.step, point.timestamp

"""What a run shows of values that its store does not have yet."""

from collections.abc import Iterable

from mlflow.entities import Metric, Param, Run, RunData, RunTag

from mlflow_keras_adv.compat.mlflow import last_metrics, with_changes
from mlflow_keras_adv.tracking.records import End, Params, Record, TagDeletion, Tags, Values


def with_waiting(run: Run, records: Iterable[Record]) -> Run:
    """A run as it will be once records that wait are delivered.

    Args:
        run: As the store has shown it last.
        records: What waits, oldest first. Applied twice, they change nothing more.
    """
    metrics = {metric.key: metric for metric in last_metrics(run.data)}
    params, tags, info = dict(run.data.params), dict(run.data.tags), run.info
    for record in records:
        match record:
            case Values():
                for metric in record:
                    known = metrics.get(metric.key)
                    if known is None or _moment(known) <= _moment(metric):
                        metrics[metric.key] = metric
            case Params():
                params = {key: str(value) for key, value in record.values.items()} | params
            case Tags():
                tags |= record.values
            case TagDeletion():
                tags.pop(record.key, None)
            case End():
                info = with_changes(info, status=record.status, end_time=record.end_time)
    data = RunData(
        metrics=list(metrics.values()),
        params=[Param(*each) for each in params.items()],
        tags=[RunTag(*each) for each in tags.items()],
    )
    return Run(info, data, run.inputs, run.outputs)


def history_of(key: str, records: Iterable[Record]) -> list[Metric]:
    """The values of a metric among records that wait."""
    return [
        metric
        for record in records
        if isinstance(record, Values)
        for metric in record
        if metric.key == key
    ]


def _moment(metric: Metric) -> tuple[int, int]:
    return metric.step, metric.timestamp

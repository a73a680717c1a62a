"""Carries what a run holds: params, tags, metric values, datasets, and which models are its own."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import (
    LoggedModel,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    RunInputs,
    RunOutputs,
    RunTag,
)
from mlflow.utils.mlflow_tags import (
    MLFLOW_LOGGED_ARTIFACTS,
    MLFLOW_LOGGED_MODELS,
    MLFLOW_RUN_NAME,
)
from mlflow.utils.validation import MAX_METRICS_PER_BATCH, MAX_PARAMS_TAGS_PER_BATCH

from mlflow_keras_adv.tracking.carry_target import (
    CONTINUES_TAG,
    Carried,
    RejectedError,
    Target,
)
from mlflow_keras_adv.tracking.names import UID_TAG, same_param

_T = TypeVar("_T")

_JSON_LISTS = (MLFLOW_LOGGED_ARTIFACTS, MLFLOW_LOGGED_MODELS)

_Point = tuple[str, int, int, float]
Links = dict[_Point, list[Metric]]


def links_of(models: Iterable[LoggedModel]) -> dict[str, Links]:
    """For each run, which values are those of a model too: its history does not say so."""
    links: dict[str, Links] = defaultdict(lambda: defaultdict(list))
    for model in models:
        for metric in model.metrics or []:
            links[str(metric.run_id)][_as_model_metric(metric)].append(metric)
    return links


def fill_params_and_tags(target: Target, run: Run, there: Run, carried: Carried) -> None:
    """Logs the params and tags that the target does not hold.

    A param that has changed in a continued run becomes a tag, as it does in a live run.
    """
    left_out = {UID_TAG, CONTINUES_TAG}
    if CONTINUES_TAG in run.data.tags:
        left_out.add(MLFLOW_RUN_NAME)
    tags = {
        key: target.translate(text) for key, text in run.data.tags.items() if key not in left_out
    }
    missing: list[Param | RunTag] = []
    for key, text in run.data.params.items():
        if key not in there.data.params:
            missing.append(Param(key, text))
        elif not same_param(there.data.params[key], text):
            tags[f"param.{key}.changed"] = text
    for key in _JSON_LISTS:
        if key in tags and key in there.data.tags:
            rows = json.loads(there.data.tags[key])
            rows += [row for row in json.loads(tags[key]) if row not in rows]
            tags[key] = json.dumps(rows)
    missing += [RunTag(key, text) for key, text in tags.items() if there.data.tags.get(key) != text]
    for batch in _batches(missing, MAX_PARAMS_TAGS_PER_BATCH):
        target.log(there.info.run_id, batch, carried)


def fill_metrics(
    source: MlflowClient, target: Target, run: Run, there: Run, links: Links, carried: Carried
) -> None:
    """Logs the metric values that the target does not hold, with their time and step."""
    run_id = there.info.run_id
    again: list[Metric] = []  # values that several models share, once more for each

    def missing() -> Iterator[Metric]:
        for key in run.data.metrics:
            known = set()
            if key in there.data.metrics:
                history = target.ask(target.client.get_metric_history, run_id, key)
                known = {_identity(point) for point in history}
            for point in source.get_metric_history(run.info.run_id, key):
                linked = [
                    _of_model(point, link, target.ids[str(link.model_id)])
                    for link in links.pop(_as_model_metric(point), [])
                    if _is_carried(target, str(link.model_id), f"{key} of", carried)
                ]
                again.extend(linked[1:])
                if linked:
                    yield linked[0]
                elif _identity(point) not in known:
                    yield point
                else:
                    carried.points += 1

    for batch in _batches(missing(), MAX_METRICS_PER_BATCH):
        accepted = target.log(run_id, batch, carried)
        carried.points += accepted
        carried.refused_points += len(batch) - accepted
    for batch in _batches(again, MAX_METRICS_PER_BATCH):
        target.log(run_id, batch, carried)


def fill_inputs(target: Target, run: Run, there: Run, carried: Carried) -> None:
    """Logs the datasets and models that the run used."""
    here, known = run.inputs or RunInputs([]), there.inputs or RunInputs([])
    datasets = {(each.dataset.name, each.dataset.digest) for each in known.dataset_inputs}
    for each in here.dataset_inputs:
        if (each.dataset.name, each.dataset.digest) not in datasets:
            try:
                target.ask(target.client.log_inputs, there.info.run_id, datasets=[each])
            except RejectedError as error:
                carried.refuse(f"dataset {each.dataset.name}", error)
    before = {each.model_id for each in known.model_inputs}
    models = [
        LoggedModelInput(target.ids[each.model_id])
        for each in here.model_inputs
        if _is_carried(target, each.model_id, "input", carried)
        and target.ids[each.model_id] not in before
    ]
    if models:
        target.ask(target.client.log_inputs, there.info.run_id, models=models)


def fill_outputs(target: Target, run: Run, there: Run, carried: Carried) -> None:
    """Logs the models that the run made; MLflow refuses one that it holds already."""
    here, known = run.outputs or RunOutputs([]), there.outputs or RunOutputs([])
    before = {each.model_id for each in known.model_outputs}
    missing = [
        LoggedModelOutput(model_id=target.ids[each.model_id], step=each.step)  # type: ignore[arg-type, unused-ignore]
        for each in here.model_outputs
        if _is_carried(target, each.model_id, "output", carried)
        and target.ids[each.model_id] not in before
    ]
    if not missing:
        return
    try:
        target.ask(target.client.log_outputs, there.info.run_id, missing)
    except RejectedError:  # MLflow's HTTP client has sent them twice
        outputs = target.active_run(there.info.run_id).outputs or RunOutputs([])
        if not {each.model_id for each in missing} <= {
            each.model_id for each in outputs.model_outputs
        }:
            raise


def _is_carried(target: Target, model_id: str, what: str, carried: Carried) -> bool:
    if model_id not in target.ids:
        carried.refuse(f"{what} model {model_id}", "The model was not carried.")
    return model_id in target.ids


def _of_model(point: Metric, link: Metric, model_id: str) -> Metric:
    return Metric(
        point.key,
        point.value,
        point.timestamp,
        point.step,
        model_id=model_id,
        dataset_name=link.dataset_name,
        dataset_digest=link.dataset_digest,
    )


def _as_model_metric(point: Metric) -> _Point:
    """What tells a value of a model from others; MLflow keeps its NaN as 0."""
    value = 0.0 if math.isnan(point.value) else point.value
    return point.key, point.step, point.timestamp, value


def _identity(point: Metric) -> tuple[int, int, float | None]:
    """What tells a value of a run from others of its key."""
    return point.step, point.timestamp, None if math.isnan(point.value) else point.value


def _batches(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch

"""The records of a run that stands in a store of this machine, for another store.

Ids and places in them are those of the other store.
"""

import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Metric, Run, RunInputs, RunOutputs, RunStatus
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.utils.mlflow_tags import (
    MLFLOW_LOGGED_ARTIFACTS,
    MLFLOW_LOGGED_MODELS,
    MLFLOW_RUN_NAME,
)
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

from mlflow_keras_adv.compat.mlflow import local_path
from mlflow_keras_adv.tracking.delivery import batches
from mlflow_keras_adv.tracking.logged_models import of_model
from mlflow_keras_adv.tracking.names import UID_TAG, Translation
from mlflow_keras_adv.tracking.records import (
    End,
    File,
    Input,
    ModelInput,
    ModelOutput,
    Params,
    Points,
    Record,
    Refusal,
    Rows,
    Tags,
)
from mlflow_keras_adv.tracking.target import Target

# Of a run in the source: the run of the target that it goes on.
CONTINUES_TAG = "mlflow_keras_adv.continues"

_JSON_LISTS = (MLFLOW_LOGGED_ARTIFACTS, MLFLOW_LOGGED_MODELS)

_Point = tuple[str, int, int, float]
Links = dict[_Point, list[Metric]]


class MorePoints(Points):
    """Values that the run holds already, for a further model that they are those of."""


class RecordsOfRun:
    """The records of a run, in the order in which they are to be applied.

    Args:
        source: The store that it stands in.
        run: The run.
        target: The store that they are for.
        there: The run there, as far as it has come: values that it holds are left out.
        translation: What becomes of ids and places. Models that are not in it were refused.
        links: Which values of the run are those of a model too.

    Attributes:
        points: How many metric values the run has, as far as they were read.
    """

    def __init__(
        self,
        source: MlflowClient,
        run: Run,
        *,
        target: Target,
        there: Run,
        translation: Translation,
        links: Links,
    ) -> None:
        self.points = 0
        self._source = source
        self._run = run
        self._target = target
        self._there = there
        self._translation = translation
        self._ids = target.ids
        self._links = links

    def __iter__(self) -> Iterator[Record]:
        with tempfile.TemporaryDirectory() as folder:
            for file, parent in files_of(
                self._run.info.artifact_uri, Path(folder), self._translation
            ):
                yield File(file, parent)
        yield Params(self._run.data.params)
        yield from self._tags()
        further: list[Metric] = []
        for batch in batches(self._values(further), MAX_METRICS_PER_BATCH):
            yield from self._refusals_of_links()
            yield Points(batch)
        yield from self._refusals_of_links()
        for batch in batches(further, MAX_METRICS_PER_BATCH):
            yield MorePoints(batch)
        yield from self._inputs_and_outputs()
        if RunStatus.is_terminated(RunStatus.from_string(self._run.info.status)):
            yield End(self._run.info.status, self._run.info.end_time)

    def _tags(self) -> Iterator[Record]:
        left_out = {UID_TAG, CONTINUES_TAG}
        if CONTINUES_TAG in self._run.data.tags:
            left_out.add(MLFLOW_RUN_NAME)
        tags = {
            key: self._translation.of(text)
            for key, text in self._run.data.tags.items()
            if key not in left_out
        }
        for key in _JSON_LISTS:
            if key in tags and key in self._there.data.tags:
                yield Rows(key, json.loads(tags.pop(key)))
        yield Tags(tags)

    def _values(self, further: list[Metric]) -> Iterator[Metric]:
        """Those that are not there; what several models share, once more for each of them."""
        self._lost_links: list[str] = []
        for key in self._run.data.metrics:
            known = set()
            if key in self._there.data.metrics:
                run_id = self._there.info.run_id
                history = self._target.ask(self._target.client.get_metric_history, run_id, key)
                known = {_identity(point) for point in history}
            for point in self._source.get_metric_history(self._run.info.run_id, key):
                self.points += 1
                linked = []
                for link in self._links.pop(_as_model_metric(point), []):
                    if str(link.model_id) in self._ids:
                        model_id = self._ids[str(link.model_id)]
                        linked.append(of_model(point, model_id, measured_on=link))
                    else:
                        self._lost_links.append(f"{key} of model {link.model_id}")
                further += linked[1:]
                if linked:
                    yield linked[0]
                elif _identity(point) not in known:
                    yield point

    def _refusals_of_links(self) -> Iterator[Record]:
        for name in self._lost_links:
            yield Refusal(name, "The model was not copied.", 0)
        self._lost_links.clear()

    def _inputs_and_outputs(self) -> Iterator[Record]:
        inputs = self._run.inputs or RunInputs([])
        known = self._there.inputs or RunInputs([])
        held = {(each.dataset.name, each.dataset.digest) for each in known.dataset_inputs}
        for data in inputs.dataset_inputs:
            if (data.dataset.name, data.dataset.digest) not in held:
                yield Input(data)
        for used in inputs.model_inputs:
            if used.model_id in self._ids:
                yield ModelInput(self._ids[used.model_id])
            else:
                yield Refusal(f"input model {used.model_id}", "The model was not copied.", 0)
        for made in (self._run.outputs or RunOutputs([])).model_outputs:
            if made.model_id in self._ids:
                yield ModelOutput(self._ids[made.model_id], int(made.step))
            else:
                yield Refusal(f"output model {made.model_id}", "The model was not copied.", 0)


def files_of(
    artifact_root: str, folder: Path, translation: Translation
) -> Iterator[tuple[Path, str | None]]:
    """The files of a run or a model, and the folder of its artifacts that each is in.

    Args:
        artifact_root: URI of their folder, on this machine.
        folder: For files that are changed: an MLmodel names its model, its run and its place.
        translation: What becomes of those.
    """
    root = local_path(artifact_root)
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        place = file.relative_to(root)
        if file.name == MLMODEL_FILE_NAME:
            text = translation.of(file.read_text(encoding="utf-8"))
            file = folder / MLMODEL_FILE_NAME
            file.write_text(text, encoding="utf-8")
        yield file, None if place.parent == Path() else place.parent.as_posix()


def links_of(models: Iterable[LoggedModel]) -> Mapping[str, Links]:
    """For each run, which values are those of a model too: its history does not say so."""
    links: dict[str, Links] = defaultdict(lambda: defaultdict(list))
    for model in models:
        for metric in model.metrics or []:
            links[str(metric.run_id)][_as_model_metric(metric)].append(metric)
    return links


def _as_model_metric(point: Metric) -> _Point:
    """What tells a value of a model from others; MLflow keeps its NaN as 0."""
    value = 0.0 if math.isnan(point.value) else point.value
    return point.key, point.step, point.timestamp, value


def _identity(point: Metric) -> tuple[int, int, float | None]:
    """What tells a value of a run from others of its key."""
    return point.step, point.timestamp, None if math.isnan(point.value) else point.value

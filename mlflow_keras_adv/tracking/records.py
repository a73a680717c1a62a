"""Records: what a run can be told, each of which can be applied to it any number of times.

In a journal a record is one line of JSON, followed by the bytes of its arrays: nothing in it is
executed when it is read, as a pickle would be.
"""

import json
import posixpath
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelStatus,
    Metric,
    Param,
    RunInputs,
)
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

from mlflow_keras_adv.compat.mlflow import log_model_files
from mlflow_keras_adv.tracking.delivery import Delivery
from mlflow_keras_adv.tracking.logged_models import (
    COPY_IS_GONE,
    SavedModel,
    deliver_model,
    ensure_output,
    fill_model,
)
from mlflow_keras_adv.tracking.names import metric_key
from mlflow_keras_adv.tracking.retry import FAILURES
from mlflow_keras_adv.tracking.verdict import RejectedError, of_artifacts

ROWS_AT_ONCE = 1000


class Record:
    """One thing that a run is told.

    A new kind is a class with `apply` and a title. Where its fields are not plain values, `fields`
    and `read` say how it stands in a journal.

    Attributes:
        TITLE: What it is called in messages and receipts, by its attributes.
        points: How many metric values are in it.
    """

    TITLE: ClassVar[str]
    points: int = 0

    @property
    def title(self) -> str:
        """What it is called."""
        return self.TITLE.format(self=self)

    @property
    def names(self) -> Counter[str]:
        """What is in it by name, and how often."""
        return Counter([self.title])

    def apply(self, run: Delivery) -> None:
        """Brings it to the store of a run.

        Raises:
            RetryCancelledError: If the retries were cancelled meanwhile.
        """
        raise NotImplementedError

    def discard(self) -> None:
        """Deletes what belongs to it beside the journal: it is settled."""

    def fields(self) -> tuple[dict[str, Any], "Sequence[np.ndarray[Any, Any]]"]:
        """What stands for it in a journal: plain fields, and arrays."""
        return asdict(self), ()  # type: ignore[call-overload]

    @classmethod
    def read(cls, **fields: Any) -> Self:
        """Made of what `fields` has given; the bytes of arrays are `data`."""
        return cls(**fields)


class WithCopy(Record):
    """A record that names the copy of a file or folder, alone in a folder of its own."""

    path: Path

    def discard(self) -> None:
        """Deletes the copy."""
        shutil.rmtree(self.path.parent, ignore_errors=True)

    def fields(self) -> tuple[dict[str, Any], "Sequence[np.ndarray[Any, Any]]"]:
        """The path as text."""
        return asdict(self) | {"path": str(self.path)}, ()  # type: ignore[call-overload]

    @classmethod
    def read(cls, **fields: Any) -> Self:
        """Of the path as text."""
        return cls(**fields | {"path": Path(fields["path"])})

    def relative_to(self, folder: Path) -> Self:
        """The same, its copy named relative to a folder, if it is in it."""
        if not self.path.is_relative_to(folder):
            return self
        return replace(self, path=self.path.relative_to(folder))  # type: ignore[type-var]

    def below(self, folder: Path) -> Self:
        """The same, its copy named relative to a folder before."""
        return replace(self, path=folder / self.path)  # type: ignore[type-var]


class Values(Record):
    """Nothing but metric values: as many as it is long, one after another."""

    @property
    def points(self) -> int:  # type: ignore[override]
        """How many there are."""
        return len(self)

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Metric]:
        raise NotImplementedError

    def apply(self, run: Delivery) -> None:
        """Logs them."""
        run.send_values(self)


@dataclass(frozen=True)
class Points(Values):
    """Metric values of one moment."""

    metrics: Sequence[Metric]

    @property
    def names(self) -> Counter[str]:
        """Their keys."""
        return Counter(metric.key for metric in self.metrics)

    def __len__(self) -> int:
        return len(self.metrics)

    def __iter__(self) -> Iterator[Metric]:
        return iter(self.metrics)

    def fields(self) -> tuple[dict[str, Any], "Sequence[np.ndarray[Any, Any]]"]:
        """A list for each value."""
        return {"metrics": [_metric_fields(metric) for metric in self.metrics]}, ()

    @classmethod
    def read(cls, **fields: Any) -> Self:
        """Of a list for each value."""
        return cls([Metric(*each) for each in fields["metrics"]])


@dataclass(frozen=True)
class Series(Values):
    """Metric values of many moments. They become Python objects only as they are sent.

    Attributes:
        columns: Per metric an array of shape `[rows]`; masked where it has no value.
        steps: Integers of shape `[rows]`.
        timestamps_ms: Milliseconds since the epoch, integers of shape `[rows]`.
    """

    columns: Mapping[str, "np.ma.MaskedArray[tuple[int], np.dtype[np.generic]]"]
    steps: "np.ndarray[tuple[int], np.dtype[np.integer]]"
    timestamps_ms: "np.ndarray[tuple[int], np.dtype[np.integer]]"

    @property
    def names(self) -> Counter[str]:
        """Their keys."""
        return Counter({name: int(column.count()) for name, column in self.columns.items()})

    def __len__(self) -> int:
        return sum(int(column.count()) for column in self.columns.values())

    def __iter__(self) -> Iterator[Metric]:
        keys = [metric_key(name) for name in self.columns]
        for start in range(0, len(self.steps), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            columns = (column[rows].tolist() for column in self.columns.values())
            moments = zip(self.timestamps_ms[rows].tolist(), self.steps[rows].tolist(), strict=True)
            for moment, *values in zip(moments, *columns, strict=True):
                for key, value in zip(keys, values, strict=True):
                    if value is not None:  # `tolist` makes None of what is masked
                        yield Metric(key, float(value), *moment)

    def fields(self) -> tuple[dict[str, Any], "Sequence[np.ndarray[Any, Any]]"]:
        """The columns' types, and the arrays as they are."""
        types = {name: column.dtype.str for name, column in self.columns.items()}
        arrays = [np.asarray(each, "<i8") for each in (self.steps, self.timestamps_ms)]
        for column in self.columns.values():
            arrays += [np.ma.getdata(column), np.ma.getmaskarray(column)]
        return {"rows": len(self.steps), "types": types}, arrays

    @classmethod
    def read(cls, **fields: Any) -> Self:
        """Of arrays one after another."""
        rows, data, position = fields["rows"], fields["data"], 0

        def next_array(kind: str) -> "np.ndarray[Any, Any]":
            nonlocal position
            array = np.frombuffer(data, kind, rows, position)
            position += array.nbytes
            return array

        steps, timestamps_ms = next_array("<i8"), next_array("<i8")
        columns: dict[str, np.ma.MaskedArray[Any, Any]] = {
            name: np.ma.masked_array(next_array(kind), next_array("?"))
            for name, kind in fields["types"].items()
        }
        return cls(columns, steps, timestamps_ms)


@dataclass(frozen=True)
class Params(Record):
    """Parameters, flat and plain."""

    values: Mapping[str, object]

    @property
    def names(self) -> Counter[str]:
        """Their keys."""
        return Counter(self.values.keys())

    def apply(self, run: Delivery) -> None:
        """Logs those that the run does not hold."""
        run.log_params(self.values)


@dataclass(frozen=True)
class Tags(Record):
    """Tags of the run."""

    values: Mapping[str, str]

    @property
    def names(self) -> Counter[str]:
        """Their keys."""
        return Counter(self.values.keys())

    def apply(self, run: Delivery) -> None:
        """Sets them."""
        run.set_tags(self.values)


@dataclass(frozen=True)
class GivenParams(Params):
    """Parameters as MLflow was given them: one that the run holds otherwise is refused."""

    values: Mapping[str, str]

    def apply(self, run: Delivery) -> None:
        """Logs them."""
        run.send([Param(key, text) for key, text in self.values.items()])


@dataclass(frozen=True)
class TagDeletion(Record):
    """A tag that the run is to have no longer."""

    TITLE = "{self.key}"
    key: str

    def apply(self, run: Delivery) -> None:
        """Deletes it, if it is there."""

        def delete() -> None:
            if self.key in run.client.get_run(run.run_id).data.tags:
                run.client.delete_tag(run.run_id, self.key)

        run.attempt(self.title, delete, failures=FAILURES)


@dataclass(frozen=True)
class File(Record):
    """A file or folder of this machine, which stays.

    Attributes:
        path: Where it is.
        artifact_path: Folder of the run's artifacts to put it in.
    """

    TITLE = "{self.place}"
    path: Path
    artifact_path: str | None

    @property
    def place(self) -> str:
        """Where it goes."""
        return posixpath.join(self.artifact_path or "", self.path.name)

    def apply(self, run: Delivery) -> None:
        """Uploads it: a file again overwrites itself."""
        run.upload(self, lambda: self._upload(run))

    def _upload(self, run: Delivery) -> None:
        with of_artifacts():
            if self.path.is_dir():  # MLflow uploads its files on other threads
                run.ask_artifact_store()
            else:
                run.reach_artifact_store()
            run.client.log_artifact(run.run_id, str(self.path), self.artifact_path)


@dataclass(frozen=True)
class Artifact(WithCopy, File):
    """A copy of a file or folder, alone in a folder of its own."""

    @classmethod
    def copy_of(cls, source: Path, artifact_path: str | None, folder: Path | None) -> Self:
        """Copies a file or folder, which its owner may then change or delete.

        Args:
            source: The file or folder.
            artifact_path: Folder of the run's artifacts to put it in.
            folder: Where to put the copy; None takes the folder for temporary files.

        Raises:
            FileNotFoundError: If there is nothing at `source`.
            OSError: If it cannot be copied.
        """
        if not source.exists():
            raise FileNotFoundError(f"Received the artifact {source}, which does not exist.")
        name = source.name or source.resolve().name  # of `.`
        path = Path(tempfile.mkdtemp(prefix="mlflow-artifact-", dir=folder)) / name
        artifact = cls(path, artifact_path)
        try:
            if source.is_dir():
                shutil.copytree(source, path)
            else:
                shutil.copyfile(source, path)
        except OSError:
            artifact.discard()
            raise
        return artifact

    def _upload(self, run: Delivery) -> None:
        if self.path.exists():
            super()._upload(run)
            return
        # It was settled, and the copy deleted, by a process that could not write that down.
        with of_artifacts():
            stored = run.client.list_artifacts(run.run_id, self.artifact_path)
        if self.path.name not in {Path(each.path).name for each in stored}:
            raise RejectedError(COPY_IS_GONE)


@dataclass(frozen=True)
class Model(SavedModel, WithCopy):
    """A copy of a folder in MLflow's model format, to become a LoggedModel of the run."""

    TITLE = "model {self.name}"

    def apply(self, run: Delivery) -> None:
        """Makes or completes the LoggedModel."""
        run.upload(self, lambda: self._deliver(run))

    def _deliver(self, run: Delivery) -> None:
        tags = {name: run.true_id(text) for name, text in self.tags.items()}
        deliver_model(run.target, run.run_id, replace(self, tags=tags), ask=run.ask_artifact_store)
        # What they name may have been delivered meanwhile, by another thread that did not see them.
        late = {name: run.true_id(text) for name, text in tags.items()}
        if late != tags:
            run.client.set_logged_model_tags(run.true_id(self.uid), late)


@dataclass(frozen=True)
class ModelFiles(WithCopy):
    """A copy of files of a LoggedModel that is in the store.

    Attributes:
        path: A folder; its files go to the model.
        model_id: The model.
        artifact_path: The folder among the model's files; None for their root.
    """

    TITLE = "files of model {self.model_id}"
    path: Path
    model_id: str
    artifact_path: str | None

    def apply(self, run: Delivery) -> None:
        """Uploads them: a file again overwrites itself."""

        def upload() -> None:
            if not self.path.exists():
                raise RejectedError(COPY_IS_GONE)
            with of_artifacts():
                run.ask_artifact_store()
                log_model_files(run.client, self.model_id, str(self.path), self.artifact_path)

        run.upload(self, upload)


@dataclass(frozen=True)
class ModelFields(Record):
    """What is to be changed of a LoggedModel that is in the store.

    Attributes:
        model_id: The model.
        tags: Tags to set.
        params: Params to add.
        status: The status; None leaves it as it is.
    """

    TITLE = "fields of model {self.model_id}"
    model_id: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    status: str | None

    def apply(self, run: Delivery) -> None:
        """Changes what is not so yet."""

        def fill() -> None:
            fill_model(
                run.target,
                run.client.get_logged_model(self.model_id),
                params=self.params,
                tags=self.tags,
                upload=lambda: None,
                status=LoggedModelStatus(self.status or LoggedModelStatus.PENDING.value),
            )

        run.attempt(self.title, fill)


@dataclass(frozen=True)
class Table(Record):
    """A table in MLflow's format, whole.

    Attributes:
        text: JSON with "columns" and "data".
        artifact_file: Where it goes.
    """

    TITLE = "{self.artifact_file}"
    text: str
    artifact_file: str

    def apply(self, run: Delivery) -> None:
        """Writes it, and the tag by which the MLflow UI finds it."""

        def write() -> None:
            run.write_text(self.text, self.artifact_file)
            row = {"path": self.artifact_file, "type": "table"}
            run.add_rows(MLFLOW_LOGGED_ARTIFACTS, [row])

        run.upload(self, write)


@dataclass(frozen=True)
class Text(Record):
    """A text file: the whole of what is too long for a param or a tag."""

    TITLE = "{self.artifact_file}"
    text: str
    artifact_file: str

    def apply(self, run: Delivery) -> None:
        """Writes it."""
        run.upload(self, lambda: run.write_text(self.text, self.artifact_file))


@dataclass(frozen=True)
class Rows(Record):
    """Rows of a tag that is a list in JSON, beside those that it holds."""

    TITLE = "{self.tag}"
    tag: str
    rows: Sequence[object]

    def apply(self, run: Delivery) -> None:
        """Adds those that are missing."""
        run.attempt(self.title, lambda: run.add_rows(self.tag, self.rows))


@dataclass(frozen=True)
class Input(Record):
    """A dataset that the run uses."""

    TITLE = "dataset {self.dataset.dataset.name}"
    dataset: DatasetInput

    def apply(self, run: Delivery) -> None:
        """Logs it; a store keeps it once."""
        run.attempt(
            self.title,
            lambda: run.client.log_inputs(run.run_id, datasets=[self.dataset]),
            failures=FAILURES,
        )

    def fields(self) -> tuple[dict[str, Any], "Sequence[np.ndarray[Any, Any]]"]:
        """MLflow's entities as plain values."""
        tags = {tag.key: tag.value for tag in self.dataset.tags}
        return {"dataset": dict(self.dataset.dataset), "tags": tags}, ()

    @classmethod
    def read(cls, **fields: Any) -> Self:
        """Of plain values."""
        tags = [InputTag(key, value) for key, value in fields["tags"].items()]
        return cls(DatasetInput(Dataset(**fields["dataset"]), tags))


@dataclass(frozen=True)
class ModelInput(Record):
    """A model that the run uses."""

    TITLE = "input model {self.model_id}"
    model_id: str

    def apply(self, run: Delivery) -> None:
        """Logs it, if the run does not hold it."""

        def log() -> None:
            known = run.client.get_run(run.run_id).inputs or RunInputs([])
            if self.model_id not in {each.model_id for each in known.model_inputs}:
                models = [LoggedModelInput(self.model_id)]
                run.client.log_inputs(run.run_id, models=models)

        run.attempt(self.title, log)


@dataclass(frozen=True)
class ModelOutput(Record):
    """A model that the run has made, and at which step."""

    TITLE = "output model {self.model_id}"
    model_id: str
    step: int

    def apply(self, run: Delivery) -> None:
        """Logs it, if the run does not hold it."""
        run.attempt(
            self.title,
            lambda: ensure_output(run.target, run.run_id, self.model_id, self.step),
        )


@dataclass(frozen=True)
class Deletion(Record):
    """An artifact that the run is to keep no longer."""

    TITLE = "{self.artifact_file}"
    artifact_file: str

    def apply(self, run: Delivery) -> None:
        """Deletes it, where that can be done."""
        run.delete(self.artifact_file)


@dataclass(frozen=True)
class Refusal(Record):
    """Values that were refused before any store saw them."""

    name: str
    reason: str
    points: int = field()

    @property
    def names(self) -> Counter[str]:
        """The name that was refused."""
        return Counter({self.name: max(self.points, 1)})

    def apply(self, run: Delivery) -> None:
        """Counts them."""
        run.refuse(self.name, self.reason, self.points)


@dataclass(frozen=True)
class End(Record):
    """The status with which the run ended, and when, in milliseconds since the epoch."""

    TITLE = "status {self.status}"
    status: str
    end_time: int

    def apply(self, run: Delivery) -> None:
        """Ends the run."""
        run.end(self.status, self.end_time)


# Those that stand in journals.
KINDS: dict[str, type[Record]] = {
    kind.__name__: kind
    for kind in (
        *(Points, Series, Params, GivenParams, Tags, TagDeletion, Artifact, Table, Text),
        *(Model, ModelFiles, ModelFields, ModelInput, ModelOutput, Input),
        *(Deletion, Refusal, End),
    )
}


def encode(record: Record, folder: Path) -> bytes:
    """A record as it stands in a journal.

    Args:
        record: What was handed in.
        folder: The journal.

    Raises:
        TypeError: If it holds what JSON cannot.
    """
    if isinstance(record, WithCopy):
        record = record.relative_to(folder)
    fields, arrays = record.fields()
    line = json.dumps({"kind": type(record).__name__, **fields}, separators=(",", ":"))
    return b"".join([line.encode(), b"\n", *(each.tobytes() for each in arrays)])


def decode(text: bytes, folder: Path) -> Record:
    """A record of a journal.

    Args:
        text: What `encode` made.
        folder: The journal, wherever it lies now.

    Raises:
        ValueError: If it is not a record of this version.
    """
    line, _, data = text.partition(b"\n")
    fields = json.loads(line)
    kind = fields.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(
            f"Received a record of the kind {kind!r}, which this version does not know."
        )
    if data or kind == Series.__name__:
        fields["data"] = data
    record = KINDS[kind].read(**fields)
    return record.below(folder) if isinstance(record, WithCopy) else record


def _metric_fields(metric: Metric) -> list[Any]:
    fields = [metric.key, metric.value, metric.timestamp, metric.step]
    on = [metric.model_id, metric.dataset_name, metric.dataset_digest]
    return fields + on if any(on) else fields

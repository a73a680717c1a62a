"""What can be handed in for a run."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Self

import numpy as np
from mlflow.entities import DatasetInput, Metric

from mlflow_keras_adv.tracking.names import metric_key

ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class Points:
    """Metric values of one moment."""

    metrics: Sequence[Metric]

    def __len__(self) -> int:
        return len(self.metrics)

    def __iter__(self) -> Iterator[Metric]:
        return iter(self.metrics)


@dataclass(frozen=True)
class Series:
    """Metric values of many moments. They become Python objects only as they are sent.

    Attributes:
        columns: Per metric an array of shape `[rows]`; masked where it has no value.
        steps: Integers of shape `[rows]`.
        timestamps_ms: Milliseconds since the epoch, integers of shape `[rows]`.
    """

    columns: Mapping[str, "np.ma.MaskedArray[tuple[int], np.dtype[np.generic]]"]
    steps: "np.ndarray[tuple[int], np.dtype[np.integer]]"
    timestamps_ms: "np.ndarray[tuple[int], np.dtype[np.integer]]"

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


@dataclass(frozen=True)
class Params:
    """Parameters, flat and plain."""

    values: Mapping[str, object]


@dataclass(frozen=True)
class Tags:
    """Tags of the run."""

    values: Mapping[str, str]


@dataclass(frozen=True)
class Artifact:
    """A copy of a file or folder, alone in a folder of its own."""

    path: Path
    artifact_path: str | None

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

    def discard(self) -> None:
        """Deletes the copy."""
        shutil.rmtree(self.path.parent, ignore_errors=True)


@dataclass(frozen=True)
class Model:
    """A copy of a folder in MLflow's model format, to become a LoggedModel of the run.

    Attributes:
        uid: Id until the store has given one; in the model's tags afterwards.
        path: The folder, alone in a folder of its own.
        name: Name of the LoggedModel.
        params: Its params.
        tags: Its tags.
        model_type: For example "classifier".
        step: Training step that it comes from.
        registered_model_name: Registered model to make a version of.
    """

    uid: str
    path: Path
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    model_type: str | None
    step: int
    registered_model_name: str | None

    def discard(self) -> None:
        """Deletes the copy."""
        shutil.rmtree(self.path.parent, ignore_errors=True)


@dataclass(frozen=True)
class Table:
    """A table in MLflow's format, whole.

    Attributes:
        text: JSON with "columns" and "data".
        artifact_file: Where it goes.
    """

    text: str
    artifact_file: str


@dataclass(frozen=True)
class Input:
    """A dataset that the run uses."""

    dataset: DatasetInput


@dataclass(frozen=True)
class Deletion:
    """An artifact that the run is to keep no longer."""

    artifact_file: str


@dataclass(frozen=True)
class Refusal:
    """Values that were refused before any store saw them."""

    name: str
    reason: str
    points: int


@dataclass(frozen=True)
class End:
    """The status with which the run ended, and when, in milliseconds since the epoch."""

    status: str
    end_time: int


@dataclass(frozen=True)
class Flush:
    """Asks for an answer as soon as everything before it is settled: True if it is."""

    answer: "SimpleQueue[bool]"


Record = Params | Tags | Artifact | Model | Table | Input | Deletion
Journaled = Points | Series | Record | Refusal | End
Item = Journaled | Flush


def points_of(item: Item) -> int:
    """How many metric values are in an item."""
    match item:
        case Points() | Series():
            return len(item)
        case Refusal(_, _, points):
            return points
        case _:
            return 0


def names_of(item: Item) -> Counter[str]:
    """What is in an item by name, and how often."""
    match item:
        case Points(metrics):
            return Counter(metric.key for metric in metrics)
        case Series(columns):
            return Counter({name: int(column.count()) for name, column in columns.items()})
        case Params(values) | Tags(values):
            return Counter(values.keys())
        case Artifact(path):
            return Counter([path.name])
        case Model(name=name):
            return Counter([f"model {name}"])
        case Table(_, artifact_file) | Deletion(artifact_file):
            return Counter([artifact_file])
        case Input(dataset):
            return Counter([f"dataset {dataset.dataset.name}"])
        case Refusal(name, _, points):
            return Counter({name: max(points, 1)})
        case End(status):
            return Counter([f"status {status}"])
        case Flush():
            return Counter()

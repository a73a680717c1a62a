"""What models are measured on, and what was measured."""

import hashlib
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.tracking.values import Dataset


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples that models are measured on, of the split that none of them was trained on.

    Attributes:
        x: What the models take: an array of shape (samples, …), or a list or dict of such arrays.
        y: Integer labels, shape (samples, …), or None.
        name: Of the dataset, as the runs that made the models have recorded it.
        digest: Of the dataset, as recorded; default: computed from `x` and `y`.

    Raises:
        UserError: No samples, or another number of labels.
    """

    x: Any
    y: np.ndarray | None = None
    name: str = "samples"
    digest: str = ""

    def __post_init__(self) -> None:
        arrays = dict(_leaves("x", self.x)) | ({} if self.y is None else {"y": np.asarray(self.y)})
        counts = {key: len(array) if array.ndim else 0 for key, array in arrays.items()}
        if not counts or min(counts.values()) == 0:
            raise UserError(
                f"The data hold no samples to measure on: {counts or 'nothing'}. "
                "Give the test split: x of shape (samples, …) and its labels."
            )
        if len(set(counts.values())) > 1:
            raise UserError(f"Each array needs as many samples as the others; got {counts}.")
        if not self.digest:
            object.__setattr__(self, "digest", _digest(arrays))

    @property
    def dataset(self) -> Dataset:
        """What the record calls them."""
        return Dataset(self.name, self.digest)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(next(array for _, array in _leaves("x", self.x)))


def read_samples(path: str | Path, *, name: str = "", digest: str = "") -> Samples:
    """Samples of an `.npz` file, which holds `x_test` and `y_test`, or `x` and `y`.

    Args:
        path: The file. Nothing in it is unpickled.
        name: Of the dataset; default: that of the file.
        digest: Of the dataset; default: computed from the arrays.

    Raises:
        UserError: There is no such file, it is damaged, or holds other arrays.
    """
    file = Path(path)
    how = "Write one with numpy.savez(path, x_test=..., y_test=...)."
    try:
        with file.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            names = getattr(archive, "files", [])
            for x, y in (("x_test", "y_test"), ("x", "y")):
                if x in names:
                    labels = archive[y] if y in names else None
                    return Samples(archive[x], labels, name or file.name, digest)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}. {how}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is not an .npz file of numbers ({error}). {how}") from error
    raise UserError(f"{file} holds {', '.join(names) or 'one array'}, but no x_test. {how}")


class MissingNumberError(Exception):
    """A number that a gate asks for was not measured, or is NaN."""


@dataclass(frozen=True, eq=False)
class Measurements:
    """What a model scored, weighs and takes on given samples.

    Attributes:
        metrics: Real numbers by name, as `compression.footprint.footprint` calls them.
        per_sample: For metrics that are a mean over samples: a number a sample, shape (samples,),
            in the order of the samples; of two models such numbers are paired.
        chosen: The class that it chose for each sample, or None if it chooses none.
        problem: Why it could not be measured; empty if it was.
        serve: Asks it as a server would, and says what went wrong: nothing if that is empty.
        dataset: What it was measured on.
        recorded_on: Digests of the datasets that its `final/…` metrics stand on, as they were
            recorded by the run that made it.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    per_sample: Mapping[str, np.ndarray] = field(default_factory=dict)
    chosen: np.ndarray | None = None
    problem: str = ""
    serve: Callable[[], str] | None = None
    dataset: Dataset | None = None
    recorded_on: frozenset[str] = frozenset()

    def number(self, metric: str) -> float:
        """A metric by its name.

        Raises:
            MissingNumberError: It was not measured, or is NaN; says which there are.
        """
        if self.problem:
            raise MissingNumberError(f"it could not be measured: {self.problem}")
        if metric not in self.metrics:
            known = ", ".join(self.metrics) or "nothing"
            raise MissingNumberError(f"no {metric!r} was measured, but {known}")
        value = float(self.metrics[metric])
        if math.isnan(value):
            raise MissingNumberError(f"{metric} is NaN")
        return value


# Measures models side by side, on the same samples, in this process: folders in MLflow's model
# format in, as many measurements out. What cannot be measured is a `problem`, not an error.
Measure = Callable[[Sequence[Path], Samples], Sequence[Measurements]]


def _leaves(name: str, nested: Any) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(nested, Mapping):
        for key, each in nested.items():
            yield from _leaves(f"{name}[{key!r}]", each)
    elif isinstance(nested, (list, tuple)) and any(hasattr(each, "shape") for each in nested):
        for index, each in enumerate(nested):
            yield from _leaves(f"{name}[{index}]", each)
    else:
        yield name, np.asarray(nested)


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, array in arrays.items():
        digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()

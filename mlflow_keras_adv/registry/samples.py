"""Samples on which models are measured, and their measurements."""

import hashlib
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.tracking.directions import Mode
from mlflow_keras_adv.tracking.values import Dataset

# A column with more values than that is a measurement, not a group.
_MOST_SLICES = 64


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples on which models are measured; none of the models may have been trained on them.

    Attributes:
        x: What the models take: an array of shape (samples, …), or a list or dict of such arrays.
        y: Labels, in the structure of the models' outputs, or None.
        name: Name of the dataset, as recorded by the runs of the models.
        digest: Digest of the dataset, as recorded; default: computed from `x` and `y`.
        sample_weight: Weights of the samples, as in `evaluate`, or None.
        slices: Columns by name, each of shape (samples,) with a few different values. Models are
            also measured in each group of samples of equal value.

    Raises:
        UserError: There are no samples, another number of labels, or a column has too many values.
    """

    x: Any
    y: Any = None
    name: str = "samples"
    digest: str = ""
    sample_weight: Any = None
    slices: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        arrays = dict(_leaves("x", self.x)) | ({} if self.y is None else dict(_leaves("y", self.y)))
        columns = {f"slices[{key!r}]": np.asarray(each) for key, each in self.slices.items()}
        if self.sample_weight is not None:
            columns |= dict(_leaves("sample_weight", self.sample_weight))
        counts = {
            key: len(array) if array.ndim else 0 for key, array in {**arrays, **columns}.items()
        }
        if not counts or min(counts.values()) == 0:
            raise UserError(
                f"The data hold no samples to measure on: {counts or 'nothing'}. "
                "Give the test split: x of shape (samples, …) and its labels."
            )
        if len(set(counts.values())) > 1:
            raise UserError(f"Each array needs as many samples as the others; got {counts}.")
        for key, each in self.slices.items():
            shape, values = np.shape(each), np.unique(np.asarray(each)).size
            if len(shape) != 1 or values > _MOST_SLICES:
                raise UserError(
                    f"slices[{key!r}] is of shape {shape} with {values} different values; expected "
                    f"a column with at most {_MOST_SLICES}. Put numbers into bins: numpy.digitize."
                )
        if not self.digest:
            object.__setattr__(self, "digest", _digest(arrays))

    @property
    def dataset(self) -> Dataset:
        """Name and digest, as they are recorded."""
        return Dataset(self.name, self.digest)

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(next(array for _, array in _leaves("x", self.x)))

    def groups(self) -> Iterator[tuple[str, "Samples"]]:
        """Groups the samples by each value of each column, named `column=value`.

        Returns:
            Pairs of a name and the samples of that group.
        """
        for column, values in self.slices.items():
            array = np.asarray(values)
            for value in np.unique(array):
                rows = np.flatnonzero(array == value)
                x, y, weight = (_of(rows, each) for each in (self.x, self.y, self.sample_weight))
                yield f"{column}={value}", Samples(x, y, self.name, self.digest, weight)


def read_samples(
    path: str | Path, *, name: str = "", digest: str = "", slices: Sequence[str] = ()
) -> Samples:
    """Reads samples from an `.npz` file, which holds `x_test` and `y_test`, or `x` and `y`.

    For models with several inputs or outputs the arrays are named `x.<input>` and `y.<output>`.
    Sample weights are named `sample_weight`.

    Args:
        path: The file. Nothing in it is unpickled.
        name: Name of the dataset; default: that of the file.
        digest: Digest of the dataset; default: computed from the arrays.
        slices: Names of further arrays in it with the group of each sample.

    Returns:
        The samples.

    Raises:
        UserError: There is no such file, it is damaged, or holds other arrays.
    """
    file = Path(path)
    how = "Write one with numpy.savez(path, x_test=..., y_test=...)."
    try:
        with file.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            names = list(getattr(archive, "files", []))
            for suffix in ("_test", ""):
                x, y, weight = (
                    _stored(archive, names, f"{key}{suffix}") for key in ("x", "y", "sample_weight")
                )
                if x is None:
                    continue
                if absent := [each for each in slices if each not in names]:
                    raise UserError(
                        f"{file} holds {', '.join(names)}, but no column {', '.join(absent)}."
                    )
                columns = {each: archive[each] for each in slices}
                return Samples(x, y, name or file.name, digest, weight, columns)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}. {how}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is not an .npz file of numbers ({error}). {how}") from error
    raise UserError(f"{file} holds {', '.join(names) or 'one array'}, but no x_test. {how}")


class MissingNumberError(Exception):
    """A number that a gate asks for was not measured, or is NaN."""


@dataclass(frozen=True, eq=False)
class Measurements:
    """The scores, size and latency of a model on given samples.

    Attributes:
        metrics: Numbers by name: the scores, as `metrics.score` names them, and the measurements of
            `metrics.footprint.footprint`.
        per_sample: For metrics that are a mean over samples: the values of the samples, shape
            (samples,), in their order; those of two models are paired.
        weights: Weights of the samples; empty: equal weights.
        directions: Whether metrics are better lower ("min") or higher ("max").
        deciding: The metric that decides by default; empty if there is none.
        beside: Comparison with the last model that was measured with it: `difference` and
            `difference_max` of the outputs, and the `agreement` of decisions.
        slices: The measurements in each group of samples, by `column=value`.
        samples: Number of samples; 0 if unknown.
        unscored: Why it has no scores; empty if it has.
        problem: Why it could not be measured at all; empty if it was.
        serve: Scores the input example in a new process; returns an error message, empty on
            success.
        dataset: The dataset of the samples.
        recorded_on: Digests of the datasets of its `final/…` metrics, as recorded by the run that
            made it.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    per_sample: Mapping[str, np.ndarray] = field(default_factory=dict)
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    directions: Mapping[str, Mode] = field(default_factory=dict)
    deciding: str = ""
    beside: Mapping[str, float] = field(default_factory=dict)
    slices: Mapping[str, "Measurements"] = field(default_factory=dict)
    samples: int = 0
    unscored: str = ""
    problem: str = ""
    serve: Callable[[], str] | None = None
    dataset: Dataset | None = None
    recorded_on: frozenset[str] = frozenset()

    def number(self, metric: str) -> float:
        """Looks up a metric.

        Args:
            metric: Its name.

        Returns:
            Its value.

        Raises:
            MissingNumberError: It was not measured, or is NaN; the message lists the others.
        """
        return self._number(self.metrics, metric)

    def common(self, name: str) -> float:
        """Looks up a value of the comparison with the other model.

        Args:
            name: Name of the value.

        Returns:
            Its value.

        Raises:
            MissingNumberError: As of `number`.
        """
        return self._number(self.beside, name)

    def _number(self, numbers: Mapping[str, float], name: str) -> float:
        if self.problem:
            raise MissingNumberError(f"it could not be measured: {self.problem}")
        if name not in numbers:
            known = ", ".join(numbers) or "nothing"
            why = f" ({self.unscored})" if self.unscored else ""
            raise MissingNumberError(f"no {name!r} was measured, but {known}{why}")
        value = float(numbers[name])
        if math.isnan(value):
            raise MissingNumberError(f"{name} is NaN")
        return value


# Measures models on the same samples in this process: from folders in MLflow's model format to as
# many measurements. A model that cannot be measured has a `problem`; that is no error.
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


def _of(rows: np.ndarray, nested: Any) -> Any:
    """The rows of each array."""
    if nested is None:
        return None
    if isinstance(nested, Mapping):
        return {key: _of(rows, each) for key, each in nested.items()}
    if isinstance(nested, (list, tuple)) and any(hasattr(each, "shape") for each in nested):
        return type(nested)(_of(rows, each) for each in nested)
    return np.asarray(nested)[rows]


def _stored(archive: Any, names: Sequence[str], key: str) -> Any:
    """An array of that name, or a dict of those named `<name>.<part>`; None if there is none."""
    if key in names:
        return archive[key]
    parts = {name.removeprefix(f"{key}."): name for name in names if name.startswith(f"{key}.")}
    return {part: archive[name] for part, name in parts.items()} or None


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, array in arrays.items():
        digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()

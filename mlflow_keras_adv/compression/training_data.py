"""Reads training data before the training: the number of batches, and some of the inputs."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import GeneratorType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.extras import extra

with extra("compression"):
    import tf_keras

_SAMPLES = 8  # on which models are proved equal
_CALIBRATION = 512  # samples, spread over the data, on which ranges are measured
_ROWS = 64  # of them at a time

EXPECTED = (
    "(x, y) or (x, y, sample_weight) of arrays, a finite tf.data.Dataset of batches, a "
    "keras.utils.PyDataset, or a generator of batches with steps_per_epoch"
)


@dataclass(frozen=True)
class TrainingData:
    """The data of a training.

    Attributes:
        arguments: What `fit` takes by position.
        fit: Further arguments of `fit`, those of the caller included.
        sample: A few inputs, labels and sample weights, or None for these.
        steps_per_epoch: Batches of an epoch.
        calibration: Gives batches of inputs from all over the data.
    """

    arguments: tuple[Any, ...]
    fit: dict[str, Any]
    sample: Any
    steps_per_epoch: int
    calibration: Callable[[], Iterator[Any]]


def read_training_data(train: Any, fit: Mapping[str, Any]) -> TrainingData:
    """The data of a training, in a form that both Keras 3 and tf_keras take.

    Args:
        train: See `EXPECTED`.
        fit: The caller's arguments of `fit`.

    Raises:
        TypeError: `train` or `validation_data` is something else.
        ValueError: An argument of `fit` that does not go with this kind of data.
        UserError: No data, no labels, or no end.
    """
    given = dict(fit)
    epochs = given.setdefault("epochs", 1)
    if epochs < 1:
        raise ValueError(f"epochs is {epochs!r}; expected 1 or more")
    is_generator = isinstance(train, GeneratorType)
    if "steps_per_epoch" in given and not is_generator:
        raise ValueError(
            "steps_per_epoch cannot be chosen here: the schedule is laid on all batches; shorten a "
            "dataset with .take(n)"
        )
    if "validation_data" in given:
        given |= _validation(given)
    if isinstance(train, tuple):
        return _of_arrays(train, given)
    if "batch_size" in given:
        raise ValueError("batch_size is the dataset's own; leave it out")
    shuffle = given.pop("shuffle", True)
    given["shuffle"] = False  # the dataset's own matter; Keras warns of the default
    if isinstance(train, tf.data.Dataset):
        return _of_dataset(train, given)
    if _is_py_dataset(train):
        return _of_py_dataset(train, given, shuffle)
    if is_generator:
        return _of_generator(train, given)
    raise TypeError(f"train is a {type(train).__name__}; expected {EXPECTED}")


def _of_arrays(train: tuple[Any, ...], fit: dict[str, Any]) -> TrainingData:
    if not 2 <= len(train) <= 3:
        raise TypeError(f"train is a tuple of {len(train)}; expected {EXPECTED}")
    if len(train) == 3:
        fit["sample_weight"] = train[2]
    count = _count(train, "train")
    size = fit.setdefault("batch_size", 32)
    rows = np.unique(np.linspace(0, count - 1, min(count, _CALIBRATION)).astype(int))

    def calibration() -> Iterator[Any]:
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS]
            yield keras.tree.map_structure(
                lambda array, some=some: np.asarray(array)[some], train[0]
            )

    return TrainingData(train[:2], fit, _few(train), math.ceil(count / size), calibration)


def _of_dataset(train: tf.data.Dataset, fit: dict[str, Any]) -> TrainingData:
    batches = int(train.cardinality())
    if batches == tf.data.INFINITE_CARDINALITY:
        raise UserError("train is an endless dataset; say how much of it an epoch is: .take(n)")
    if batches == tf.data.UNKNOWN_CARDINALITY:
        batches = sum(1 for _ in train)
    if batches == 0:
        raise UserError("train is an empty dataset; give at least one batch")
    first = next(iter(train))

    def calibration() -> Iterator[Any]:
        wanted = set(_spread(batches, _rows(first)))
        return (_inputs(batch) for number, batch in enumerate(train) if number in wanted)

    return TrainingData((train,), fit, _few(first), batches, calibration)


def _of_py_dataset(train: Any, fit: dict[str, Any], shuffle: bool) -> TrainingData:
    dataset, batches = _as_dataset(train, "train", shuffle)
    first = train[0]

    def calibration() -> Iterator[Any]:
        return (_inputs(train[number]) for number in _spread(batches, _rows(first)))

    return TrainingData((dataset,), fit, _few(first), batches, calibration)


def _of_generator(train: Iterator[Any], fit: dict[str, Any]) -> TrainingData:
    """The data of a generator, which can be read once: what is read early is kept for it."""
    steps = fit.pop("steps_per_epoch", None)
    if steps is None or steps < 1:
        raise UserError(
            f"train is a generator and steps_per_epoch is {steps!r}: the schedule is laid on all "
            "batches, so it takes their number in an epoch, 1 or more"
        )
    total = steps * fit["epochs"]
    kept = list(itertools.islice(train, 1))
    if not kept:
        raise UserError("train is an empty generator; give at least one batch")
    wanted = min(total, math.ceil(_CALIBRATION / _rows(kept[0])))
    kept += itertools.islice(train, wanted - 1)
    remaining = itertools.islice(itertools.chain(kept, train), total)

    def epoch() -> Iterator[Any]:
        for number in range(steps):
            batch = next(remaining, None)
            if batch is None:
                raise UserError(
                    f"the generator ended after {number} batches of an epoch; steps_per_epoch * "
                    f"epochs is {total}. Give fewer, or a generator that goes on."
                )
            yield _listless(batch)

    dataset = tf.data.Dataset.from_generator(epoch, output_signature=_signature(kept))
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps))
    return TrainingData(
        (dataset,), fit, _few(kept[0]), steps, lambda: map(_inputs, tuple(kept[:wanted]))
    )


def _validation(fit: dict[str, Any]) -> dict[str, Any]:
    """Validation data in a form that both libraries take."""
    data = fit["validation_data"]
    if _is_py_dataset(data):
        return {"validation_data": _as_dataset(data, "validation_data", False)[0]}
    if not isinstance(data, GeneratorType):
        return {}
    steps = fit.pop("validation_steps", None)
    if steps is None or steps < 1:
        raise UserError(
            f"validation_data is a generator and validation_steps is {steps!r}; say how many "
            "batches of it to use, 1 or more"
        )
    kept = list(itertools.islice(data, steps))  # the same ones after each epoch
    if len(kept) < steps:
        raise UserError(
            f"validation_data is a generator of {len(kept)} batches; validation_steps is {steps}"
        )
    batches = tf.data.Dataset.from_generator(
        lambda: map(_listless, kept), output_signature=_signature(kept)
    )
    return {"validation_data": batches.apply(tf.data.experimental.assert_cardinality(steps))}


def _is_py_dataset(data: Any) -> bool:
    """Whether this is a PyDataset, or what tf_keras calls a Sequence."""
    return isinstance(data, (keras.utils.PyDataset, tf_keras.utils.Sequence))


def _as_dataset(data: Any, what: str, shuffle: bool) -> tuple[tf.data.Dataset, int]:
    """A PyDataset as a dataset of TensorFlow, which both libraries take; and its batches."""
    batches = data.num_batches if hasattr(data, "num_batches") else len(data)
    if batches is None:
        raise UserError(f"{what} is an endless PyDataset; give its num_batches")
    if batches == 0:
        raise UserError(f"{what} is an empty PyDataset; give at least one batch")

    def epoch() -> Iterator[Any]:
        order = np.random.permutation(batches) if shuffle else range(batches)
        if hasattr(data, "on_epoch_begin"):
            data.on_epoch_begin()
        for number in order:
            yield _listless(data[int(number)])
        data.on_epoch_end()

    ends = [data[number] for number in sorted({0, batches // 2, batches - 1})]
    dataset = tf.data.Dataset.from_generator(epoch, output_signature=_signature(ends))
    return dataset.apply(tf.data.experimental.assert_cardinality(batches)), batches


def _signature(batches: Iterable[Any]) -> Any:
    """Types of what some batches hold; an axis on which they differ is left open."""
    flat = [[np.asarray(leaf) for leaf in keras.tree.flatten(_listless(each))] for each in batches]
    specs = []
    for leaves in zip(*flat, strict=True):
        sizes = zip(*(leaf.shape[1:] for leaf in leaves), strict=True)
        axes = [size[0] if len(set(size)) == 1 else None for size in sizes]
        specs.append(tf.TensorSpec((None, *axes), leaves[0].dtype))
    return keras.tree.pack_sequence_as(_listless(next(iter(batches))), specs)


def _listless(batch: Any) -> Any:
    """A batch without lists, which tf.data takes for tensors, and without a missing weight."""
    if isinstance(batch, tuple) and len(batch) == 3 and batch[2] is None:
        batch = batch[:2]
    return _tuples(batch)


def _tuples(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_tuples, value))
    if isinstance(value, Mapping):
        return {key: _tuples(each) for key, each in value.items()}
    return np.asarray(value)


def _inputs(batch: Any) -> Any:
    """The inputs of a batch that has labels, as arrays."""
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise UserError("train gives batches without labels; expected (x, y)")
    return keras.tree.map_structure(np.asarray, batch[0])


def _few(batch: Any) -> list[Any]:
    """A few inputs, labels and sample weights of a batch."""
    _inputs(batch)
    parts = [keras.tree.map_structure(_head, part) for part in batch]
    return [*parts, None][:3]


def _head(array: Any) -> Any:
    return None if array is None else np.asarray(array[:_SAMPLES])


def _rows(batch: Any) -> int:
    return max(1, len(keras.tree.flatten(_inputs(batch))[0]))


def _spread(batches: int, rows: int) -> list[int]:
    """Numbers of batches from all over the data, as many as calibration takes."""
    wanted = min(batches, math.ceil(_CALIBRATION / rows))
    return [int(number) for number in np.unique(np.linspace(0, batches - 1, wanted).astype(int))]


def _count(train: tuple[Any, ...], what: str) -> int:
    counts = set()
    for leaf in keras.tree.flatten(train):
        if leaf is None:
            continue
        if not hasattr(leaf, "shape"):
            raise TypeError(
                f"{what} holds a {type(leaf).__name__} where an array is expected; make arrays of "
                "lists: np.asarray(y)"
            )
        counts.add(int(leaf.shape[0]) if len(leaf.shape) else 1)
    if len(counts) != 1 or 0 in counts:
        raise UserError(
            f"{what} holds arrays of {sorted(counts)} samples; expected the same number in each,"
            " and at least one"
        )
    return counts.pop()

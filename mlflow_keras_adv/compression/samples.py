"""Converts samples, in any form that Keras accepts, to the input arrays of a model."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.serialization.loading import holds_texts

_MOST = 1000  # taken of data that may have no end; some hundred are enough

EXPECTED = (
    "an array of shape (samples, …), a list or dict of such arrays, one for each input, a list of "
    "samples or of batches, (x, y), a tf.data.Dataset, a keras.utils.PyDataset or a generator"
)


def read_samples(model: keras.Model, x: Any) -> Any:
    """The arrays that a model takes, in its structure, one row a sample.

    Args:
        model: The ranks of its inputs are used, where they are known.
        x: See `EXPECTED`. What comes in batches may have labels and sample weights, which are left
            out, and is read up to 1,000 samples.

    Raises:
        UserError: Texts.
        TypeError: Something else.
        ValueError: No samples, or of shapes that do not fit together.
    """
    if isinstance(x, tf.data.Dataset):
        x = _joined(model, iter(x))
    elif isinstance(x, keras.utils.PyDataset):
        batches = x.num_batches
        numbers: Iterable[int] = itertools.count() if batches is None else range(batches)
        x = _joined(model, (x[number] for number in numbers))
    elif isinstance(x, Iterator):
        x = _joined(model, x)
    elif len(_ranks(model) or ()) == 1:
        x = _of_one_input(model, x)
    if isinstance(x, (str, bytes)) or not keras.tree.flatten(x):
        raise ValueError(f"x holds no samples; give {EXPECTED}")
    try:
        arrays = keras.tree.map_structure(np.asarray, x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"x is a {type(x).__name__}; expected {EXPECTED}") from error
    if any(holds_texts(each) for each in keras.tree.flatten(arrays)):
        raise UserError(
            f"x holds texts, and a .tflite file of model {model.name!r} would take numbers alone. "
            "Give the part of the model behind its layers for texts, and what those make of x."
        )
    if any(each.ndim == 0 or each.dtype == object for each in keras.tree.flatten(arrays)):
        raise TypeError(f"x is a {type(x).__name__} of no arrays; expected {EXPECTED}")
    if any(len(each) == 0 for each in keras.tree.flatten(arrays)):
        raise ValueError("x holds no samples; give some real ones, such as x_train[:200]")
    return arrays


def _of_one_input(model: keras.Model, x: Any) -> Any:
    """The possible meanings of a list or tuple for a model with one input."""
    if isinstance(x, tuple) and 2 <= len(x) <= 3 and all(hasattr(each, "shape") for each in x):
        return x[0]  # with its labels, as Keras' fit reads it
    if not isinstance(x, (list, tuple)) or not x or not all(hasattr(e, "shape") for e in x):
        return x if not isinstance(x, (list, tuple)) else np.asarray(x)
    return _joined(model, iter(x), labelled=False)


def _joined(model: keras.Model, parts: Iterator[Any], *, labelled: bool = True) -> Any:
    """Batches, or single samples, put together."""
    ranks = _ranks(model)
    taken: list[Any] = []
    count = 0
    for part in parts:
        inputs = part[0] if labelled and isinstance(part, tuple) else part
        arrays = keras.tree.map_structure(np.asarray, inputs)
        flat = keras.tree.flatten(arrays)
        if ranks is not None and [each.ndim + 1 for each in flat] == ranks:
            arrays = keras.tree.map_structure(lambda array: array[np.newaxis], arrays)
        taken.append(arrays)
        count += len(keras.tree.flatten(arrays)[0])
        if count >= _MOST:
            break
    if not taken:
        raise ValueError("x holds no samples; give some real ones, such as x_train[:200]")
    try:
        joined = keras.tree.map_structure(lambda *each: np.concatenate(each), *taken)
    except ValueError as error:
        raise ValueError(f"the samples in x do not fit together: {error}") from error
    return keras.tree.map_structure(lambda array: array[:_MOST], joined)


def _ranks(model: keras.Model) -> list[int] | None:
    """The number of axes of each input, including that of the samples."""
    inputs = getattr(model, "inputs", None)
    if not inputs or any(each.shape is None for each in inputs):
        return None
    return [len(each.shape) for each in inputs]

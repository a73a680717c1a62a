"""Outputs of a model by name, with their masks and weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from mlflow_keras_adv.compat.keras import mask_of
from mlflow_keras_adv.metrics.score import batches

Array = np.ndarray[Any, Any]

# Of a model whose answer is one array.
ALONE = ""


def by_output(answers: Any, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Each output's answers by its name; the only one, if it is no dict, by the empty name.

    Args:
        answers: An array, or a list or dict of such.
        names: Names of the outputs, in their order; for a list.
    """
    if isinstance(answers, Mapping):
        return {str(name): each for name, each in answers.items()}
    if not isinstance(answers, list | tuple):
        return {ALONE: answers}
    known = list(names or [])
    if len(known) != len(answers):
        known = [f"output_{place}" for place in range(len(answers))]
    return dict(zip(known, answers, strict=True))


def in_order(outputs: Sequence[str], answers: Any) -> list[str]:
    """Names of the outputs in the order in which Keras flattens the answers."""
    if not isinstance(answers, Mapping):
        return list(outputs)
    return list(keras.tree.flatten({name: str(name) for name in answers}))


def for_output(given: Any, outputs: Sequence[str], *, for_all: bool) -> dict[str, Any]:
    """Labels, weights or losses of outputs, by the names of the outputs.

    Args:
        given: A dict by name, a list in the order of the outputs, or one for all of them.
        outputs: Names of the outputs.
        for_all: Whether what is no dict or list is for each of several outputs.

    Raises:
        ValueError: It does not fit the outputs.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        if len(outputs) == 1 and not set(given) & set(outputs) and len(given) == 1:
            return {outputs[0]: next(iter(given.values()))}
        if unknown := sorted(set(map(str, given)) - set(outputs)):
            raise ValueError(
                f"Received something for {', '.join(unknown)}; the outputs are "
                f"{', '.join(outputs)}."
            )
        return {str(name): each for name, each in given.items()}
    if isinstance(given, list | tuple) and len(outputs) > 1:
        if len(given) != len(outputs):
            raise ValueError(f"Received {len(given)} for the outputs {', '.join(outputs)}.")
        return dict(zip(outputs, given, strict=True))
    if len(outputs) > 1 and not for_all:
        raise ValueError(
            f"Received one {type(given).__name__} for the outputs {', '.join(outputs)}; expected "
            "a dict by their names."
        )
    return dict.fromkeys(outputs, given)


def rows_a_call(model: Any) -> int:
    """The number of samples per call: 32, unless the inputs of the model fix another number."""
    shapes = [tuple(each.shape) for each in getattr(model, "inputs", None) or ()]
    return int(shapes[0][0]) if shapes and shapes[0] and shapes[0][0] is not None else 32


def answers_of(model: Any, x: Any) -> Any:
    """Predicts in inference mode, in batches; returns arrays."""
    parts = [
        keras.tree.map_structure(keras.ops.convert_to_numpy, model(batch[0], training=False))
        for batch in batches(x, None, None, rows_a_call(model))
    ]
    return _joined([*parts]) if len(parts) > 1 else parts[0]


def masks_of(model: Any, x: Any) -> list[Array | None]:
    """The mask of each output on each sample, as a layer that masks hands it on; None without.

    Args:
        model: A model of Keras 3 or tf_keras.
        x: What it takes, arrays of shape [samples, …] or a structure of such.
    """
    batch_size = rows_a_call(model)
    few = 1 if batch_size == 32 else batch_size
    first = keras.tree.map_structure(lambda array: array[:few], x)
    if all(mask is None for mask in _masks(model(first, training=False))):
        return []
    inputs = (batch[0] for batch in batches(x, None, None, batch_size))
    found = [_masks(model(batch, training=False)) for batch in inputs]
    return [
        None if any(each is None for each in parts) else np.concatenate(parts)
        for parts in zip(*found, strict=True)
    ]


def in_arrays(x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
    """Samples, labels and weights as arrays, where `x` is a dataset that brings them along."""
    if not _is_dataset(x):
        return x, y, sample_weight
    parts = list(zip(*batches(x), strict=True))
    joined = [None if part[0] is None else _joined(part) for part in parts]
    return joined[0], joined[1], joined[2]


def _is_dataset(x: Any) -> bool:
    import tensorflow as tf

    return isinstance(x, tf.data.Dataset | keras.utils.PyDataset)


def _joined(parts: Sequence[Any]) -> Any:
    """Batches put together, in the structure that each of them has."""

    def join(*arrays: Any) -> Array:
        return np.concatenate([np.asarray(each) for each in arrays])

    return keras.tree.map_structure(join, *parts)


def _masks(answers: Any) -> list[Any]:
    masks = [mask_of(each) for each in keras.tree.flatten(answers)]
    return [None if mask is None else np.asarray(mask) for mask in masks]

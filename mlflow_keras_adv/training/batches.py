"""Counts the batches that a training has consumed, and the examples in a batch."""

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from mlflow_keras_adv.compat.keras import iterations_of
from mlflow_keras_adv.training.observe import inside_of


def count_batches(optimizers: Iterable[Any]) -> int | None:
    """Counts the training batches that a model has seen by its optimizers, across checkpoints.

    Correct if each batch makes one update or, with `gradient_accumulation_steps`, a part of one.
    If there are several optimizers, the largest count is taken.

    Returns:
        The count; None if it is unknown: a `LossScaleOptimizer` does not count skipped updates.
    """
    count, scaled = 0, False
    for optimizer in optimizers:
        inner = inside_of(optimizer)
        scaled = scaled or inner is not optimizer
        iterations = iterations_of(inner)
        count = max(count, 0 if iterations is None else int(tf.convert_to_tensor(iterations)))
    return None if scaled and count else count


def steps_per_execution(model: Any) -> int:
    """Number of batches that one call of the model's train function consumes at most."""
    steps = getattr(model, "steps_per_execution", None)  # None in tf_keras before `compile`
    if steps is None:
        return 1
    return steps if isinstance(steps, int) else int(tf.convert_to_tensor(steps))  # a variable


def examples_in(data: Any) -> float:
    """Like `batch_size`, for an actual batch, which may be distributed over replicas."""
    return float(batch_size(data))


def batch_size(data: Any) -> Any:
    """Counts the examples in a batch by the first dimension of its first array.

    Args:
        data: Any nesting of tensors (dense, sparse, ragged or spread over the replicas of a
            distribution strategy) and arrays.

    Returns:
        A float if it is known, else a float32 scalar tensor; 0 if the batch holds no array.
    """
    for leaf in tf.nest.flatten(data):
        if isinstance(leaf, tf.distribute.DistributedValues):
            return sum(batch_size(each) for each in leaf.values)
        size = _first_dimension(leaf)
        if size is not None:
            return size
    return 0.0


def _first_dimension(leaf: Any) -> Any:
    shape = getattr(leaf, "shape", None)
    if shape is None or (rank := _rank(shape)) == 0:
        return None
    if rank is not None and shape[0] is not None:
        return float(shape[0])
    if isinstance(leaf, tf.SparseTensor):
        return tf.cast(leaf.dense_shape[0], tf.float32)
    if isinstance(leaf, tf.RaggedTensor):
        return tf.cast(leaf.nrows(), tf.float32)
    if not tf.is_tensor(leaf):
        return None
    # Of unknown rank, as from `tf.numpy_function`: one with no dimension is one example.
    sizes = tf.concat([tf.shape(leaf), [1]], axis=0)
    return tf.cast(sizes[0], tf.float32)


def _rank(shape: Any) -> int | None:
    return shape.rank if isinstance(shape, tf.TensorShape) else len(shape)

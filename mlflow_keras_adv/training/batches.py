"""Batches: how many a training has consumed, and how many examples are in one."""

from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from mlflow_keras_adv.compat.keras import iterations_of
from mlflow_keras_adv.training.observe import inside_of


def count_batches(optimizers: Iterable[Any]) -> int | None:
    """Training batches that a model has seen, as its optimizers count them, checkpoints included.

    Right where each batch makes one update or, with `gradient_accumulation_steps`, a part of one.
    If there are several optimizers, the largest count is taken.

    Returns:
        None where that cannot be told: a `LossScaleOptimizer` does not count what it skipped.
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
    return 1 if steps is None else int(steps)


def examples_in(data: Any) -> float:
    """As `batch_size`, for a batch that is at hand, which may be spread over replicas."""
    return float(batch_size(data))


def batch_size(data: Any) -> Any:
    """Number of examples in a batch: the first dimension of its first array.

    Args:
        data: Any nesting of tensors (dense, sparse, ragged or spread over the replicas of a
            distribution strategy) and arrays.

    Returns:
        A float where it is known, else a float32 scalar tensor; 0 where the batch holds no array.
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

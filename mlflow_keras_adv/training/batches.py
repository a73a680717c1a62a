"""Batches: how many a training has consumed, and how many examples are in one."""

from collections.abc import Iterable
from typing import Any

import tensorflow as tf


def count_batches(optimizers: Iterable[Any]) -> int | None:
    """Training batches that a model has seen, as its optimizers count them, checkpoints included.

    Right where each batch makes one update or, with `gradient_accumulation_steps`, a part of one.
    Of several optimizers the largest count is taken.

    Returns:
        None where that cannot be told: a `LossScaleOptimizer` does not count what it skipped.
    """
    count, scaled = 0, False
    for optimizer in optimizers:
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        scaled = scaled or inner is not optimizer
        # Not `iterations`, which counts updates; tf_keras makes the variable late.
        iterations = getattr(inner, "_iterations", None)
        count = max(count, 0 if iterations is None else int(tf.convert_to_tensor(iterations)))
    return None if scaled and count else count


def steps_per_execution(model: Any) -> int:
    """Number of batches that one call of the model's train function consumes at most."""
    steps = getattr(model, "steps_per_execution", None)  # None in tf_keras before `compile`
    return 1 if steps is None else int(steps)


def examples_in(data: Any) -> float:
    """As `batch_size`, for a batch that is at hand."""
    leaf = _first_array(data)
    return 0.0 if leaf is None else float(leaf.shape[0])


def batch_size(data: Any) -> Any:
    """Number of examples in a batch: the first dimension of its first tensor, a float32 scalar.

    Args:
        data: Any nesting of tensors and arrays; 0 is returned where it holds none.
    """
    leaf = _first_array(data)
    return tf.constant(0.0) if leaf is None else tf.cast(tf.shape(leaf)[0], tf.float32)


def _first_array(data: Any) -> Any:
    """The first leaf of any nesting that has a first dimension, or None."""
    return next(
        (leaf for leaf in tf.nest.flatten(data) if len(getattr(leaf, "shape", ())) > 0), None
    )

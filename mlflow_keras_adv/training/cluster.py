"""The replicas of `tf.distribute`: which of them computes here, and what becomes of their values.

Each process has a table of its own, which its first replica writes to with numbers that are reduced
over all replicas. Between processes a reduction is a collective operation, which each of them has
to make in the same place: one that only the observed process makes ends the training of all. So
what is recorded unasked is read from what the training itself reduces; between the replicas of one
process, which trace one step together, it may be reduced once more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf


def has_replicas() -> bool:
    """Whether what is being traced or run is the step of one replica among several."""
    return _context() is not None


def in_first_replica() -> bool:
    """Whether to write: each replica of a process traces the step, with numbers of all of them."""
    context = _context()
    if context is None:
        return True
    number = tf.get_static_value(context.replica_id_in_sync_group)
    return number is None or int(number) % _in_this_process(context.strategy) == 0


def in_one_process() -> bool:
    """Whether all replicas of the step that is being traced are in this process."""
    context = _context()
    return context is None or processes_of(context.strategy) == 1


def processes_of(strategy: Any) -> int:
    """Among how many processes a strategy divides each global batch."""
    return int(strategy.num_replicas_in_sync) // _in_this_process(strategy)


def strategy_of(model: Any) -> Any:
    """The strategy in whose scope a model was made; TensorFlow's default one if in none."""
    found = getattr(model, "distribute_strategy", None)
    return found if isinstance(found, tf.distribute.Strategy) else tf.distribute.get_strategy()


def steps_are_remote(strategy: Any) -> bool:
    """Whether the steps run in other processes at moments of their own, with parameter servers."""
    return isinstance(strategy, tf.distribute.ParameterServerStrategy)


def sums_over_replicas(values: Sequence[Any]) -> list[Any]:
    """Sums each value over the replicas, by one collective operation; themselves without several.

    Args:
        values: Tensors or `IndexedSlices` of one replica.
    """
    context = _context()
    if context is None or not values:
        return list(values)
    return list(context.all_reduce(tf.distribute.ReduceOp.SUM, list(values)))


def over_replicas(values: Mapping[str, Any], *, mean: bool) -> dict[str, Any]:
    """Computes the sum or the mean of values over the replicas, by one operation.

    Args:
        values: Numbers or tensors of a replica. Outside of the replicas' step they are returned
            unchanged.
        mean: Whether to compute the mean.
    """
    context = _context()
    if context is None:
        return dict(values)
    sums = sums_over_replicas([tf.cast(value, tf.float32) for value in values.values()])
    parts = context.num_replicas_in_sync if mean else 1
    return {name: total / parts for name, total in zip(values, sums, strict=True)}


def over_values(value: Any, *, mean: bool, strategy: Any) -> Any:
    """Computes the sum or the mean of what is distributed over replicas, outside of their step.

    Args:
        value: A `tf.distribute.DistributedValues`.
        mean: Whether to compute the mean.
        strategy: That of the training, which reduces it where there are several processes.
    """
    if processes_of(strategy) > 1:
        return strategy.reduce("MEAN" if mean else "SUM", value, axis=None)
    values = [tf.cast(each, tf.float32) for each in value.values]
    total = tf.add_n(values)
    return total / len(values) if mean else total


def _context() -> Any:
    """That of the replica whose step is being traced or run, if it is one of several."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    return context


def _in_this_process(strategy: Any) -> int:
    if strategy.num_replicas_in_sync == 1:  # the default strategy names no devices
        return 1
    return len(strategy.extended.worker_devices)

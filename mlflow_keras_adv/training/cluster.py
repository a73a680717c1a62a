"""The replicas of `tf.distribute`: which of them computes here, and what becomes of their values.

Each process has a table of its own, which its first replica writes to with numbers that are reduced
over all replicas. Between processes a reduction is a collective operation, which each of them has
to make in the same place: one that only the observed process makes ends the training of all. So
what is recorded unasked is read from what the training itself reduces; between the replicas of one
process, which trace one step together, it may be reduced once more.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from mlflow_keras_adv.compat.tensorflow import tell_cluster, told_in_cluster
from mlflow_keras_adv.errors import UserError

# How long the chief waits for what the others say of their begin, and they for it: it has a run to
# open. Who says nothing is not observed.
CHIEF_WAITS_SECONDS, OTHERS_WAIT_SECONDS = 5.0, 30.0


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


def require_same_begin(strategy: Any, begin: str) -> None:
    """Compares where the processes of a training begin, those that are observed.

    Said and asked without a collective operation: one that is not observed would not take part.
    So nobody waits for it for long.

    Args:
        strategy: That of the training.
        begin: Where this process begins, in words.

    Raises:
        UserError: Another one begins elsewhere.
    """
    if processes_of(strategy) == 1 or strategy.cluster_resolver is None:
        return
    resolver, number = strategy.cluster_resolver, next(_begins)
    spec = resolver.cluster_spec().as_dict()
    everyone = [f"{job}/{index}" for job in _TRAINERS for index in range(len(spec.get(job, ())))]
    own = f"{resolver.task_type}/{resolver.task_id}"
    topic, others = f"mlflow_keras_adv/begin-{number}", [each for each in everyone if each != own]
    if own not in everyone or not tell_cluster(f"{topic}/{own}", begin):
        return
    until = time.monotonic() + (CHIEF_WAITS_SECONDS if own == everyone[0] else OTHERS_WAIT_SECONDS)

    def told(what: str) -> dict[str, str | None]:
        """What the others say, as soon as they do."""
        return {
            each: told_in_cluster(f"{what}/{each}", max(0.001, until - time.monotonic()))
            for each in others
        }

    elsewhere = {each: said for each, said in told(topic).items() if said not in (None, begin)}
    if elsewhere:
        tell_cluster(f"{topic}/seen/{own}", "")
        told(f"{topic}/seen")  # whoever ends first takes the answers along
        named = ", ".join(f"{each} at {said}" for each, said in elsewhere.items())
        raise UserError(
            f"The processes of this training begin at different places: {own} at {begin}, {named}. "
            "They would train different weights on. Give all of them one checkpoint, such as that "
            "of the chief in a folder that all of them see."
        )


_TRAINERS = ("chief", "worker")
_begins = itertools.count()


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

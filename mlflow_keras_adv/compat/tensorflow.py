"""TensorFlow 2.18 to 2.21."""

from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.ops import control_flow_util, control_flow_v2_func_graphs


def body_of(operation: Any, attribute: str) -> Any:
    """The graph of a function that an operation calls: of a loop, a branch, another function.

    Args:
        operation: Of a graph.
        attribute: Of the operation, that names the function.
    """
    # Private, but a graph tells nobody else what its functions hold: its definition would have to
    # be copied, with all constants, and has no shapes.
    return operation.graph._get_function(operation.get_attr(attribute).name).graph


def is_for_xla(graph: Any) -> bool:
    """Whether a graph is traced to be compiled by XLA, as `jit_compile=True` has it."""
    return bool(control_flow_util.GraphOrParentsInXlaContext(graph))


def is_branch(graph: Any) -> bool:
    """Whether a graph is that of a branch of `tf.cond`."""
    return isinstance(graph, control_flow_v2_func_graphs.CondBranchFuncGraph)


def tell_cluster(key: str, value: str) -> bool:
    """Says something to the processes that a `MultiWorkerMirroredStrategy` trains with.

    By the service through which they find each other, and by no collective operation: so it does
    not matter whether anybody else says or asks anything.

    Args:
        key: What it is about; each is told once.
        value: What is said.

    Returns:
        Whether there is such a service.
    """
    try:
        context.context().set_config_key_value(key, value)
    except tf.errors.OpError:
        return False
    return True


def told_in_cluster(key: str, seconds: float) -> str | None:
    """What a process of the cluster has said; None if it says nothing in so many seconds.

    Args:
        key: As in `tell_cluster`.
        seconds: How long to wait for it.
    """
    try:
        return str(context.context().get_config_key_value(key, int(1000 * seconds)))
    except tf.errors.OpError:
        return None

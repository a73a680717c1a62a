"""TensorFlow 2.18 to 2.21."""

from typing import Any

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

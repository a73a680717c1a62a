"""Aside: reading what a training step computes, and leaving its last digits as they are.

TensorFlow rearranges a step's sums and products where nobody reads what lies between, and another
order rounds differently. One more reader of a tensor keeps it from that. So what is recorded is
read from copies of the operations that may be rearranged, and the step's own have the readers that
they had.
"""

from typing import Any

import tensorflow as tf

from mlflow_keras_adv.compat.tensorflow import is_branch, is_for_xla

# What TensorFlow moves, merges or drops if its output has one reader only. All are cheap, and a
# gradient has few of them behind its matrix product, convolution or sum, where copying ends.
_CWISE = ("Add", "AddV2", "AddN", "Sub", "Mul", "Neg", "Div", "RealDiv", "DivNoNan", "Square")
_CHOICES = ("Maximum", "Minimum", "ClipByValue", "SelectV2")
_SHAPES = ("Reshape", "ExpandDims", "Squeeze", "BroadcastTo", "Tile", "Transpose")
_MOVED = frozenset((*_CWISE, *_CHOICES, *_SHAPES, "Identity", "StopGradient", "Cast"))
_MOST = 1000  # operations of one copy: a bound, no more


def aside(value: Any) -> Any:
    """The same numbers, of operations that the step does not use.

    Itself where it is eager or for XLA.

    Args:
        value: A tensor or `IndexedSlices` of the graph that is being traced, or anything else.
    """
    if isinstance(value, tf.IndexedSlices):
        return tf.IndexedSlices(aside(value.values), value.indices, value.dense_shape)
    if not isinstance(value, tf.Tensor) or not tf.is_symbolic_tensor(value):
        return value
    if in_xla():  # merges equal operations whatever they are marked with, and fuses others then
        return value
    graph = tf.compat.v1.get_default_graph()
    copies: dict[Any, Any] = {}
    for op in _moved_before(value.op, graph):
        kept = {key: each for key, each in op.node_def.attr.items() if not key.startswith("_")}
        copies[op] = graph.create_op(
            op.type,
            [_of(copies, each) for each in op.inputs],
            [each.dtype for each in op.outputs],
            attrs={**kept, "_aside": tf.compat.v1.AttrValue(b=True)},  # equal ones would be merged
            name="aside",
        )
    return _of(copies, value)


def in_xla() -> bool:
    """Whether what is being traced will be compiled by XLA, as `jit_compile=True` has it."""
    return not tf.executing_eagerly() and is_for_xla(tf.compat.v1.get_default_graph())


def in_branch_for_xla() -> bool:
    """Whether it is besides in a branch of `tf.cond`."""
    graph = tf.compat.v1.get_default_graph()
    while graph is not None and not is_branch(graph):
        graph = getattr(graph, "outer_graph", None)
    return graph is not None and in_xla()


def _of(copies: dict[Any, Any], value: Any) -> Any:
    return copies[value.op].outputs[value.value_index] if value.op in copies else value


def _moved_before(op: Any, graph: Any) -> list[Any]:
    """The operations to copy, `op` the last of them, each behind those that it takes from."""
    found: dict[Any, None] = {}
    waiting = [(op, False)]
    while waiting and len(found) < _MOST:
        op, inputs_done = waiting.pop()
        if inputs_done:
            found[op] = None
        elif op not in found and op.type in _MOVED and op.graph is graph:
            waiting.append((op, True))
            waiting += [(each.op, False) for each in op.inputs]
    return list(found)

"""TensorFlow 2.18 to 2.21."""

from typing import Any


def body_of(operation: Any, attribute: str) -> Any:
    """The graph of a function that an operation calls: of a loop, a branch, another function.

    Args:
        operation: Of a graph.
        attribute: Of the operation, that names the function.
    """
    # Private, but a graph tells nobody else what its functions hold: its definition would have to
    # be copied, with all constants, and has no shapes.
    return operation.graph._get_function(operation.get_attr(attribute).name).graph

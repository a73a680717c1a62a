"""tf_keras 2.18 to 2.21: what it has no public name for. It imports nothing of it."""

from typing import Any

import keras

from mlflow_keras_adv.compat.keras import Call, nodes_of


def is_functional(model: Any) -> bool:
    """Whether a model of tf_keras has a graph of calls."""
    return bool(model._is_graph_network)


def calls_of(model: Any) -> list[Call]:
    """The calls in a functional model of tf_keras, in their order; inputs left out."""
    return [
        (node.layer, (tuple(node.call_args), node.call_kwargs), keras.tree.flatten(node.outputs))
        for node in nodes_of(model)
    ]


def inputs_of(model: Any) -> Any:
    """Symbolic inputs in the model's structure."""
    return model._nested_inputs


def outputs_of(model: Any) -> Any:
    """Symbolic outputs in the model's structure."""
    return model._nested_outputs


def freeze(layer: Any) -> None:
    """Moves what a layer trains to what it does not, whatever layers it holds say themselves."""
    layer._non_trainable_weights += layer._trainable_weights
    layer._trainable_weights = []


def is_callback(callback: Any) -> bool:
    """Whether tf_keras takes this as a callback: it asks each which hooks it has."""
    return hasattr(callback, "_implements_train_batch_hooks")

"""Layers and calls in a model's graph, in the same form for Keras 3 and tf_keras."""

import itertools
from collections.abc import Collection, Iterator
from typing import Any

import keras

from mlflow_keras_adv.compat import keras as compat_keras
from mlflow_keras_adv.compat import tf_keras as compat_tf_keras
from mlflow_keras_adv.extras import extra

with extra("compression"):
    import tf_keras


def named_layers(model: Any) -> dict[str, Any]:
    """The layers of a model and of those nested in it, by the names they have across the bridge.

    Args:
        model: A built Sequential or functional model of Keras 3 or tf_keras.

    Returns:
        Layers that are not models, in the order in which they are first called. A layer `dense` of
        an inner model `head` is called `head.dense`.
    """
    return {name: each for name, each in named_operations(model) if is_layer(each)}


def is_layer(operation: Any) -> bool:
    """Whether this is a layer, and not an operation of `keras.ops`."""
    return isinstance(operation, (keras.layers.Layer, tf_keras.layers.Layer))


def is_sequential(model: Any) -> bool:
    """Whether this is a Sequential model."""
    return isinstance(model, (keras.Sequential, tf_keras.Sequential))


def is_graph(operation: Any) -> bool:
    """Whether this is a Sequential or functional model."""
    if isinstance(operation, keras.Model):
        return is_sequential(operation) or compat_keras.is_functional(operation)
    return isinstance(operation, tf_keras.Model) and compat_tf_keras.is_functional(operation)


def named_operations(model: Any) -> list[tuple[str, Any]]:
    """Layers and operations of a model and of those nested in it, with their names across.

    The names differ from each other, also where a layer is called `head.dense` beside a model
    `head` with a layer `dense`.
    """
    found: dict[int, tuple[str, Any]] = {}
    taken: set[str] = set()

    def visit(inner: Any, prefix: str) -> None:
        for operation in operations(inner):
            if is_graph(operation):
                visit(operation, f"{prefix}{operation.name}.")
            elif id(operation) not in found:
                name = unused(prefix + operation.name, taken)
                taken.add(name)
                found[id(operation)] = (name, operation)

    visit(model, "")
    return list(found.values())


def unused(name: str, taken: Collection[str]) -> str:
    """The name, with a number if it is taken."""
    numbered = (f"{name}_{number}" for number in itertools.count(1))
    return next(each for each in itertools.chain([name], numbered) if each not in taken)


def operations(model: Any) -> Iterator[Any]:
    """Layers, inner models and operations in the order of their first call; inputs left out."""
    if is_sequential(model):
        yield from (layer for layer in model.layers if type(layer).__name__ != "InputLayer")
    else:
        yield from (operation for operation, _, _ in calls(model))


def calls(model: Any) -> Iterator[tuple[Any, tuple[Any, Any], list[Any]]]:
    """The calls in a functional model: what is called, its arguments, its flat results."""
    library = compat_keras if isinstance(model, keras.Model) else compat_tf_keras
    yield from library.calls_of(model)


def inputs(model: Any) -> Any:
    """Symbolic inputs in the model's structure."""
    library = compat_tf_keras if isinstance(model, tf_keras.Model) else compat_keras
    return library.inputs_of(model)


def outputs(model: Any) -> Any:
    """Symbolic outputs of a functional model in its structure."""
    library = compat_tf_keras if isinstance(model, tf_keras.Model) else compat_keras
    return library.outputs_of(model)

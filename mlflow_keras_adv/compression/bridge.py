"""The bridge: converts a Keras 3 model to a tf_keras model and back, and checks it on a batch.

tfmot supports only models of tf_keras. Both libraries compute with TensorFlow, so a model of stock
layers is the same function in either; layers that cannot be converted are rejected by name, never
approximated.
"""

from functools import cache
from types import ModuleType
from typing import Any

import keras
import numpy as np

from mlflow_keras_adv.compat.keras import is_symbolic
from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.compression import graphs
from mlflow_keras_adv.compression.copying import check_weights, copy_model
from mlflow_keras_adv.compression.layer_translation import (
    TO_KERAS,
    TO_TF_KERAS,
    Direction,
    translate_layer,
)
from mlflow_keras_adv.compression.operation_layer import OperationLayer
from mlflow_keras_adv.compression.precision import half_tolerance
from mlflow_keras_adv.compression.proof import TOLERANCE, prove
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.extras import extra

with extra("compression"):
    import tf_keras

_MERGES = ("Add", "Subtract", "Multiply", "Maximum", "Minimum")


@keeps_random_state()
def to_tf_keras(model: keras.Model, batch: Any) -> tf_keras.Model:
    """A tf_keras model that computes what a Keras 3 model computes.

    Nested models are laid out flat: the layer `dense` of an inner model `head` becomes
    `head.dense`. Shared layers stay shared, several inputs and outputs keep their structure (lists,
    dicts, names). Operations of `keras.ops` become tf_keras layers where there is one, else a layer
    that runs the operation itself. Layers of a 16-bit policy become float32.

    Args:
        model: A built Sequential or functional model of stock layers; it stays as it is.
        batch: What the model takes, with at least one sample: an array of shape (samples, …), or a
            list or dict of such arrays. Both models are run on it.

    Returns:
        A functional tf_keras model with weights of its own, not compiled. On `batch`, in inference
        mode, no output differs by more than 1e-5 of the largest absolute output (5e-3 if a layer
        of `model` computes in float16, 4e-2 in bfloat16).

    Raises:
        UserError: The model is not of that kind, has a layer or option that tf_keras has not, holds
            NaN or infinite weights, or the answers differ.
    """
    check_weights(model)
    return _carry(model, batch, TO_TF_KERAS, half_tolerance(model) or TOLERANCE)


@keeps_random_state()
def to_keras(model: tf_keras.Model, batch: Any, *, like: keras.Model | None = None) -> keras.Model:
    """A Keras 3 model that computes what a tf_keras model computes.

    Args:
        model: A built Sequential or functional model of stock layers, without tfmot's wrappers; it
            stays as it is.
        batch: What the model takes, with at least one sample. Both models are run on it.
        like: The Keras 3 model that `to_tf_keras` made `model` from. Its architecture is used, with
            all that tf_keras has no word for, and the weights of `model`, found by layer name.

    Returns:
        A Keras 3 model with weights of its own, not compiled, equal to `model` on `batch` as said
        at `to_tf_keras`.

    Raises:
        UserError: As of `to_tf_keras`.
    """
    check_weights(model)
    if like is None:
        return _carry(model, batch, TO_KERAS, TOLERANCE)
    returned = copy_model(like)
    layers = {layer.name: layer for layer in model.layers}
    for name, layer in graphs.named_layers(returned).items():
        if type(layer).__name__ == "Normalization":
            continue  # its statistics are those of `like`
        if name in layers:
            _copy_weights(layers[name], layer, name)
        elif layer.weights:
            raise UserError(
                f"layer {name!r} of model {like.name!r} has weights, but the tf_keras model has no "
                "layer of that name; give the model that it was made from"
            )
    prove("to_keras", model, returned, batch, tolerance=half_tolerance(returned) or TOLERANCE)
    return returned


def _carry(model: Any, batch: Any, direction: Direction, tolerance: float) -> Any:
    _check_graph(model, direction, "model")
    target = direction.target
    inputs = keras.tree.map_structure(
        lambda tensor: target.Input(
            batch_shape=tuple(tensor.shape), dtype=tensor.dtype, name=tensor.name
        ),
        graphs.inputs(model),
    )
    names = {id(operation): name for name, operation in graphs.named_operations(model)}
    made: dict[int, Any] = {}
    outputs = _replay(model, inputs, direction, names, made)
    carried = target.Model(inputs, outputs, name=model.name)
    for layer in graphs.named_layers(model).values():
        if type(layer).__name__ != "Normalization":  # its statistics were given as constants
            _copy_weights(layer, made[id(layer)], names[id(layer)])
    prove(f"to_{target.__name__}", model, carried, batch, tolerance=tolerance)
    return carried


def _replay(
    model: Any, inputs: Any, direction: Direction, names: dict[int, str], made: dict[int, Any]
) -> Any:
    """Calls the translation of every layer of `model`, as the model calls its own.

    Args:
        model: A Sequential or functional model of the source library.
        inputs: Symbolic tensors of the target, in the model's structure.
        direction: From which Keras to which.
        names: What the new layers are called, by id of the old one.
        made: The new layers so far, by id of the old one: a shared layer stays shared.

    Returns:
        Symbolic outputs in the model's structure.
    """

    def call(operation: Any, args: Any, kwargs: Any) -> Any:
        # In tf_keras a recorded `training` would outrule the one of fit; in Keras 3 it does not.
        kwargs = {k: v for k, v in kwargs.items() if k != "training" and v is not None}
        if graphs.is_graph(operation):
            _check_graph(operation, direction, "the inner model")
            return _replay(operation, args[0], direction, names, made)
        name = names[id(operation)]
        if not graphs.is_layer(operation):
            return _call_operation(operation, name, args, kwargs)
        if id(operation) not in made:
            made[id(operation)] = translate_layer(operation, direction, name)
        try:
            return made[id(operation)](*args, **kwargs)
        except Exception as error:
            raise UserError(
                f"layer {name!r} ({type(operation).__name__}) cannot be called in "
                f"{direction.target.__name__} as it is in {direction.source.__name__}: {error}"
            ) from error

    if graphs.is_sequential(model):
        for layer in graphs.operations(model):
            inputs = call(layer, (inputs,), {})
        return inputs
    symbols = zip(keras.tree.flatten(graphs.inputs(model)), keras.tree.flatten(inputs), strict=True)
    values = {id(symbol): value for symbol, value in symbols}

    def fill(argument: Any) -> Any:
        return values.get(id(argument), argument)

    for operation, arguments, results in graphs.calls(model):
        args, kwargs = keras.tree.map_structure(fill, arguments)
        answers = keras.tree.flatten(call(operation, args, kwargs))
        values.update({id(r): answer for r, answer in zip(results, answers, strict=True)})
    return keras.tree.map_structure(lambda symbol: values[id(symbol)], graphs.outputs(model))


def _call_operation(operation: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Calls an operation of `keras.ops` as a layer of tf_keras."""
    kind = type(operation).__name__
    layers = tf_keras.layers
    if kind in _MERGES and len(args) == 2 and all(is_symbolic(each) for each in args):
        return getattr(layers, kind)(name=name)(list(args))
    if kind == "Concatenate" and all(is_symbolic(each) for each in args[0]):
        return layers.Concatenate(axis=operation.axis, name=name)(list(args[0]))
    if kind == "Relu":
        return layers.ReLU(name=name)(args[0])

    leaves = keras.tree.flatten((args, kwargs))
    places = [place for place, leaf in enumerate(leaves) if is_symbolic(leaf)]

    def compute(tensors: Any) -> Any:
        filled = list(leaves)
        given = tensors if len(places) > 1 else [tensors]  # cloning takes a list of one apart
        for place, tensor in zip(places, given, strict=True):
            filled[place] = tensor
        own_args, own_kwargs = keras.tree.pack_sequence_as((args, kwargs), filled)
        return operation(*own_args, **own_kwargs)

    tensors = [leaves[place] for place in places]
    taken = tensors if len(tensors) > 1 else tensors[0]
    return OperationLayer(compute, name=name)(taken)


def _copy_weights(source: Any, target: Any, name: str) -> None:
    weights = _in_order(list(source.weights), [_leaf(weight) for weight in target.weights])
    values = [np.asarray(weight) for weight in weights]
    shapes = [tuple(weight.shape) for weight in target.weights]
    if [value.shape for value in values] != shapes:
        raise UserError(
            f"layer {name!r} ({type(source).__name__}) has weights of the shapes "
            f"{[value.shape for value in values]} in one library and {shapes} in the other; use "
            "a layer that both know, or compress without this part"
        )
    for weight, value in zip(target.weights, values, strict=True):
        weight.assign(value)


def _in_order(weights: list[Any], leaves: list[str]) -> list[Any]:
    """Weights in the order of names, where both say the same names, each once.

    Clustering leaves those of a MultiHeadAttention in another order.
    """
    named = {_leaf(weight): weight for weight in weights}
    if set(named) == set(leaves) and len(named) == len(weights) == len(leaves):
        return [named[leaf] for leaf in leaves]
    return weights


def _leaf(weight: Any) -> str:
    """The last two parts of a weight's path: `query/kernel`."""
    path = str(getattr(weight, "path", weight.name)).partition(":")[0]
    return "/".join(path.split("/")[-2:])


def _check_graph(model: Any, direction: Direction, what: str) -> None:
    source = direction.source
    base = source.Sequential if graphs.is_sequential(model) else _functional(source)
    if not graphs.is_graph(model) or type(model).call is not base.call:
        raise UserError(
            f"{what} {model.name!r} ({type(model).__name__}) is neither Sequential nor functional: "
            "its call() is Python code that no other library can be shown. Build it with "
            f"{source.__name__}.Model(inputs, outputs)."
        )
    if not model.inputs:
        raise UserError(f"{what} {model.name!r} has no inputs yet; start it with an Input")


@cache
def _functional(library: ModuleType) -> Any:
    """The class of functional models, which has no public name."""
    tensor = library.Input((1,))
    return type(library.Model(tensor, tensor))

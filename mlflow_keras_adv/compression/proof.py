"""Checks that a step of compression has changed nothing else.

A model passes several steps: the bridge, tfmot's wrapping, quantizing and stripping, the converter.
After each of them the model is compared with the one before: its graph (every call of every layer,
with its inputs in order), its weights, and its outputs on data. A difference is an error that names
the layer, before any training.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from mlflow_keras_adv.compat.tfmot import quant_ops
from mlflow_keras_adv.compression import graphs
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.replacing import Replacement

TOLERANCE = 1e-5  # of the largest absolute output


def prove(
    step: str,
    before: Any,
    after: Any,
    sample: Any,
    *,
    tolerance: float = TOLERANCE,
    changed: Collection[str] = (),
) -> None:
    """Proves that a step has kept the graph, the weights and the outputs of a model.

    Args:
        step: What was done, for the message: "quantize_apply".
        before: A functional or Sequential model of Keras 3 or tf_keras.
        after: What the step made of it. Layers of its own are called after the layer that they
            belong to, `name.…`; tfmot's wrappers count as what they wrap, without rounding.
        sample: Inputs of both.
        tolerance: How far outputs may be apart, as a share of the largest.
        changed: Layers that are meant to be other than before: their weights are not compared. If
            there are any, neither are the outputs.

    Raises:
        UserError: Naming the layer, the weight or the output that is not what it was.
    """
    prove_graph(step, before, after)
    prove_weights(step, before, after, changed=changed)
    if not changed:
        prove_outputs(step, before, after, sample, tolerance=tolerance)


# The graph


_Tensor = tuple[int, str]  # its number, and who made it


@dataclass
class _Graph:
    """Calls as numbers: two are equal if the same layers were called in the same way.

    Attributes:
        calls: The layer's name, the call's number and the names of what feeds it.
        outputs: Outputs of the model.
    """

    calls: list[tuple[str, int, list[str]]] = field(default_factory=list)
    outputs: list[_Tensor] = field(default_factory=list)


def prove_graph(step: str, before: Any, after: Any) -> None:
    """Proves that the same layers are called, each on the same tensors in the same order.

    Raises:
        UserError: Naming a layer that is missing, new, or fed otherwise.
    """
    names = {unwrapped_name(each, name) for name, each in graphs.named_operations(before)}
    names |= set(_input_names(before))
    one, other = _read(before, names), _read(after, names)
    there = Counter(number for _, number, _ in other.calls)
    for name, number, feeds in one.calls:
        if there[number] > 0:
            there[number] -= 1
            continue
        found = [fed for own, _, fed in other.calls if own == name]
        now = f"by {' and '.join(map(str, found))}" if found else "it is not there"
        raise UserError(
            f"{step}: layer {name!r} was fed by {feeds}, and afterwards {now}. "
            "The model cannot be compressed this way without computing something else; please "
            "report it, with the model's summary."
        )
    known = Counter(number for _, number, _ in one.calls)
    for name, number, feeds in other.calls:
        if known[number] == 0:
            raise UserError(f"{step}: a layer {name!r} has come into the model, fed by {feeds}")
        known[number] -= 1
    if one.outputs != other.outputs:
        came, come = ([maker for _, maker in graph.outputs] for graph in (one, other))
        raise UserError(f"{step}: the model's outputs came from {came}, and now from {come}")


def _input_names(model: Any) -> list[str]:
    return [tensor.name for tensor in keras.tree.flatten(graphs.inputs(model))]


def _read(model: Any, names: set[str]) -> _Graph:
    graph = _Graph()
    named = enumerate(_input_names(model))
    inputs = [(hash(("input", position)), name) for position, name in named]
    called = {id(operation): name for name, operation in graphs.named_operations(model)}
    graph.outputs = _follow(model, inputs, graph, called, names)
    return graph


def _follow(
    model: Any,
    inputs: list[_Tensor],
    graph: _Graph,
    called: Mapping[int, str],
    names: set[str],
) -> list[_Tensor]:
    """Numbers what a model computes from `inputs`; inner models are laid out flat."""

    def call(operation: Any, fed: list[_Tensor], results: int) -> list[_Tensor]:
        if graphs.is_graph(operation):
            return _follow(operation, fed, graph, called, names)
        name = unwrapped_name(operation, called[id(operation)])
        beside = _is_of_tfmot(operation) and not is_wrapper(operation)
        if beside or (name not in names and owner_of(name, names) is not None):
            return fed  # what tfmot has put beside a layer passes on what it gets
        number = hash((name, *(each for each, _ in fed)))
        graph.calls.append((name, number, [maker for _, maker in fed]))
        return [(hash((number, place)), name) for place in range(results)]

    if graphs.is_sequential(model):
        for layer in graphs.operations(model):
            inputs = call(layer, inputs, 1)
        return inputs
    values: dict[int, _Tensor] = {}
    symbols = keras.tree.flatten(graphs.inputs(model))
    values.update(zip(map(id, symbols), inputs, strict=True))
    for operation, arguments, results in graphs.calls(model):
        fed = [values[id(leaf)] for leaf in keras.tree.flatten(arguments) if id(leaf) in values]
        answers = call(operation, fed, len(results))
        values.update(zip(map(id, results), answers, strict=True))
    return [values[id(symbol)] for symbol in keras.tree.flatten(graphs.outputs(model))]


def unwrapped_name(layer: Any, name: str) -> str:
    """The name of a layer, or of the one inside a wrapper of tfmot."""
    return str(layer.layer.name) if is_wrapper(layer) else name


def _unwrapped(layer: Any) -> Any:
    return layer.layer if is_wrapper(layer) else layer


def is_wrapper(layer: Any) -> bool:
    """Whether tfmot has put this around a layer; tf_keras has wrappers too, which are layers."""
    return _is_of_tfmot(layer) and hasattr(layer, "layer")


def _is_of_tfmot(layer: Any) -> bool:
    return type(layer).__module__.startswith("tensorflow_model_optimization.")


def owner_of(name: str, names: set[str]) -> str | None:
    """The layer that `name` was derived from, as `conv` of `conv.depthwise`."""
    parts = name.split(".")
    owners = (".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
    return next((owner for owner in owners if owner in names), None)


# The weights


def prove_weights(step: str, before: Any, after: Any, *, changed: Collection[str] = ()) -> None:
    """Proves that every weight is where it was: in its layer, of its value, trained or not.

    Args:
        step: For the message.
        before: See `prove`.
        after: See `prove`.
        changed: Layers whose weights are allowed to differ.

    Raises:
        UserError: Naming the layer.
    """
    named = graphs.named_layers(before).items()
    layers = {unwrapped_name(each, name): _unwrapped(each) for name, each in named}
    found: dict[str, list[tuple[np.ndarray, bool]]] = {name: [] for name in layers}
    for own, layer in graphs.named_layers(after).items():
        name = unwrapped_name(layer, own)
        owner = name if name in layers else owner_of(name, set(layers))
        if owner is not None:
            found[owner] += list(_weights(layer))
    for name, layer in layers.items():
        if name in changed or type(layer).__name__ == "Normalization":
            continue  # the statistics of a Normalization are constants in tf_keras
        for value, is_trained in _weights(layer):
            there = found[name]
            place = next((i for i, each in enumerate(there) if _same(value, each[0])), None)
            if place is None:
                raise UserError(
                    f"{step}: a weight of layer {name!r}, of the shape {value.shape}, is not what "
                    "it was before"
                )
            if there.pop(place)[1] != is_trained:
                state = "was frozen and would be trained" if not is_trained else "would be frozen"
                raise UserError(f"{step}: a weight of layer {name!r} {state}")


def _weights(layer: Any) -> Iterator[tuple[np.ndarray, bool]]:
    trained = {id(weight) for weight in layer.trainable_weights}
    for weight in layer.weights:
        yield np.asarray(weight), id(weight) in trained


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(np.array_equal(one.astype(other.dtype), other))


# The outputs


def prove_outputs(
    step: str, one: Any, other: Any, sample: Any, *, tolerance: float = TOLERANCE
) -> None:
    """Proves that two models answer alike, in inference mode and without rounding.

    They do so on the sample and on random numbers in its range: a few real samples may be alike, or
    empty in places.

    Raises:
        UserError: Naming the output.
    """
    arrays = keras.tree.flatten(sample)
    if not arrays or any(len(array) == 0 for array in arrays):
        raise UserError("batch is empty; give a few samples of what the model takes, such as x[:8]")
    _compare_outputs(step, one, other, sample, tolerance)
    generator = np.random.default_rng(0)
    other_sample = keras.tree.map_structure(lambda array: _like(array, generator), sample)
    if all(np.isfinite(answer).all() for answer in answers_of(one, other_sample)):
        _compare_outputs(step, one, other, other_sample, tolerance)


def _like(array: Any, generator: np.random.Generator) -> np.ndarray:
    """Numbers of the shape, the kind and the range of an array."""
    values = np.asarray(array)
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        return generator.permuted(values, axis=0)
    low, high = values.min(), values.max()
    if values.dtype.kind in "iu":
        return generator.integers(low, high, size=values.shape, dtype=values.dtype, endpoint=True)
    return generator.uniform(low, high, size=values.shape).astype(values.dtype)


def _compare_outputs(step: str, one: Any, other: Any, sample: Any, tolerance: float) -> None:
    expected, answers = answers_of(one, sample), answers_of(other, sample)
    for position, (a, b) in enumerate(zip(expected, answers, strict=True)):
        largest = np.max(np.abs(a), initial=0)
        difference = np.max(np.abs(a.astype("float64") - b), initial=0)
        if not difference <= tolerance * largest:  # nor where one is NaN
            raise UserError(
                f"{step}: model {one.name!r} computes something else now: output {position} "
                f"differs by {difference:.3g} on the batch; at most {tolerance * largest:.3g} was "
                f"expected ({tolerance:g} of the largest output). Is the batch finite, and what "
                "the model takes?"
            )


def answers_of(model: Any, sample: Any) -> list[np.ndarray]:
    """The outputs of a model of either library, flat and without tfmot's rounding."""
    tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, sample)
    with without_rounding():
        # Said aloud: without it both libraries run augmentation layers in training mode.
        outputs = model(tensors, training=False)
    return [np.asarray(each) for each in keras.tree.flatten(outputs)]


def without_rounding() -> AbstractContextManager[Any]:
    """Models of tfmot's `quantize_apply` compute in float, in calls that are not compiled."""
    return Replacement(
        # All of tfmot's quantizers end here.
        quant_ops,
        "_FakeQuantWithMinMaxVars",
        lambda inputs, *_, **__: inputs,
    )

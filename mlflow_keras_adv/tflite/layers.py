"""Assigns the operations of a float `.tflite` file to layers, by their weights."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlflow_keras_adv.extras import extra
from mlflow_keras_adv.tflite.weights import constant

with extra("compression"):
    from ai_edge_litert import schema_py_generated as schema

_SUFFIXES = ("", *(f"_{number}" for number in range(1, 10)))
_ROUNDING = 1e-5  # of a normalization that is folded into a kernel


@dataclass(frozen=True, eq=False)
class _Operation:
    """One of the file.

    Attributes:
        scope: As LiteRT's quantizer calls it: its outputs' names, each with a semicolon.
        weights: Its float constants of rank 2 and more, by their numbers.
        names: Theirs.
        inputs: Numbers of tensors.
        outputs: Numbers of tensors.
    """

    scope: str
    weights: dict[int, np.ndarray]
    names: list[str]
    inputs: list[int]
    outputs: list[int]


def operations_of_layers(
    content: bytes, kernels: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, tuple[str, ...]]:
    """Finds the operations that use the weights of each layer.

    A weight is known by its numbers; where the converter has taken them apart, as of recurrent
    layers, by its name in the file.

    Args:
        content: A float file.
        kernels: By layer, weights of rank 2 and more; an inner model's layer is `inner.dense`.

    Returns:
        By layer, operations as LiteRT's quantizer calls them: the names of their outputs, each with
        a semicolon. Layers that are not found are left out.
    """
    operations = list(_operations(content))
    stored = {number: each for one in operations for number, each in one.weights.items()}
    owners: dict[int, str] = {}
    for name, own in kernels.items():
        for kernel in own:
            alike = [number for number, each in stored.items() if _is_same(kernel, each)]
            if len(alike) == 1:
                owners.setdefault(alike[0], name)
    found: dict[str, list[str]] = {}
    for name in kernels:
        found[name] = [o.scope for o in operations if any(owners.get(n) == name for n in o.weights)]
    rest = [o for o in operations if o.weights and not any(n in owners for n in o.weights)]
    named = _by_name(rest, list(kernels))
    return {
        name: tuple(dict.fromkeys([*scopes, *named.get(name, [])]))
        for name, scopes in found.items()
        if scopes or name in named
    }


def operations_left(
    content: bytes, layers: Mapping[str, tuple[str, ...]], chosen: Collection[str]
) -> list[str]:
    """Finds the operations that stay in float: those of other layers, and those only they feed.

    Args:
        content: The file of which `layers` was made.
        layers: From `operations_of_layers`.
        chosen: Layers to quantize.
    """
    is_chosen = {scope: name in chosen for name, scopes in layers.items() for scope in scopes}
    makers: dict[int, bool] = {}  # whether what makes a tensor is quantized
    left = []
    for operation in _operations(content):
        fed = any(makers.get(number, False) for number in operation.inputs)
        is_quantized = is_chosen.get(operation.scope, fed and not operation.weights)
        makers.update(dict.fromkeys(operation.outputs, is_quantized))
        if not is_quantized:
            left.append(operation.scope)
    return left


def _by_name(operations: Sequence[_Operation], layers: Sequence[str]) -> dict[str, list[str]]:
    # Exporting appends the same number to every part of a path: `model_1/dense_1/MatMul`.
    best: dict[str, list[str]] = {}
    for suffix in _SUFFIXES:
        found = {}
        for layer in layers:
            path = "/".join(re.escape(part + suffix) for part in layer.split("."))
            pattern = re.compile(rf"(^|;)[^/;]+/{path}(/|;|$)")  # behind the model's name
            scopes = [o.scope for o in operations if any(map(pattern.search, o.names))]
            if scopes:
                found[layer] = scopes
        if len(found) > len(best):
            best = found
    return best


def _is_same(kernel: np.ndarray, stored: np.ndarray) -> bool:
    """Whether a file's constant is this kernel, its output channels scaled perhaps."""
    if kernel.size != stored.size:
        return False
    outputs = np.moveaxis(kernel, -1, 0).reshape(kernel.shape[-1], -1)
    layouts = [outputs, np.moveaxis(kernel, -2, 0), kernel, kernel.reshape(kernel.shape[0], -1).T]
    if any(np.array_equal(layout.reshape(-1), stored.reshape(-1)) for layout in layouts):
        return True
    return any(
        _is_scaled(one, other)
        for one, other in (
            (outputs, stored.reshape(outputs.shape)),
            # Of a depthwise kernel the channels are the last axes, in the file too.
            (kernel.reshape(-1, *_channels(kernel)).T, stored.reshape(-1, *_channels(kernel)).T),
        )
    )


def _channels(kernel: np.ndarray) -> tuple[int]:
    return (int(np.prod(kernel.shape[-2:])),)


def _is_scaled(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether each row is the other's, times a number."""
    if one.shape[1] < 2:
        return False
    dots = np.abs((one * other).sum(axis=1))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return bool((lengths > 0).any() and (dots >= (1 - _ROUNDING) * lengths).all())


def _operations(content: bytes) -> Iterator[_Operation]:
    model = schema.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    for operator in map(graph.Operators, range(graph.OperatorsLength())):
        inputs = [int(number) for number in operator.InputsAsNumpy() if number >= 0]
        outputs = [int(number) for number in operator.OutputsAsNumpy() if number >= 0]
        weights = {}
        for number in inputs:
            tensor = graph.Tensors(number)
            raw = constant(content, model, tensor)
            is_float = tensor.Type() == schema.TensorType.FLOAT32
            if raw is not None and is_float and tensor.ShapeLength() > 1:
                weights[number] = raw.view(np.float32).reshape(tensor.ShapeAsNumpy())
        yield _Operation(
            scope="".join(f"{_name(graph, number)};" for number in outputs),
            weights=weights,
            names=[_name(graph, number) for number in weights],
            inputs=inputs,
            outputs=outputs,
        )


def _name(graph: schema.SubGraph, number: int) -> str:
    return str(graph.Tensors(number).Name().decode(errors="replace"))

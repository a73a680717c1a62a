"""Inputs and outputs of a Keras model, as MLflow's signature and input example."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from mlflow.types.utils import clean_tensor_type

from mlflow_keras_adv.serialization import loading

Arrays = np.ndarray | dict[str, np.ndarray]


@dataclass(frozen=True)
class Taken:
    """The inputs of a model.

    Attributes:
        feeds: How they are passed; see `loading.fed`.
        inputs: The example as the model takes it; None without one.
        example: The example as MLflow stores it: an array, or arrays by name; None without one, or
            where it holds bytes that JSON cannot hold.
        sent: The example as callers send it.
    """

    feeds: dict[str, Any]
    inputs: Any
    example: Arrays | None
    sent: Arrays | None


def inputs_of(
    model: keras.Model, example: Any = None, signature: ModelSignature | None = None
) -> Taken:
    """Finds the inputs of a model.

    Args:
        model: A built model.
        example: A few samples: an array, tensor, Series, DataFrame or nested list; of several
            inputs a dict by name, a DataFrame with a column each, or a list.
        signature: Names the inputs of a subclassed model where there is no example.

    Raises:
        ValueError: The example does not fit the inputs.
    """
    feeds = _feeds(model, example, signature)
    if example is None:
        return Taken(feeds, None, None, None)
    names = [each["name"] for each in feeds["inputs"]]
    columns = isinstance(example, pd.DataFrame) and set(names) <= set(example.columns)
    named = len(names) > 1 or isinstance(example, Mapping) or columns
    values = loading.by_name(names, example)
    kinds = {each["name"]: each for each in feeds["inputs"]}
    arrays = {name: _plain(value, kinds[name]) for name, value in values.items()}
    inputs = loading.fed(feeds, arrays)
    sent = arrays if named else next(iter(arrays.values()))
    return Taken(feeds, inputs, sent if _fits_json(arrays) else None, sent)


def signature_of(model: keras.Model, taken: Taken) -> ModelSignature:
    """The signature of a model; `taken` has an example."""
    answer = loading.named_outputs(model, model(taken.inputs, training=False))
    sent = taken.sent
    specs: list[Any] = [
        _input_spec(array, each, each["name"] if isinstance(sent, dict) else None)
        for array, each in zip(
            sent.values() if isinstance(sent, dict) else [sent],
            taken.feeds["inputs"],
            strict=True,
        )
    ]
    outputs = answer if isinstance(answer, dict) else {None: answer}
    answered = [TensorSpec(_dtype(each), _shape(each), name) for name, each in outputs.items()]
    free = _with_free_axes(answered, getattr(model, "outputs", None))
    return ModelSignature(Schema(specs), Schema(free))


def _feeds(model: keras.Model, example: Any, signature: ModelSignature | None) -> dict[str, Any]:
    tensors = getattr(model, "inputs", None)  # a subclassed model has none
    if tensors:
        structure = getattr(model, "input", None)
        if isinstance(structure, Mapping):
            by_tensor = {id(tensor): key for key, tensor in structure.items()}
            names = [by_tensor.get(id(tensor), tensor.name) for tensor in tensors]
            kind = "dict"
        else:
            names = [tensor.name for tensor in tensors]
            several = len(tensors) > 1 or isinstance(structure, (list, tuple))
            kind = "list" if several else "one"
        pairs = zip(names, tensors, strict=True)
        return {"kind": kind, "inputs": [_described(name, each) for name, each in pairs]}
    if isinstance(example, (Mapping, pd.DataFrame)) and not _is_table(example):
        return {"kind": "dict", "inputs": [_guessed(name, example[name]) for name in example]}
    if _is_several(example):
        parts = {f"input_{position}": part for position, part in enumerate(example)}
        return {"kind": "list", "inputs": [_guessed(*item) for item in parts.items()]}
    if example is None and signature is not None and signature.inputs is not None:
        names = signature.inputs.input_names() if signature.inputs.has_input_names() else []
        if names and signature.inputs.is_tensor_spec():
            return {"kind": "dict", "inputs": [_guessed(name, None) for name in names]}
    return {"kind": "one", "inputs": [_guessed("input", example)]}


def _described(name: str, tensor: keras.KerasTensor) -> dict[str, Any]:
    described = {"name": name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
    return described | ({"ragged": True} if getattr(tensor, "ragged", False) else {})


def _guessed(name: str, value: Any) -> dict[str, Any]:
    """The inputs of a subclassed model, which only the example tells."""
    dtype = None
    if value is not None and loading.holds_texts(np.asarray(value)):
        dtype = "string"
    return {"name": name, "dtype": dtype, "shape": None}


def _is_table(example: Any) -> bool:
    """Whether a DataFrame is one array: a number a cell."""
    return isinstance(example, pd.DataFrame) and all(
        pd.api.types.is_numeric_dtype(kind) for kind in example.dtypes
    )


def _is_several(example: Any) -> bool:
    return isinstance(example, (list, tuple)) and all(hasattr(each, "shape") for each in example)


def _plain(value: Any, taken: Mapping[str, Any]) -> np.ndarray:
    """An example for one input, as callers send it."""
    if taken.get("ragged"):
        rows = loading.lists(value.to_list() if hasattr(value, "to_list") else value)
        array = np.empty(len(rows), dtype=object)
        array[:] = rows
        return array
    if taken["dtype"] == "string":
        return loading.decoded(loading.cells(value, object))
    array = np.asarray(value)
    return array if array.dtype != object else loading.cells(array, taken["dtype"])


def _fits_json(arrays: Mapping[str, np.ndarray]) -> bool:
    return not any(isinstance(each, bytes) for array in arrays.values() for each in array.flat)


def _input_spec(array: Any, taken: Mapping[str, Any], name: str | None) -> TensorSpec:
    if array.dtype == object:  # texts, ragged rows: MLflow lets all that is sent pass
        return TensorSpec(np.dtype(object), (-1,), name)
    axes = list(_shape(array))
    for axis, size in enumerate((taken["shape"] or [])[: len(axes)]):
        axes[axis] = -1 if size is None else axes[axis]
    return TensorSpec(_dtype(array), axes, name)


def _dtype(array: np.ndarray) -> np.dtype[Any]:
    return clean_tensor_type(array.dtype)


def _shape(array: np.ndarray) -> tuple[int, ...]:
    return (-1, *array.shape[1:]) if array.ndim else ()


def _with_free_axes(
    specs: Sequence[TensorSpec], tensors: list[keras.KerasTensor] | None
) -> list[Any]:
    """Specs with -1 on every axis that the model leaves free, not only the first."""
    free = {tensor.name: tensor.shape for tensor in tensors or []}
    if len(specs) == len(free) == 1:
        free = {specs[0].name: next(iter(free.values()))}
    found: list[Any] = []
    for spec in specs:
        axes = list(spec.shape)
        for axis, size in enumerate(free.get(spec.name, axes)[: len(axes)]):
            axes[axis] = -1 if size is None else axes[axis]
        found.append(TensorSpec(spec.type, axes, spec.name))
    return found

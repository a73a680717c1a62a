"""Inputs and outputs of a `.tflite` file, as MLflow's signature and input example."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

from mlflow_keras_adv.tflite.runtime import LiteRTModel, Tensor

_TYPES = {bool: "boolean", int: "long", str: "string"}


def example_of(
    model: LiteRTModel, given: Any = None, signature: ModelSignature | None = None
) -> Any:
    """Converts an input example to the form in which it is stored.

    Args:
        model: The model.
        given: An array, several as a dict by name or as a list in the order of the inputs, or a
            DataFrame.
        signature: The caller's own. Where it does not name its one input, neither does the example.

    Returns:
        The DataFrame, or arrays by name, of the dtypes that callers send. Without `given` a sample
        of zeros; None if the file leaves an axis beside the samples' free.

    Raises:
        ValueError: The model does not take it.
    """
    example = _zeros(model.inputs) if given is None else given
    if example is not None and not isinstance(example, pd.DataFrame):
        sent = {each.name: sent_dtype(each) for each in model.inputs}
        arrays = {name: np.asarray(value) for name, value in model.named(example).items()}
        # A list's numbers are int64 or float64, which JSON does not tell from the others.
        example = {
            name: array if array.dtype == sent[name] else array.astype(sent[name])
            for name, array in arrays.items()
        }
    if example is None:
        return None
    model.predict(example)
    unnamed = signature is not None and not signature.inputs.has_input_names()
    return next(iter(example.values())) if unnamed and isinstance(example, dict) else example


def signature_of(model: LiteRTModel, example: Any = None) -> ModelSignature:
    """Names, dtypes and shapes as callers see them, and the params with the model's defaults.

    Args:
        model: Gives the names, shapes and params.
        example: Where it is a DataFrame of one feature a column, the inputs are these columns.
    """
    params = [ParamSpec(name, _TYPES[type(value)], value) for name, value in model.params.items()]
    inputs = _schema(model.inputs)
    if isinstance(example, pd.DataFrame) and not {t.name for t in model.inputs} <= set(example):
        inputs = infer_signature(example).inputs
    outputs = Schema([_answer(tensor, model.params) for tensor in model.outputs])
    return ModelSignature(inputs, outputs, ParamSchema(params))


def described(tensor: Tensor) -> dict[str, Any]:
    """A tensor for the MLmodel file: name, dtype and shape in the file, scale and zero point."""
    quantization = {"scale": tensor.scale, "zero_point": tensor.zero_point} if tensor.scale else {}
    shape = list(tensor.shape)
    return {"name": tensor.name, "dtype": tensor.dtype.name, "shape": shape, **quantization}


def sent_dtype(tensor: Tensor) -> np.dtype[Any]:
    """The dtype that callers send and get: that of real numbers, where integers encode them."""
    return np.dtype(np.float32) if tensor.scale else tensor.dtype


def _zeros(tensors: Iterable[Tensor]) -> dict[str, np.ndarray] | None:
    shapes = {each.name: each.shape for each in tensors}
    if any(-1 in shape[1:] for shape in shapes.values()):
        return None
    sizes = {name: tuple(max(1, size) for size in shape) for name, shape in shapes.items()}
    return {each.name: np.zeros(sizes[each.name], sent_dtype(each)) for each in tensors}


def _schema(tensors: Iterable[Tensor]) -> Schema:
    return Schema([TensorSpec(sent_dtype(each), each.shape, each.name) for each in tensors])


def _answer(tensor: Tensor, params: Mapping[str, Any]) -> TensorSpec:
    """The output that callers get by default."""
    if params["output"] == "class":
        return TensorSpec(np.dtype(np.int64), tensor.shape[:-1], tensor.name)
    shape = tensor.shape
    if params["output"] == "value" and shape[1:][-1:] == (1,):
        shape = shape[:-1]
    return TensorSpec(
        sent_dtype(tensor) if params["dequantize"] else tensor.dtype, shape, tensor.name
    )

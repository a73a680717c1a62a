"""What a Keras model takes and answers, in the words of MLflow."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import Schema, TensorSpec

from mlflow_keras_adv.training import loading

Arrays = np.ndarray | dict[str, np.ndarray]


def inputs_of(model: keras.Model, example: Any) -> tuple[Any, Arrays | None, list[str] | None]:
    """The example as `model` takes it, as MLflow takes it, and the names of a list's members."""
    tensors = getattr(model, "inputs", None)  # a subclassed model has none
    if example is None:
        return None, None, None
    if isinstance(example, Mapping):
        named = {name: np.asarray(value) for name, value in example.items()}
        return named, named, None
    several = isinstance(example, (list, tuple)) and all(hasattr(each, "shape") for each in example)
    if not several or (tensors is not None and len(tensors) == 1):
        return np.asarray(example), np.asarray(example), None
    arrays = [np.asarray(each) for each in example]
    names = [tensor.name for tensor in tensors or []]
    names = names or [f"input_{position}" for position in range(len(arrays))]
    return arrays, dict(zip(names, arrays, strict=True)), names


def signature_of(model: keras.Model, inputs: Any, example: Arrays | None) -> ModelSignature:
    """The signature of a model called with `inputs`, of which `example` is MLflow's form."""
    outputs = loading.named_outputs(model, model(inputs, training=False))
    inferred = infer_signature(example, outputs)
    return ModelSignature(
        _with_free_axes(inferred.inputs, getattr(model, "inputs", None)),
        _with_free_axes(inferred.outputs, getattr(model, "outputs", None)),
    )


def _with_free_axes(schema: Any, tensors: list[keras.KerasTensor] | None) -> Schema:
    """An example's schema with -1 on every axis that the model leaves free, not only the first."""
    free = {tensor.name: tensor.shape for tensor in tensors or []}
    if len(schema.inputs) == len(free) == 1:
        free = {schema.inputs[0].name: next(iter(free.values()))}
    specs: list[Any] = []
    for spec in schema.inputs:
        axes = list(spec.shape)
        for axis, size in enumerate(free.get(spec.name, axes)[: len(axes)]):
            axes[axis] = -1 if size is None else axes[axis]
        specs.append(TensorSpec(spec.type, axes, spec.name))
    return Schema(specs)

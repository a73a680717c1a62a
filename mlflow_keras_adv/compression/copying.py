"""Copies a model without its optimizer and compile arguments."""

import tempfile
import warnings
from pathlib import Path
from types import FunctionType
from typing import Any

import keras
import numpy as np

from mlflow_keras_adv.compat.keras import layers_of, parts_of
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.serialization.saving import save_without_optimizer


def copy_model(model: keras.Model) -> keras.Model:
    """A copy with weights of its own, not compiled.

    Made by saving and loading, in this process: whatever Keras can save can be copied, subclassed
    models too.

    Args:
        model: A built model; it stays as it is.

    Raises:
        UserError: Keras cannot make the model from what its `get_config` says.
    """
    known = saved_objects(model)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.keras")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*includes a `lambda`")
            save_without_optimizer(model, file)
        try:
            # Not safe mode: a Lambda may hold bytecode, which this process wrote just now.
            copy = keras.saving.load_model(
                file, custom_objects=known, compile=False, safe_mode=False
            )
        except Exception as error:
            reason = str(error).rpartition("Exception encountered: ")[2][:300]  # not the config
            raise UserError(
                f"model {model.name!r} cannot be copied: {reason}\n"
                "Do get_config() and build() of its custom layers say all that it takes to make "
                "them? What Keras cannot save, it cannot load after compression either."
            ) from error
    # A subclassed model's config does not say which of its layers were frozen since, nor what those
    # are called that Keras has named.
    for layer, other in zip(layers_of(model), layers_of(copy), strict=True):
        if other.name != layer.name:
            other.name = layer.name
        if not parts_of(layer):
            other.trainable = layer.trainable
        # Nor does that of an operation of `keras.ops` say its name, before Keras 3.12.
        for one, its_copy in zip(_operations(layer), _operations(other), strict=True):
            its_copy.name = one.name
    return copy


def _operations(model: Any) -> list[Any]:
    """Those of a functional model."""
    return list(model.operations) if isinstance(model, keras.Function) else []


def saved_objects(model: keras.Model) -> dict[str, Any]:
    """Classes and functions of a model, by the names that Keras looks them up by in loading."""
    known: dict[str, Any] = {}
    for layer in layers_of(model):
        known[keras.saving.get_registered_name(type(layer))] = type(layer)
        functions = [each for each in vars(layer).values() if isinstance(each, FunctionType)]
        known |= {keras.saving.get_registered_name(each): each for each in functions}
    return known


def check_weights(model: Any) -> None:
    """Refuses a model that has no weights yet, or holds NaN or infinite ones.

    Args:
        model: A model of Keras 3 or tf_keras.

    Raises:
        UserError: Naming the model, or the weight.
    """
    if not model.built:
        raise UserError(
            f"model {model.name!r} has not been built: it has no weights yet. Start it with an "
            "Input, or call it on a batch of data first."
        )
    for weight in model.weights:
        value = np.asarray(weight)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            name = getattr(weight, "path", weight.name)
            raise UserError(
                f"model {model.name!r}: the weight {name!r} holds NaN or infinite numbers; train "
                "again, or load a checkpoint from before it diverged"
            )

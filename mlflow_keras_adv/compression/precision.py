"""Converts models that compute in 16 bits to float32, with a tolerance for the difference.

LiteRT's kernels and tfmot's rounding are made for float32. The weights of a model of a mixed policy
are float32 anyway.
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from mlflow_keras_adv.compat.keras import layers_of
from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.compression.copying import saved_objects
from mlflow_keras_adv.errors import UserError

# Of the largest answer: a number is off by 2**-11 or 2**-8 of itself, a sum of many by some of it.
_TOLERANCES = {"float16": 5e-3, "bfloat16": 4e-2}
_POLICIES = {*_TOLERANCES, *(f"mixed_{name}" for name in _TOLERANCES)}


def half_tolerance(model: keras.Model) -> float:
    """The accepted difference of a model from its float32 copy, relative to the largest output.

    Returns:
        0 for a model that computes in float32 throughout.
    """
    dtypes = {str(getattr(layer, "compute_dtype", "")) for layer in layers_of(model)}
    return max((_TOLERANCES.get(dtype, 0.0) for dtype in dtypes), default=0.0)


@keeps_random_state()
def in_float32(model: keras.Model) -> keras.Model:
    """The model itself if it computes in float32, else a copy that does.

    Args:
        model: A built model; it stays as it is.

    Raises:
        UserError: Keras cannot make the model from what its `get_config` says.
    """
    if not half_tolerance(model):
        return model
    config = keras.saving.serialize_keras_object(model)
    try:
        copy = keras.saving.deserialize_keras_object(
            _float32(config), custom_objects=saved_objects(model), safe_mode=False
        )
        copy.set_weights(list(map(_widened, model.get_weights())))
    except Exception as error:
        raise UserError(
            f"model {model.name!r} computes in 16 bits and cannot be made anew in float32: {error}."
            " Do get_config() and build() of its custom layers say all that it takes?"
        ) from error
    return copy


def _float32(config: Any) -> Any:
    """A config with every policy of 16 bits replaced."""
    if isinstance(config, Mapping):
        if config.get("class_name") == "DTypePolicy":
            return {**config, "config": {**config["config"], "name": _named(config["config"])}}
        return {
            key: "float32" if key == "dtype" and _is_half(value) else _float32(value)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(map(_float32, config))
    return config


def _widened(weight: np.ndarray) -> np.ndarray:
    return weight.astype("float32") if str(weight.dtype) in _TOLERANCES else weight


def _named(policy: Mapping[str, Any]) -> str:
    return "float32" if policy["name"] in _POLICIES else str(policy["name"])


def _is_half(value: Any) -> bool:
    return isinstance(value, str) and value in _POLICIES

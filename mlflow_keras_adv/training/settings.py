"""What a training is set to: its optimizers, its model and the libraries, as plain values."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mlflow_keras_adv.training.observe import inside_of


def optimizer_settings(optimizer: Any) -> dict[str, object]:
    """An optimizer's configuration, ready to be flattened into params.

    Args:
        optimizer: A Keras optimizer; of a `LossScaleOptimizer` the inner one is described.

    Returns:
        The class under `class`, then what its `get_config` says. A learning-rate schedule stands
        under `learning_rate` with its own class and settings. Unset options are left out. Of an
        optimizer or a schedule that has no `get_config` only the class is known.
    """
    inner = inside_of(optimizer)
    try:
        config = inner.get_config()
    except NotImplementedError:
        return {"class": type(inner).__name__}
    return {"class": type(inner).__name__, **_plain(config)}


def model_settings(model: Any) -> dict[str, object]:
    """A built model's size: `parameters` and `trainable_parameters`, numbers of scalar weights."""
    return {
        "parameters": int(sum(np.prod(weight.shape) for weight in model.weights)),
        "trainable_parameters": int(sum(np.prod(w.shape) for w in model.trainable_weights)),
    }


def environment_tags(model: Any) -> dict[str, str]:
    """Versions of the libraries and the model's dtype policy."""
    return {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "dtype_policy": model.dtype_policy.name,
    }


def model_summary(model: Any) -> str:
    """The text that `model.summary()` prints."""
    lines: list[str] = []
    model.summary(print_fn=lambda line, **_: lines.append(line))
    return "\n".join(lines)


def _plain(config: Mapping[str, Any]) -> dict[str, object]:
    return {
        name: _plain_value(value)
        for name, value in config.items()
        if value is not None and value is not False and name != "name"
    }


def _plain_value(value: Any) -> object:
    if isinstance(value, Mapping):
        if "class_name" in value and "config" in value:  # a serialized Keras object
            own = value["config"] if isinstance(value["config"], Mapping) else {}
            return {"class": value["class_name"], **_plain(own)}
        return _plain(value)
    if isinstance(value, (list, tuple)):
        return [_plain_value(each) for each in value]
    if isinstance(value, (float, np.floating)):
        # Keras keeps rates in float32: 0.001, not 0.0010000000474974513.
        return float(str(np.float32(value)))
    return value if isinstance(value, (bool, int, str)) else str(value)

"""Settings of a training: its optimizers, its model and the libraries, as plain values."""

import json
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mlflow_keras_adv.training.observe import inside_of

# Settings of `fit` that are no data and no callbacks.
_FIT_DEFAULTS = {
    "validation_split": 0.0,
    "validation_batch_size": None,
    "validation_steps": None,
    "validation_freq": 1,
    "initial_epoch": 0,
    "shuffle": True,
}


def optimizer_settings(optimizer: Any) -> dict[str, object]:
    """Reads an optimizer's configuration, ready to be flattened into params.

    Args:
        optimizer: A Keras optimizer; for a `LossScaleOptimizer` the inner one is described.

    Returns:
        The class under `class`, then the values of its `get_config`. A learning-rate schedule is
        under `learning_rate` with its own class and settings. Unset options are left out. For an
        optimizer or a schedule without `get_config` there is only the class.
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


def fit_settings(arguments: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, object]:
    """Reads the settings of a call of `fit`, ready to be flattened into params (`{"fit": …}`).

    Args:
        arguments: The arguments of the call by name, as bound to the signature of `fit`.
        params: `params` of its callbacks, where Keras says how many epochs and steps there are.

    Returns:
        `epochs`, `batch_size` and `steps_per_epoch` if they are known, and the other settings that
        differ from Keras' defaults. Plain values, never data: `class_weight` is JSON, and
        `sample_weight` is only said to exist.
    """
    data = arguments.get("x")
    steps = _count(arguments.get("steps_per_epoch")) or _count(params.get("steps"))
    found: dict[str, object] = {
        "epochs": _count(params.get("epochs", arguments.get("epochs"))),
        "batch_size": _count(arguments.get("batch_size")) or _batch_size_of(data),
        "steps_per_epoch": steps,
    }
    for name, default in _FIT_DEFAULTS.items():
        value = arguments.get(name)
        if value is not None and not isinstance(value, Mapping) and value != default:
            found[name] = value if isinstance(value, (bool, int, float, str)) else str(value)
    if arguments.get("validation_data") is not None:
        found.pop("validation_split", None)  # Keras goes by the data
    weights = arguments.get("class_weight")
    if isinstance(weights, Mapping) and weights:
        found["class_weight"] = json.dumps({str(k): float(w) for k, w in weights.items()})
    if arguments.get("sample_weight") is not None:
        found["sample_weight"] = True
    return {name: value for name, value in found.items() if value is not None}


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


def _count(value: Any) -> int | None:
    """A positive whole number, or None: data of unknown or infinite length has another."""
    try:
        return int(value) if int(value) > 0 else None
    except (TypeError, ValueError, OverflowError):
        return None


def _batch_size_of(data: Any) -> int | None:
    """Examples in a batch of what is passed as `x` without `batch_size`, if that can be told."""
    if isinstance(data, (tf.data.Dataset, tf.distribute.DistributedDataset)):
        try:
            sizes = {spec.shape[0] for spec in tf.nest.flatten(data.element_spec)}
        except (AttributeError, IndexError, ValueError):  # not of tensors, scalars, unknown rank
            return None
        return _count(sizes.pop()) if len(sizes) == 1 else None
    if isinstance(data, keras.utils.PyDataset) or data is None:
        return None
    leaves = keras.tree.flatten(data)
    # Arrays, tensors and tables, which Keras cuts into batches of 32 by itself.
    if leaves and all(hasattr(each, "__array__") or hasattr(each, "dtype") for each in leaves):
        return 32
    return _count(getattr(data, "batch_size", None))  # a loader of PyTorch


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

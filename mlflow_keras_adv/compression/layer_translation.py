"""Translates stock objects (layers, regularizers, optimizers, …) between Keras 3 and tf_keras."""

import inspect
import warnings
from dataclasses import dataclass
from operator import attrgetter
from types import ModuleType
from typing import Any

import keras
import numpy as np

from mlflow_keras_adv.compat.keras import learning_rate_of
from mlflow_keras_adv.compression.operation_layer import OperationLayer
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.extras import extra

with extra("compression"):
    import tf_keras

# Functions that compute the same in both. `hard_sigmoid` does not: its slope is 1/6 in Keras 3 and
# 0.2 in tf_keras. Those that are absent here or in tf_keras travel as Python functions.
_SAME_ACTIVATIONS = (
    "linear",
    "relu",
    "elu",
    "selu",
    "gelu",
    "sigmoid",
    "tanh",
    "softmax",
    "softplus",
    "softsign",
    "silu",
    "exponential",
    "mish",
)
_TF_KERAS_NAMES = {"silu": "swish"}
_RENAMED = {
    ("LeakyReLU", "negative_slope"): "alpha",
    ("LeakyReLU", "alpha"): "negative_slope",
}
# Said otherwise, or of no weight: the values of all weights are copied, random numbers differ.
_IGNORED = {"name", "dtype", "trainable", "seed", "batch_input_shape", "is_legacy_optimizer"}
_HALF = {"float16", "bfloat16"}


@dataclass(frozen=True)
class Direction:
    """From which Keras to which.

    Attributes:
        source: `keras` or `tf_keras`.
        target: The other one.
    """

    source: ModuleType
    target: ModuleType


TO_TF_KERAS = Direction(keras, tf_keras)
TO_KERAS = Direction(tf_keras, keras)


def is_stock(instance: object, library: ModuleType) -> bool:
    """Whether the object's class is one of the library's own."""
    return type(instance).__module__.startswith(f"{library.__name__}.src.")


def translate_layer(layer: Any, direction: Direction, name: str) -> Any:
    """A new layer with the settings of `layer` but not its weights.

    Args:
        layer: A stock layer of the source library.
        direction: From which Keras to which.
        name: What the new one is called, and what an error calls the old one.

    Raises:
        UserError: The target has no such layer, or lacks an option that is set.
    """
    kind = type(layer).__name__
    what = f"layer {name!r} ({kind})"
    if getattr(getattr(layer, "dtype_policy", None), "quantization_mode", None):
        raise UserError(f"{what} is quantized already; give the model from before quantize()")
    given = {"name": name, "trainable": layer.trainable, "dtype": _dtype(layer, direction)}
    if isinstance(layer, OperationLayer):
        return direction.target.layers.Lambda(layer.function, **given)
    if kind == "Lambda" and is_stock(layer, direction.source):
        if layer.arguments:
            given["arguments"] = layer.arguments
        return direction.target.layers.Lambda(layer.function, **given)
    is_adapted = kind == "Normalization" and is_stock(layer, direction.source)
    if is_adapted and layer.input_mean is None:
        # As constants: set as weights they would count only after finalize_state().
        given |= {key: np.asarray(getattr(layer, key)).ravel() for key in ("mean", "variance")}
        if layer.axis == ():
            given |= {key: float(given[key][0]) for key in ("mean", "variance")}
    return _rebuild(layer, "layers", direction, what, given)


def translate(instance: Any, kind: str, direction: Direction, what: str) -> Any:
    """A stock object of the source library as the same of the target.

    Args:
        instance: For example a regularizer, an optimizer or a loss.
        kind: The module of both libraries that it is in: "regularizers", "optimizers", ….
        direction: From which Keras to which.
        what: What an error calls it.

    Raises:
        UserError: The target has no such class, or lacks an option that is set.
    """
    return _rebuild(instance, kind, direction, what, {})


def _rebuild(
    instance: Any, kind: str, direction: Direction, what: str, given: dict[str, Any]
) -> Any:
    source, target = direction.source.__name__, direction.target.__name__
    name = type(instance).__name__
    found = getattr(_attribute(direction.target, kind), name, None)
    if not is_stock(instance, direction.source) or found is None:
        own = is_stock(instance, direction.source)
        reason = f"{target} has no {name}" if own else f"its class is not one of {source}'s own"
        raise UserError(
            f"{what} cannot be carried from {source} to {target}: {reason}. Use a stock {kind[:-1]}"
            " that both have, or compress without this part."
        )
    accepted = _parameters(found)
    if direction.target is tf_keras and issubclass(found, tf_keras.layers.RNN):
        accepted.setdefault("zero_output_for_mask", False)  # which it takes from **kwargs
    arguments = dict(given)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*includes a `lambda`")
        config = instance.get_config()
    for key, value in config.items():
        if key in arguments or key in _IGNORED or key.endswith("_initializer"):
            continue
        renamed = _RENAMED.get((name, key), key)
        if renamed in accepted:
            arguments[renamed] = _value(instance, key, value, direction, what)
        elif not _is_default(value, _parameters(type(instance)).get(key)):
            raise UserError(
                f"{what} cannot be carried from {source} to {target}: {target}'s {name} has no "
                f"option {key!r}, which is {value!r} here. Leave that option at its default."
            )
    arguments = {key: value for key, value in arguments.items() if key in accepted}
    try:
        return found(**arguments)
    except Exception as error:
        raise UserError(
            f"{what} cannot be carried from {source} to {target}: {error}. Use other settings, or "
            "a layer that both libraries know."
        ) from error


def _value(instance: Any, key: str, value: Any, direction: Direction, what: str) -> Any:
    """The argument of the target's constructor for a key of the source's config."""
    if key.endswith("activation") and callable(own := getattr(instance, key, None)):
        return _activation(own, direction, what)
    if key == "axis" and type(instance).__name__ == "BatchNormalization" and np.size(value) == 1:
        return int(np.ravel(value)[0])  # tf_keras keeps a list of one, which Keras 3 refuses
    if key == "layer" and type(instance).__name__ == "Bidirectional":
        own = instance.forward_layer
    elif key == "learning_rate":
        own = learning_rate_of(instance)
    else:
        own = getattr(instance, key, None)
    members = own if isinstance(own, (list, tuple)) else [own]
    for kind, classes in (
        ("layers", "layers.Layer"),
        ("regularizers", "regularizers.Regularizer"),
        ("constraints", "constraints.Constraint"),
        ("optimizers.schedules", "optimizers.schedules.LearningRateSchedule"),
    ):
        wanted = _attribute(direction.source, classes)
        if members and all(isinstance(each, wanted) for each in members):
            made = [_member(each, kind, direction, what) for each in members]
            return made if isinstance(own, (list, tuple)) else made[0]
    return value


def _member(instance: Any, kind: str, direction: Direction, what: str) -> Any:
    if kind != "layers":
        return _rebuild(instance, kind, direction, f"{what}: {type(instance).__name__}", {})
    return translate_layer(instance, direction, instance.name)


def _activation(function: Any, direction: Direction, what: str) -> Any:
    for name in _SAME_ACTIVATIONS:
        names = {keras: name, tf_keras: _TF_KERAS_NAMES.get(name, name)}
        if function is getattr(direction.source.activations, names[direction.source]):
            return getattr(direction.target.activations, names[direction.target])
    if direction.target is keras:
        raise UserError(
            f"{what} cannot be carried from tf_keras to keras: its activation "
            f"{function.__name__!r} is not one that both know ({', '.join(_SAME_ACTIVATIONS)})"
        )
    # Both compute with TensorFlow's tensors, so the function itself serves. One of Keras is
    # registered too: tfmot looks it up where it copies a layer from its config.
    of_keras = getattr(function, "__module__", "").startswith("keras.src.")
    if of_keras and tf_keras.saving.get_registered_object(f"keras>{function.__name__}") is None:
        tf_keras.saving.register_keras_serializable("keras", function.__name__)(function)
    return function


def _dtype(layer: Any, direction: Direction) -> str:
    """The policy of the new layer; tf_keras computes in float32 what Keras 3 computes in 16 bits.

    Its masks, clusters and fake quantizers were made for float32.
    """
    policy = layer.dtype_policy
    if direction.target is keras:
        return str(policy.name)
    return "float32" if policy.compute_dtype in _HALF else str(policy.compute_dtype)


def _parameters(of: type) -> dict[str, Any]:
    """Names that a class can be called with, and their defaults."""
    found: dict[str, Any] = {}
    for each in of.__mro__:
        if "__init__" not in vars(each):
            continue
        parameters = inspect.signature(vars(each)["__init__"]).parameters.values()
        for parameter in list(parameters)[1:]:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(parameter.name, parameter.default)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break  # what its parents take does not reach them
    return found


def _is_default(value: Any, default: Any) -> bool:
    """Whether leaving an option out says the same; `default` is that of the source's signature."""
    if default is None or default is inspect.Parameter.empty:
        return value in (None, False, "channels_last")  # what None or no parameter is resolved to
    return bool(np.all(value == default))


def _attribute(library: ModuleType, dotted: str) -> Any:
    return attrgetter(dotted)(library)

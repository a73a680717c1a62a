"""Measures and sets the ranges of tfmot's rounding in quantization-aware training.

tfmot starts every range of activations at -6 to 6 and moves it by a thousandth a step: after a
short training, numbers far smaller than 6 are still rounded in steps made for it. Here the ranges
are measured first, on data, in the model without rounding.
"""

import contextlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from mlflow_keras_adv.compat.keras import is_symbolic
from mlflow_keras_adv.compat.tfmot import (
    ACTIVATIONS,
    OUTPUTS,
    WEIGHTS,
    QuantizeLayer,
    QuantizeWrapper,
    rounded_weights,
    tfmot,
)
from mlflow_keras_adv.compression import graphs
from mlflow_keras_adv.extras import extra
from mlflow_keras_adv.replacing import Replacement

with extra("compression"):
    import tf_keras

_LEAST_RANGE = 1e-4  # of a channel's weights, relative to the widest channel's


class _Watching:
    """In a quantizer's place: lets numbers through as they are, and keeps the widest range."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[Any, float, float]] = {}

    def __call__(self, inputs: Any, training: bool, weights: Any, **_: Any) -> Any:
        lowest, highest = float(np.min(inputs)), float(np.max(inputs))
        _, low, high = self.seen.get(id(weights), (weights, 0.0, 0.0))  # 0 is in every range
        self.seen[id(weights)] = weights, min(low, lowest), max(high, highest)
        return inputs


class _Through:
    """In a quantizer's place: lets weights through as they are."""

    def __call__(self, inputs: Any, training: bool, weights: Any, **_: Any) -> Any:
        return inputs


def with_borders(model: tf_keras.Model, left: Collection[str]) -> tf_keras.Model:
    """The model with a rounding of what layers that stay in float hand to others.

    Without it the converter keeps the kernel of the next layer in float too.

    Args:
        model: A flat functional model; its layers are used again.
        left: Layers that stay in float, by name.
    """
    if not left:
        return model
    values: dict[int, Any] = {}  # of the new graph, by the tensor of the old one
    borders: dict[int, Any] = {}

    def taken(symbol: Any, is_left: bool) -> Any:
        """The input of a layer for a tensor of the old graph."""
        value = values.get(id(symbol), symbol)
        if is_left or id(symbol) not in makers or not symbol.dtype.is_floating:
            return value
        if id(symbol) not in borders:
            # Of each result of each call of a layer there is one.
            name = f"{makers[id(symbol)]}.quantize_layer_{len(borders)}"
            borders[id(symbol)] = QuantizeLayer(_activations(), name=name)(value)
        return borders[id(symbol)]

    makers: dict[int, str] = {}  # the layer in float that a tensor comes from
    for layer, arguments, results in graphs.calls(model):
        is_left = layer.name in left
        args, kwargs = keras.tree.map_structure(
            lambda each, is_left=is_left: taken(each, is_left) if is_symbolic(each) else each,
            arguments,
        )
        answers = keras.tree.flatten(layer(*args, **kwargs))
        values.update({id(old): new for old, new in zip(results, answers, strict=True)})
        makers.update({id(old): layer.name for old in results if is_left})
    outputs = keras.tree.map_structure(lambda old: values.get(id(old), old), graphs.outputs(model))
    return tf_keras.Model(graphs.inputs(model), outputs, name=model.name)


def _activations() -> Any:
    """The quantizers with which tfmot rounds activations."""
    return tfmot.quantization.keras.quantizers.MovingAverageQuantizer(
        num_bits=8, per_axis=False, symmetric=False, narrow_range=False
    )


@contextlib.contextmanager
def watching_ranges(model: tf_keras.Model) -> Iterator[_Watching]:
    """The model computes what it would in float, in calls that are not compiled.

    Args:
        model: From tfmot's `quantize_apply`.

    Yields:
        The ranges of activations that are seen meanwhile.
    """
    watching = _Watching()
    with contextlib.ExitStack() as replaced:

        def replace(owner: Any, name: str, value: Any) -> None:
            replaced.enter_context(Replacement(owner, name, value))

        for layer in model.layers:
            if isinstance(layer, QuantizeLayer) and layer.quantizer is not None:
                replace(layer, "quantizer", watching)
            if isinstance(layer, QuantizeWrapper):
                through = [(weight, _Through(), held) for weight, _, held in rounded_weights(layer)]
                replace(layer, WEIGHTS, through)
                for activation in getattr(layer, ACTIVATIONS):
                    replace(activation, "quantizer", watching)
                if getattr(layer, OUTPUTS):
                    replace(layer, OUTPUTS, [watching])
        yield watching


def calibrate(model: tf_keras.Model, batches: Iterable[Any]) -> None:
    """Sets the ranges of all activations to the widest that they have on some data.

    Args:
        model: From tfmot's `quantize_apply`; its ranges are written, nothing else.
        batches: What the model takes.
    """
    with watching_ranges(model) as watching:
        for batch in batches:
            model(batch, training=False)
    for variables, low, high in watching.seen.values():
        if low < high:  # else nothing but zeros came by, which fit any range
            variables["min_var"].assign(low)
            variables["max_var"].assign(high)


def measure_weights(model: tf_keras.Model) -> None:
    """Sets the ranges of all weights to their own, as each step of the training does.

    Args:
        model: From tfmot's `quantize_apply`; its ranges are written, nothing else.
    """
    for layer in model.layers:
        for weight, quantizer, held in rounded_weights(layer):
            quantizer(weight, True, weights=held)


def widen_dead_ranges(model: tf_keras.Model) -> None:
    """Gives channels whose weights are all 0, or next to it, a range that their bias fits.

    A file stores a bias in steps of the input's scale times the weights' scale. A channel that
    pruning has emptied has a range of 0, for which the converter takes 1e-6; the steps become so
    small that 32 bits do not hold a bias of 1. The weights stay what they are: 0 is in any range.

    Args:
        model: From tfmot's `quantize_apply`, trained; only ranges of weights are written.
    """
    for layer in model.layers:
        if not isinstance(layer, QuantizeWrapper):
            continue
        for _, _, held in rounded_weights(layer):
            low, high = np.asarray(held["min_var"]), np.asarray(held["max_var"])
            reach = np.maximum(-low, high)
            widest = reach.max() or 1.0
            # All that is left of an emptied channel is its bias; of one next to it, nearly so.
            wider = np.where(reach == 0, widest, np.maximum(reach, _LEAST_RANGE * widest))
            is_narrow = wider > reach
            held["min_var"].assign(np.where(is_narrow, -wider, low))
            held["max_var"].assign(np.where(is_narrow, wider, high))

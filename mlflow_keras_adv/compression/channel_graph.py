"""Finds the channels of a model's layers that can be removed, and the weights that read them.

Every number on the last axis of a tensor carries a label: the channel of the layer that it comes
from, or none. Labels are followed through the graph to the weights that read them. Where they end
in anything else, as a sum of two branches or an output of the model, their layer is kept whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from mlflow_keras_adv.compat.keras import functional_of
from mlflow_keras_adv.compression import graphs

layers = keras.layers
_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
PRUNABLE = (layers.Dense, *_CONVOLUTIONS, *_TRANSPOSED, *_SEPARABLE)
# What computes each channel by itself, from that channel.
_CHANNEL_BY_CHANNEL = (
    *(layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Identity),
    *(layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D),
    *(layers.GaussianNoise, layers.GaussianDropout, layers.ActivityRegularization),
    *(layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D),
    *(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D),
    *(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D),
    *(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D),
    *(layers.GlobalAveragePooling3D, layers.ZeroPadding1D, layers.ZeroPadding2D),
    *(layers.ZeroPadding3D, layers.Cropping1D, layers.Cropping2D, layers.Cropping3D),
    *(layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D),
)
# Activations that compute each number by itself; softmax does not, and nobody knows of others.
_NUMBER_BY_NUMBER = {
    getattr(keras.activations, name)
    for name in (
        *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "sigmoid"),
        *("hard_sigmoid", "tanh", "hard_tanh", "silu", "hard_silu", "softplus", "softsign"),
        *("exponential", "mish", "log_sigmoid", "squareplus"),
    )
    if hasattr(keras.activations, name)
}
_NONE = -1  # the label of what cannot be removed


@dataclass(eq=False)
class ChannelGraph:
    """The removable channels, and the weights that read them.

    Attributes:
        channels: How many channels each layer has that has its own.
        kept: Layers that are kept whole, and why.
        read: Labels of what each layer with weights reads; None where it is not changed.
    """

    channels: dict[str, int] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    read: dict[str, np.ndarray | None] = field(default_factory=dict)
    _first: dict[str, int] = field(default_factory=dict)

    def removed(self, channels: Mapping[str, np.ndarray]) -> np.ndarray:
        """Whether a channel is removed, by label.

        Args:
            channels: Which channels of each pruned layer go.
        """
        flags = np.zeros(sum(self.channels.values()) + 1, bool)  # the last one is that of no label
        for name, gone in channels.items():
            flags[self._first[name] : self._first[name] + len(gone)] = gone
        return flags

    def _labels(self, name: str, count: int) -> np.ndarray:
        self._first[name] = sum(self.channels.values())
        self.channels[name] = count
        return self._first[name] + np.arange(count)

    def _keep(self, labels: np.ndarray, why: str) -> None:
        for name, first in self._first.items():
            if ((labels >= first) & (labels < first + self.channels[name])).any():
                self.kept.setdefault(name, why)


def read_channels(model: keras.Model) -> ChannelGraph:
    """Follows the channels of a Sequential or functional model of Keras 3."""
    found = ChannelGraph()
    inner = functional_of(model)
    calls = list(graphs.calls(inner))
    times: dict[int, int] = {}
    for operation, _, _ in calls:
        times[id(operation)] = times.get(id(operation), 0) + 1
    values = {id(each): _plain(each) for each in keras.tree.flatten(graphs.inputs(inner))}
    for operation, arguments, results in calls:
        fed = [each for each in keras.tree.flatten(arguments) if id(each) in values]
        labels = [values[id(each)] for each in fed]
        answer = None
        if times[id(operation)] > 1:
            why = f"layer {operation.name!r} is called {times[id(operation)]} times"
        elif len(results) != 1:
            why = f"{operation.name!r} has {len(results)} results"
        else:
            why = f"{operation.name!r} ({type(operation).__name__}) needs them all"
            answer = _through(found, operation, fed, labels)
        if answer is None:
            for each in labels:
                found._keep(each, why)
            if getattr(operation, "weights", None):
                found.read[operation.name] = None
        for each in results:
            values[id(each)] = _plain(each) if answer is None else answer
    for each in keras.tree.flatten(graphs.outputs(inner)):
        found._keep(values[id(each)], "they are an output of the model")
    return found


def _through(
    found: ChannelGraph, operation: Any, fed: list[Any], labels: list[np.ndarray]
) -> np.ndarray | None:
    """Labels of what an operation gives; None if it needs all that it gets."""
    if isinstance(operation, layers.Concatenate):
        last = len(fed[0].shape) - 1
        return np.concatenate(labels) if operation.axis in (-1, last) else None
    if len(fed) != 1 or getattr(operation, "data_format", "channels_last") == "channels_first":
        return None
    (own,), shape = labels, fed[0].shape
    activation = getattr(operation, "activation", keras.activations.linear)
    is_mixing = activation not in _NUMBER_BY_NUMBER
    if isinstance(operation, layers.Flatten):
        if None in shape[1:]:
            return None
        return np.tile(own, int(np.prod(shape[1:-1])))
    if isinstance(operation, layers.BatchNormalization):
        if operation.axis not in (-1, len(shape) - 1):
            return None
        found.read[operation.name] = own
        return own
    if isinstance(operation, _DEPTHWISE) and not is_mixing:
        found.read[operation.name] = own
        return np.repeat(own, operation.depth_multiplier)
    if isinstance(operation, PRUNABLE) and getattr(operation, "groups", 1) == 1:
        found.read[operation.name] = own
        count = operation.units if isinstance(operation, layers.Dense) else operation.filters
        given = found._labels(operation.name, count)
        if is_mixing:
            found._keep(given, "their activation needs them all")
        if not operation.trainable:
            found._keep(given, "the layer is frozen")
        return given
    return own if isinstance(operation, _CHANNEL_BY_CHANNEL) and not is_mixing else None


def _plain(symbol: Any) -> np.ndarray:
    shape = symbol.shape
    return np.full(shape[-1] if shape and shape[-1] is not None else 1, _NONE)


def weights_of(layer: Any, gone_in: np.ndarray, gone_out: np.ndarray | None) -> list[np.ndarray]:
    """The weights of a layer without what is removed.

    Args:
        layer: One of those that `read_channels` follows.
        gone_in: Whether each channel that it reads is removed.
        gone_out: Whether each of its own is; None if it has none of its own.
    """
    kept_in = ~gone_in
    kept_out = slice(None) if gone_out is None else ~gone_out
    found = []
    for weight in layer.weights:
        value, name = np.asarray(weight), weight.name
        if isinstance(layer, layers.BatchNormalization):
            value = value[kept_in]
        elif isinstance(layer, _DEPTHWISE):
            of_bias = np.repeat(kept_in, layer.depth_multiplier)
            value = value[of_bias] if name == "bias" else value[..., kept_in, :]
        elif name == "bias":
            value = value[kept_out]
        elif name == "depthwise_kernel":
            value = value[..., kept_in, :]
        elif name == "pointwise_kernel":
            value = value[..., np.repeat(kept_in, layer.depth_multiplier), :][..., kept_out]
        elif isinstance(layer, _TRANSPOSED):
            value = value[..., kept_out, :][..., kept_in]
        else:
            value = value[..., kept_in, :][..., kept_out]
        found.append(value)
    return found


def without_reading(layer: Any, gone_in: np.ndarray) -> list[np.ndarray]:
    """The weights of a layer that reads nothing of what is removed, in their shapes."""
    found = []
    for weight in layer.weights:
        value, name = np.array(weight), weight.name
        if isinstance(layer, PRUNABLE) and name not in ("bias", "depthwise_kernel"):
            if isinstance(layer, _TRANSPOSED):
                value[..., gone_in] = 0
            elif name == "pointwise_kernel":
                value[..., np.repeat(gone_in, layer.depth_multiplier), :] = 0
            else:
                value[..., gone_in, :] = 0
        found.append(value)
    return found


def importance(layer: Any, normalization: Any = None) -> np.ndarray:
    """The importance of each channel of a layer: the sum of its absolute weights.

    Args:
        layer: A prunable one.
        normalization: What follows it, if that is a BatchNormalization, which scales it.
    """
    axis = -2 if isinstance(layer, _TRANSPOSED) else -1
    own = [weight for weight in layer.weights if weight.name in ("kernel", "pointwise_kernel")]
    value = np.moveaxis(np.asarray(own[-1], "float64"), axis, 0)
    weighs = np.abs(value).reshape(len(value), -1).sum(axis=1)
    if normalization is not None:
        scale = 1 / np.sqrt(np.asarray(normalization.moving_variance) + normalization.epsilon)
        weighs = weighs * scale
        if normalization.scale:
            weighs = weighs * np.abs(np.asarray(normalization.gamma))
    return weighs

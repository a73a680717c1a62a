"""Activations and gradients of a net for one batch, layer by layer."""

from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf


@dataclass(frozen=True)
class Signal:
    """The size of a layer's output and of the gradient with respect to it.

    Attributes:
        layer: Name of the layer.
        activation: Root mean square of its output.
        gradient: Global L2 norm of the gradient of the loss with respect to that output. (The
            gradient of the kernel is a product of both signals, and hides which one vanishes.)
    """

    layer: str
    activation: float
    gradient: float


def signals(model: keras.Sequential, x: Any, y: Any, loss: Any) -> list[Signal]:
    """Measures the signals of one batch at the layers that have a kernel.

    Args:
        model: A chain of layers.
        x: Samples, shape [n, ...].
        y: Their labels, in the form that the loss expects.
        loss: From `(y, output)` to a scalar.

    Returns:
        The signals, in the order of the layers.
    """
    names, outputs, output = [], [], tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        for layer in model.layers:
            output = layer(output)
            if hasattr(layer, "kernel"):
                tape.watch(output)
                names.append(layer.name)
                outputs.append(output)
        value = loss(y, output)
    gradients = tape.gradient(value, outputs)
    return [
        Signal(name, float(tf.sqrt(tf.reduce_mean(tf.square(output)))), float(tf.norm(gradient)))
        for name, output, gradient in zip(names, outputs, gradients, strict=True)
    ]

"""What passes through a net at one moment, forwards and backwards, layer by layer."""

from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf


@dataclass(frozen=True)
class Signal:
    """What a layer sends on, and what comes back to it.

    Attributes:
        layer: Name of the layer.
        activation: Root mean square of its output.
        gradient: Global L2 norm of the loss's gradient by that output. The gradient by the kernel
            is the product of both kinds of signal, and hides which one is missing.
    """

    layer: str
    activation: float
    gradient: float


def signals(model: keras.Sequential, x: Any, y: Any, loss: Any) -> list[Signal]:
    """The signals of one batch at the layers that have a kernel, in their order.

    Args:
        model: A chain of layers.
        x: Samples, shape [n, ...].
        y: Their labels, as the loss takes them.
        loss: From `(y, output)` to a scalar.
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

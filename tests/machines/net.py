"""A small net, its data, and what a loop in plain TensorFlow computes on it in one process."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

EXAMPLES, BATCH, EPOCHS, RATE = 96, 24, 2, 0.5
STEPS = EXAMPLES // BATCH

_rng = np.random.default_rng(0)
X = _rng.normal(size=(EXAMPLES, 6)).astype(np.float32)
Y = (X.sum(axis=1) > 0).astype(np.int64)
KERNELS = [_rng.normal(size=shape).astype(np.float32) / 2 for shape in ((6, 5), (5, 2))]
BIASES = [np.zeros(5, np.float32), np.zeros(2, np.float32)]
WEIGHTS = [KERNELS[0], BIASES[0], KERNELS[1], BIASES[1]]


def built(keras: Any) -> Any:
    """The net in a library: Keras 3 or tf_keras."""
    layers = keras.layers
    hidden, answer = layers.Dense(5, activation="tanh", name="hidden"), layers.Dense(2, name="end")
    model = keras.Sequential([layers.Input((6,)), hidden, answer])
    model.set_weights(WEIGHTS)
    return model


@dataclass(frozen=True)
class Truth:
    """What each step computes.

    Attributes:
        losses: Loss of each global batch.
        norms: Norm of its gradient; of that which is applied, if replicas clip.
        layers: Norm of the gradient of each layer.
        weights: What is trained, in the end.
    """

    losses: list[float]
    norms: list[float]
    layers: dict[str, list[float]]
    weights: list[Any]


def truth(*, replicas: int = 1, clipnorm: float | None = None, epochs: int = EPOCHS) -> Truth:
    """Trains by a tape, in one process.

    Args:
        replicas: Among how many a batch is divided, of which each clips its share of the gradient.
        clipnorm: The largest norm of a variable's gradient, as Keras' optimizers clip it.
        epochs: How many.
    """
    weights = [tf.Variable(each) for each in WEIGHTS]
    found = Truth([], [], {"hidden": [], "end": []}, weights)
    for step in range(epochs * STEPS):
        begin = step % STEPS * BATCH
        shares = np.split(np.arange(begin, begin + BATCH), replicas)
        loss, gradients = 0.0, [np.zeros_like(each) for each in WEIGHTS]
        for share in shares:
            with tf.GradientTape() as tape:
                hidden = tf.tanh(X[share] @ weights[0] + weights[1])
                logits = hidden @ weights[2] + weights[3]
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(Y[share], logits)
                part = tf.reduce_sum(losses) / BATCH
            for index, each in enumerate(tape.gradient(part, weights)):
                own = each if clipnorm is None else tf.clip_by_norm(each, clipnorm)
                gradients[index] += own.numpy()
            loss += float(part)
        squares = [float(np.sum(np.square(each, dtype=np.float64))) for each in gradients]
        found.losses.append(loss)
        found.norms.append(float(np.sqrt(sum(squares))))
        found.layers["hidden"].append(float(np.sqrt(squares[0] + squares[1])))
        found.layers["end"].append(float(np.sqrt(squares[2] + squares[3])))
        for variable, gradient in zip(weights, gradients, strict=True):
            variable.assign_sub(RATE * gradient)
    return found

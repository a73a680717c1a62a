"""Custom layers: weights in `build`, the formula in `call`, the arguments in `get_config`.

A dense layer, an activation that is a function, and one with a trained parameter. They support what
Keras passes through a net: masks (rows of an image that are all 0 are skipped) and the dtype policy
(autocast inputs, float32 weights). They replace keras.layers.Dense, "gelu" and keras.layers.PReLU
(He et al. 2015, arXiv:1502.01852).

Two nested runs with the same keys, the built-in layers and our own. What to expect: no difference.
Equal weights give equal outputs; trained alike, the rounding of another formula grows to a point of
accuracy at most. A new process, which has only MLflow and Keras, loads the logged model and gives
the same outputs, because the source of the layers is logged with it. A Lambda layer, whose formula
would be stored as bytecode, cannot be logged. Half a minute of computing on two cores.

    mlflow run . -e custom_layer --env-manager local -P units=64
"""

from typing import Any

import keras
from pydantic import PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.evaluation.fresh_process import predict_in_new_process
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.training import crossentropy, fit
from projects.data import Data, load
from projects.parameters import BatchSize, Images, Seed


@keras.saving.register_keras_serializable(package="projects")
def gauss_gelu(x: Any) -> Any:
    """GELU: x · Φ(x), Φ being the normal distribution function (Hendrycks, Gimpel 2016)."""
    return x * 0.5 * (1 + keras.ops.erf(x / 2**0.5))


@keras.saving.register_keras_serializable(package="projects")
class Linear(keras.layers.Layer):
    """Computes `activation(x · kernel + bias)` over the last axis, which gets the size `units`."""

    def __init__(self, units: int, activation: Any = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.units = units
        self.activation = keras.activations.get(activation)
        self.supports_masking = True  # hands the mask of its input on

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the weights, now that the input's last axis is known."""
        self.kernel = self.add_weight((input_shape[-1], self.units), name="kernel")
        self.bias = self.add_weight((self.units,), initializer="zeros", name="bias")

    def call(self, inputs: Any) -> Any:
        """Applies the layer; inputs and weights have the policy's compute dtype."""
        return self.activation(keras.ops.matmul(inputs, self.kernel) + self.bias)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        activation = keras.activations.serialize(self.activation)
        return {**super().get_config(), "units": self.units, "activation": activation}


@keras.saving.register_keras_serializable(package="projects")
class LearnedLeak(keras.layers.Layer):
    """Returns x where it is positive, else `slope · x`, with a trained slope for each unit."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the slopes, initially 0. The layer has no arguments, and so no `get_config`."""
        shape = (*(1 for _ in input_shape[1:-1]), input_shape[-1])  # all rows share them
        self.slope = self.add_weight(shape=shape, initializer="zeros", name="slope")

    def call(self, inputs: Any) -> Any:
        """The activation."""
        return keras.ops.relu(inputs) - self.slope * keras.ops.relu(-inputs)


def net(data: Data, units: int, own: bool, policy: str = "float32") -> keras.Model:
    """Reads an image row by row and skips the rows that the mask leaves out."""
    layers = keras.layers
    height, width, channels = data.input_shape
    dense = Linear if own else layers.Dense
    body = [
        layers.Reshape((height, width * channels), dtype=policy),
        layers.Masking(dtype=policy),
        dense(units, activation=gauss_gelu if own else "gelu", dtype=policy),
        dense(units, dtype=policy),
        LearnedLeak(dtype=policy) if own else layers.PReLU(shared_axes=[1], dtype=policy),
        layers.GRU(units, dtype=policy),  # stands still where the mask says so
        dense(data.classes, dtype=policy),
    ]
    return keras.Sequential([keras.Input(data.input_shape), *body])


def untrained(data: Data, units: int, policy: str) -> float:
    """Largest difference of a logit of the two nets under a dtype policy, from equal weights."""
    own, built_in = (net(data, units, own, policy) for own in (True, False))
    own.set_weights(built_in.get_weights())
    return mka.largest_difference(own(data.x_test[:64]), built_in(data.x_test[:64]))


def main(
    data: Images = "digits",
    epochs: PositiveInt = 12,
    batch_size: BatchSize = 32,
    lr: PositiveFloat = 3e-3,
    units: PositiveInt = 32,
    seed: Seed = 0,
) -> None:
    """Trains a net of built-in layers and the same of our own, and loads both elsewhere.

    Args:
        epochs: Epochs of each training.
        lr: Learning rate of Adam.
        units: Size of the hidden layers.
    """
    params = dict(locals())
    images = load(data, seed=seed)
    few = images.x_test[:64]

    with mka.technique("custom_layer", params, dataset=images, variants=2) as technique:
        for name in ("built_in", "own"):
            with technique.variant(name):
                model = net(images, units, own=name == "own")
                model.compile(keras.optimizers.Adam(lr), crossentropy, metrics=["accuracy"])
                fit(model, images.train, images.validation, epochs=epochs, batch_size=batch_size)
                finished = technique.finish(model, *images.test)

        technique.compare()
        here, there = model(few), predict_in_new_process(finished.info.model_uri, few)
        built_in, own = technique.final("accuracy").values()
        full, half = (untrained(images, units, each) for each in ("float32", "mixed_float16"))
        away, apart = mka.largest_difference(here, there), abs(own - built_in)
        technique.conclude(
            f"Test accuracy {own:.1%} with layers of our own, {built_in:.1%} with Keras' own.",
            mka.Claim("untrained", "difference of a logit from equal weights", full, at_most=1e-5),
            mka.Claim("half", "the same under the policy mixed_float16", half, at_most=1e-2),
            mka.Claim("reloaded", "difference of a logit in a new process", away, at_most=1e-5),
            mka.Claim("trained", "difference of accuracies, trained alike", apart, at_most=0.03),
        )


if __name__ == "__main__":
    entry_point.run(main)

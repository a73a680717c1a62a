"""Layers of one's own: weights in `build`, the formula in `call`, the arguments in `get_config`.

A dense layer, an activation that is a function, and one with a parameter that is trained, which
respect what Keras hands through a net: masks (rows of an image that are all 0 are skipped) and the
dtype policy (autocast inputs, float32 weights). They replace keras.layers.Dense, "gelu" and
keras.layers.PReLU (He et al. 2015, arXiv:1502.01852).

Two nested runs with the same keys, the built-in layers and our own. What to expect: no difference.
Equal weights give equal answers; trained alike, the rounding of another formula grows to a point of
accuracy at most. Another process, which has only MLflow and Keras, loads what was logged and
answers the same, since the source of the layers travels with it. A Lambda layer is no shorter way:
the run's description says why it is refused.
Half a minute of computing on two cores.

    mlflow run . -e custom_layer --env-manager local -P units=64
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import keras
import mlflow
import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv import entry_point
from projects.data import Data, load


@keras.saving.register_keras_serializable(package="projects")
def gauss_gelu(x: Any) -> Any:
    """GELU: x · Φ(x), Φ being the normal distribution function (Hendrycks, Gimpel 2016)."""
    return x * 0.5 * (1 + keras.ops.erf(x / 2**0.5))


@keras.saving.register_keras_serializable(package="projects")
class Linear(keras.layers.Layer):
    """`activation(x · kernel + bias)` over the last axis.

    Args:
        units: Size of the output's last axis.
        activation: A name or a function.
        **arguments: Those of every layer: name, dtype, …
    """

    def __init__(self, units: int, activation: Any = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.units = units
        self.activation = keras.activations.get(activation)
        self.supports_masking = True  # hands the mask of its input on

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the weights, now that the input's last axis is known."""
        self.kernel = self.add_weight(
            shape=(input_shape[-1], self.units), initializer="glorot_uniform", name="kernel"
        )
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")

    def call(self, inputs: Any) -> Any:
        """Inputs and weights come in the policy's compute dtype."""
        return self.activation(keras.ops.matmul(inputs, self.kernel) + self.bias)

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes."""
        activation = keras.activations.serialize(self.activation)
        return {**super().get_config(), "units": self.units, "activation": activation}


@keras.saving.register_keras_serializable(package="projects")
class LearnedLeak(keras.layers.Layer):
    """x where it is positive, else `slope · x`, with a slope for each unit that is trained."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the slopes, at first 0; no argument of its own, so no `get_config`."""
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


def untrained_difference(data: Data, units: int, policy: str) -> float:
    """Largest difference of a logit of the two nets under a dtype policy, from equal weights."""
    own, built_in = (net(data, units, own, policy) for own in (True, False))
    own.set_weights(built_in.get_weights())
    logits = [np.asarray(each(data.x_test[:64]), np.float32) for each in (own, built_in)]
    return float(np.abs(logits[0] - logits[1]).max())


def refusal(run: mka.Run, x: np.ndarray) -> str:
    """What `log_model` says of a formula in a Lambda layer, which would be stored as bytecode."""
    leak = keras.layers.Lambda(lambda x: keras.ops.leaky_relu(x, 0.1))
    model = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Dense(1), leak])
    try:
        mka.log_model(model, name="lambda", run_id=run.run_id, input_example=x[:2])
    except mka.UserError as error:
        return f"A Lambda is refused: {error}"
    return "A Lambda was logged."


def answers_elsewhere(model_uri: str, x: np.ndarray) -> np.ndarray:
    """What the logged model answers in a new process, in a folder without this project."""
    program = (
        "import sys, mlflow, numpy; mlflow.set_tracking_uri(sys.argv[1]); "
        "model = mlflow.pyfunc.load_model(sys.argv[2]); "
        "numpy.save('y.npy', model.predict(numpy.load('x.npy')))"
    )
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "x.npy"), x)
        command = [sys.executable, "-c", program, mlflow.get_tracking_uri(), model_uri]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return np.load(Path(folder, "y.npy"))


def main(
    data: str = "digits",
    epochs: PositiveInt = 12,
    batch_size: PositiveInt = 32,
    lr: Annotated[float, Field(gt=0)] = 3e-3,
    units: PositiveInt = 32,
    seed: NonNegativeInt = 0,
) -> None:
    """Trains a net of built-in layers and the same of our own, and loads both elsewhere.

    Args:
        data: digits, keras:mnist (or another of keras.datasets), or the path of an .npz file.
        epochs: Epochs of each training.
        batch_size: Examples per step.
        lr: Learning rate of Adam.
        units: Size of the hidden layers.
        seed: Of weights, order of examples and choice of the validation split.
    """
    params = dict(locals())
    technique = {"technique": "custom_layer"}
    images = load(data, seed=seed)
    few = images.x_test[:64]

    with mka.track("custom_layer", params=params, tags=technique) as run:
        run.log_dataset(images.dataset, context="training")
        runs, finished = {}, {}
        for number, name in enumerate(("built_in", "own"), 1):
            print(f"[{number}/2] {name}", flush=True)
            with run.child(name, tags=technique) as child:
                keras.utils.set_random_seed(seed)
                model = net(images, units, own=name == "own")
                model.compile(
                    keras.optimizers.Adam(lr),
                    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                    metrics=["accuracy"],
                )
                model.fit(
                    *images.train,
                    batch_size=batch_size,
                    epochs=epochs,
                    validation_data=images.validation,
                    callbacks=[mka.MlflowLogger()],
                    verbose=0,
                )
                finished[name] = mka.log_finished_model(
                    child, model, *images.test, name=name, dataset=images.dataset
                )
            runs[name] = child

        mka.log_comparison(run, runs)
        here = keras.ops.convert_to_numpy(model(few, training=False))
        elsewhere = answers_elsewhere(finished["own"].info.model_uri, few)
        claims = mka.log_claims(
            run,
            mka.Claim(
                "built_in_difference",
                "largest difference of a logit of our layers and of the built-in ones, untrained",
                untrained_difference(images, units, "float32"),
                at_most=1e-5,
            ),
            mka.Claim(
                "half_difference",
                "the same under the policy mixed_float16",
                untrained_difference(images, units, "mixed_float16"),
                at_most=1e-2,
            ),
            mka.Claim(
                "accuracy_difference",
                "difference of their accuracies on the test split, trained alike",
                abs(finished["own"].final["accuracy"] - finished["built_in"].final["accuracy"]),
                at_most=0.03,
            ),
            mka.Claim(
                "reload_difference",
                "largest difference of a logit in this process and in one that has only loaded "
                "the logged model",
                float(np.abs(here - elsewhere).max()),
                at_most=1e-5,
            ),
        )
        result = (
            f"Test accuracy {finished['own'].final['accuracy']:.1%} with layers of our own, "
            f"{finished['built_in'].final['accuracy']:.1%} with the built-in ones."
        )
        run.describe(f"{result}\n\n{claims}\n\n{refusal(run, few)}")
    print(f"{result}\n{claims}")


if __name__ == "__main__":
    entry_point.run(main)

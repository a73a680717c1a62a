"""Initial weights: what decides whether a deep net gets a signal and a gradient at all.

Each layer multiplies the spread of what passes through it, forwards and backwards, by a factor that
its initial weights set; over many layers, below 1 it vanishes and above 1 it explodes. Glorot and
Bengio (2010, AISTATS) chose the variance of the weights for tanh; He et al. (2015,
arXiv:1502.01852) twice that for ReLU, which drops half of its input; LeCun et al. (1998) is near
Glorot's, and orthogonal matrices (Saxe et al. 2013, arXiv:1312.6120) keep every length.

One nested run for each initializer and activation. The figure `norms_per_layer.png` on the parent
shows, before training, the size of each layer's output and of the gradient that comes back to it.
What to expect: zeros never do better than guessing, small normal weights vanish, large ones
explode; He with ReLU and Glorot with tanh are level from the first layer to the last, and learn.
A minute of computing on two cores.

    mlflow run . -e initializers --env-manager local -P depth=20
"""

from typing import Annotated, Any

import keras
import matplotlib.figure
import pandas as pd
import tensorflow as tf
from pydantic import Field, NonNegativeInt, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv import entry_point
from projects.data import Data, load

CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(data: Data, activation: str, depth: int) -> keras.Model:
    """A deep net of equal layers."""
    body = [keras.layers.Dense(64, activation=activation) for _ in range(depth)]
    head = keras.layers.Dense(data.classes)
    return keras.Sequential([keras.Input(data.input_shape), keras.layers.Flatten(), *body, head])


def initializers(seed: int) -> dict[str, keras.initializers.Initializer]:
    """By name, from none to too much."""
    choices = keras.initializers
    return {
        "zeros": choices.Zeros(),
        "small": choices.RandomNormal(stddev=0.01, seed=seed),
        "lecun": choices.LecunNormal(seed=seed),
        "glorot": choices.GlorotNormal(seed=seed),
        "he": choices.HeNormal(seed=seed),
        "orthogonal": choices.Orthogonal(seed=seed),
        "large": choices.RandomNormal(stddev=0.5, seed=seed),
    }


def initialize(model: keras.Model, initializer: keras.initializers.Initializer) -> None:
    """Gives every kernel new weights, each layer others; biases become 0."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dense):
            fresh = initializer.clone() if hasattr(initializer, "clone") else initializer
            layer.kernel.assign(fresh(layer.kernel.shape))
            layer.bias.assign(keras.ops.zeros(layer.bias.shape))


def norms_per_layer(model: keras.Model, x: Any, y: Any) -> pd.DataFrame:
    """Columns layer, activation and gradient: what passes forwards and what comes back.

    The root mean square of the layer's output, and the norm of the loss's gradient by that output.
    The gradient by the kernel is the product of both kinds of signal, and hides which is missing.
    """
    outputs = []
    with tf.GradientTape() as tape:
        output = keras.ops.reshape(x, (len(x), -1))
        for layer in model.layers:
            if isinstance(layer, keras.layers.Dense):
                output = layer(output)
                outputs.append(output)
        loss = CROSSENTROPY(y, output)
    gradients = tape.gradient(loss, outputs)
    return pd.DataFrame(
        {
            "layer": range(1, len(outputs) + 1),
            "activation": [float(tf.sqrt(tf.reduce_mean(each**2))) for each in outputs],
            "gradient": [float(tf.norm(each)) for each in gradients],
        }
    )


def main(
    data: str = "digits",
    epochs: PositiveInt = 8,
    batch_size: PositiveInt = 32,
    lr: Annotated[float, Field(gt=0)] = 0.05,
    depth: PositiveInt = 10,
    seed: NonNegativeInt = 0,
) -> None:
    """Trains a deep net from each kind of initial weights, with ReLU and with tanh.

    Args:
        data: digits, keras:mnist (or another of keras.datasets), or the path of an .npz file.
        epochs: Epochs of each training.
        batch_size: Examples per step.
        lr: Learning rate of SGD.
        depth: Number of hidden layers.
        seed: Of weights, order of examples and choice of the validation split.
    """
    params = dict(locals())
    technique = {"technique": "initializers"}
    images = load(data, seed=seed)
    first = images.x_train[:256], images.y_train[:256]

    with mka.track("initializers", params=params, tags=technique) as run:
        run.log_dataset(images.dataset, context="training")
        runs, norms, accuracy = {}, {}, {}
        for activation in ("relu", "tanh"):
            # Compiled once: other weights need no other graph. SGD without momentum has no state.
            model = net(images, activation, depth)
            model.compile(keras.optimizers.SGD(lr), loss=CROSSENTROPY, metrics=["accuracy"])
            for initializer_name, initializer in initializers(seed).items():
                name = f"{initializer_name}_{activation}"
                print(f"[{len(runs) + 1}/14] {name}", flush=True)
                settings = {"initializer": initializer_name, "activation": activation}
                with run.child(name, params=settings, tags=technique) as child:
                    keras.utils.set_random_seed(seed)
                    initialize(model, initializer)
                    norms[name] = norms_per_layer(model, *first)
                    model.fit(
                        *images.train,
                        batch_size=batch_size,
                        epochs=epochs,
                        validation_data=images.validation,
                        callbacks=[mka.MlflowLogger()],
                        verbose=0,
                    )
                    finished = mka.log_finished_model(
                        child, model, *images.test, name=name, dataset=images.dataset
                    )
                runs[name], accuracy[name] = child, finished.final["accuracy"]

        winner = mka.log_comparison(run, runs)
        run.log_figure(figure(norms), "norms_per_layer.png")
        table = pd.concat([table.assign(variant=name) for name, table in norms.items()])
        run.log_table(table, "norms_per_layer.json")

        def way_back(name: str, **limits: float) -> mka.Claim:
            gradient = norms[name].gradient
            text = f"{name}: gradient by the first hidden layer in parts of that by the last"
            return mka.Claim(
                f"gradient_{name}", text, gradient.iloc[0] / gradient.iloc[-2], **limits
            )

        claims = mka.log_claims(
            run,
            way_back("he_relu", at_least=0.2, at_most=5),
            way_back("glorot_tanh", at_least=0.2, at_most=5),
            way_back("small_relu", at_most=1e-3),
            way_back("large_relu", at_least=1e3),
            mka.Claim(
                "accuracy_gain",
                "accuracy on the test split of ReLU with He's weights minus with Glorot's",
                accuracy["he_relu"] - accuracy["glorot_relu"],
                at_least=0.3,
            ),
        )
        shown = ", ".join(
            f"{name} {accuracy[name]:.1%}"
            for name in ("he_relu", "glorot_relu", "glorot_tanh", "small_relu")
        )
        result = f"Test accuracy: {shown}. Best on validation: {winner}."
        run.describe(f"{result}\n\n{claims}")
    print(f"{result}\n{claims}")


def figure(norms: dict[str, pd.DataFrame]) -> matplotlib.figure.Figure:
    """Four panels: spread of the outputs and norm of the gradients, by activation."""
    drawing = matplotlib.figure.Figure(figsize=(11, 8), layout="constrained")
    for row, what in zip(
        drawing.subplots(2, 2, sharex=True), ("activation", "gradient"), strict=True
    ):
        for panel, activation in zip(row, ("relu", "tanh"), strict=True):
            for name, table in norms.items():
                if name.endswith(activation):
                    shown = table[what].where(table[what] > 0)
                    panel.plot(table["layer"], shown, marker="o", label=name)
            panel.set(title=f"{what}, {activation}", xlabel="layer", yscale="log")
            panel.grid(alpha=0.3)
            panel.legend(frameon=False)
    return drawing


if __name__ == "__main__":
    entry_point.run(main)

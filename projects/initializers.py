"""Initial weights: they decide whether signals and gradients pass through a deep net at all.

Each layer multiplies the spread of what passes through it, forwards and backwards, by a factor that
its initial weights set; over many layers, below 1 it vanishes and above 1 it explodes. Glorot and
Bengio (2010, AISTATS) chose the variance of the weights for tanh; He et al. (2015,
arXiv:1502.01852) twice that for ReLU, which drops half of its input; LeCun et al. (1998) is near
Glorot's, and orthogonal matrices (Saxe et al. 2013, arXiv:1312.6120) keep every length.

One nested run for each initializer and activation. The figure `norms_per_layer.png` on the parent
shows, before training, the size of each layer's output and of the gradient that comes back to it.
What to expect: zeros never do better than guessing, small normal weights vanish, large ones
explode; He with ReLU and Glorot with tanh are level from the first layer to the last, and learn. A
minute of computing on two cores.

    mlflow run . -e initializers --env-manager local -P depth=20
"""

from itertools import product

import keras
from matplotlib.figure import Figure
from pydantic import PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.signals import Signal, signals
from mlflow_keras_adv.lessons.training import crossentropy, fit
from projects.data import Data, load
from projects.parameters import BatchSize, Examples, Seed, Target


def net(data: Data, activation: str, depth: int) -> keras.Model:
    """A deep net of equal layers."""
    body = [keras.layers.Dense(64, activation=activation) for _ in range(depth)]
    head = keras.layers.Dense(data.classes)
    return keras.Sequential([*data.entrance(), *body, head])


def initializers() -> dict[str, keras.initializers.Initializer]:
    """Initializers by name, from zeros to too large weights."""
    choices = keras.initializers
    return {
        "zeros": choices.Zeros(),
        "small": choices.RandomNormal(stddev=0.01),
        "lecun": choices.LecunNormal(),
        "glorot": choices.GlorotNormal(),
        "he": choices.HeNormal(),
        "orthogonal": choices.Orthogonal(),
        "large": choices.RandomNormal(stddev=0.5),
    }


def initialize(model: keras.Model, initializer: keras.initializers.Initializer) -> None:
    """Gives every kernel new weights; biases become 0."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dense):
            # Each layer asks a clone: from one initializer all would get the same numbers.
            layer.kernel.assign(initializer.clone()(layer.kernel.shape))
            layer.bias.assign(keras.ops.zeros_like(layer.bias))


def main(
    data: Examples = "digits",
    target: Target = "",
    epochs: PositiveInt = 8,
    batch_size: BatchSize = 32,
    lr: PositiveFloat = 0.05,
    depth: PositiveInt = 12,
    seed: Seed = 0,
) -> None:
    """Trains a deep net from each kind of initial weights, with ReLU and with tanh.

    Args:
        epochs: Epochs of each training.
        lr: Learning rate of SGD.
        depth: Number of hidden layers.
    """
    params = dict(locals())
    images = load(data, target=target, seed=seed, kinds=("images", "features"))
    first = images.x_train[:256], images.y_train[:256]
    kinds, norms = initializers(), {}
    settings = {"epochs": epochs, "batch_size": batch_size}

    count = 2 * len(kinds)
    with mka.technique("initializers", params, dataset=images, variants=count) as technique:
        for activation in ("relu", "tanh"):
            # Compiled once: other weights need no other graph. SGD without momentum has no state.
            model = net(images, activation, depth)
            model.compile(keras.optimizers.SGD(lr), crossentropy, metrics=["accuracy"])
            for kind, initializer in kinds.items():
                name, own = f"{kind}_{activation}", {"kind": kind, "activation": activation}
                with technique.variant(name, params=own):
                    initialize(model, initializer)
                    norms[name] = signals(model, *first, crossentropy)
                    fit(model, images.train, images.validation, **settings)
                    technique.finish(model, *images.test)

        technique.compare()
        technique.run.log_figure(figure(norms), "norms_per_layer.png")
        accuracy = technique.final("accuracy")

        def way_back(name: str, **limits: float) -> mka.Claim:
            text = f"{name}: gradient at the first hidden layer relative to that at the last"
            part = norms[name][0].gradient / norms[name][-2].gradient
            return mka.Claim(f"gradient_{name}", text, part, **limits)

        shown = ("he_relu", "glorot_relu", "glorot_tanh", "small_relu")
        technique.conclude(
            f"Test accuracy: {', '.join(f'{name} {accuracy[name]:.1%}' for name in shown)}.",
            mka.Claim(
                "accuracy_gain",
                "accuracy on the test split of ReLU with He's weights minus with Glorot's",
                accuracy["he_relu"] - accuracy["glorot_relu"],
                at_least=0.3,
            ),
            way_back("he_relu", at_least=0.2, at_most=5),
            way_back("glorot_tanh", at_least=0.2, at_most=5),
            way_back("small_relu", at_most=1e-3),
            way_back("large_relu", at_least=1e3),
        )


def figure(norms: dict[str, list[Signal]]) -> Figure:
    """Four panels: size of the outputs and norm of the gradients, by activation."""
    drawing = Figure(figsize=(11, 8), layout="constrained")
    panels = product(("activation", "gradient"), ("relu", "tanh"))
    for panel, (what, activation) in zip(drawing.subplots(2, 2).flat, panels, strict=True):
        for name in (name for name in norms if name.endswith(activation)):
            shown = [getattr(each, what) or None for each in norms[name]]  # no logarithm of 0
            panel.plot(range(1, len(shown) + 1), shown, marker="o", label=name)
        panel.set(title=f"{what}, {activation}", xlabel="layer", yscale="log")
        panel.legend(frameon=False)
    return drawing


if __name__ == "__main__":
    entry_point.run(main)

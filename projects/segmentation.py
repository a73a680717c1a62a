"""Segmentation: a class for each pixel, by a net that remembers where things were.

Digits lie on a canvas full of noise, and each pixel is to be told as stroke or as background. A net
that sees much of the canvas at once has made it small, and has lost where exactly a stroke ends.
The U-Net (Ronneberger, Fischer, Brox 2015, arXiv:1505.04597) hands what it had at each size over to
the way back, past the narrow middle: concatenation of equal sizes, the skip connections.

Nine pixels of ten are background, so a net that sees no stroke at all is right on most of them. The
measure is the IoU (intersection over union) of the strokes: pixels that are both told and true,
divided by those that are either.

Two nested runs with the same keys: the net with its skip connections, and without. What to expect:
without them it finds the digits, but draws blots where they are. A minute of computing on two
cores.

    mlflow run . -e segmentation --env-manager local -P noise=0.5
"""

import keras
import numpy as np
from matplotlib.figure import Figure
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv import registry
from mlflow_keras_adv.lessons import entry_point
from projects.data import load

INK = 0.3  # brightness from which a pixel of an image is a stroke
SHOWN = 5  # canvases of the figure


def canvases(
    x: np.ndarray, count: int, noise: float, digits: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images of twice and a half their side with some of `x` on each, and 1 where a stroke is."""
    rng = np.random.default_rng(seed)
    height, width, channels = x.shape[1:]
    # A multiple of 8, since the net halves it three times.
    size = [-(-5 * side // 16) * 8 for side in (height, width)]
    drawn = np.zeros((count, *size, channels), np.float32)
    for canvas in drawn:
        for image in x[rng.integers(len(x), size=digits)]:
            top, left = rng.integers(np.subtract(size, (height, width)) + 1)
            part = canvas[top : top + height, left : left + width]
            np.maximum(part, image, out=part)
    strokes = (drawn.max(axis=-1) > INK).astype(np.int32)
    drawn += rng.normal(0, noise, drawn.shape).astype(np.float32)
    return drawn.clip(0, 1), strokes


def net(input_shape: tuple[int, ...], skips: bool, filters: int) -> keras.Model:
    """Three times half the size, and back; it gives a logit for background and for stroke."""
    layers = keras.layers

    def convolved(x: keras.KerasTensor, count: int) -> keras.KerasTensor:
        x = layers.Conv2D(count, 3, padding="same", use_bias=False)(x)
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))

    x = canvas = keras.Input(input_shape)
    handed = []
    for halved in range(3):
        x = convolved(x, filters * 2**halved)
        handed.append(x)
        x = layers.MaxPooling2D()(x)
    x = convolved(x, filters * 8)
    for halved in reversed(range(3)):
        x = layers.UpSampling2D()(x)
        if skips:
            x = layers.Concatenate()([x, handed[halved]])
        x = convolved(x, filters * 2**halved)
    return keras.Model(canvas, layers.Conv2D(2, 1)(x))


def overlays(models: dict[str, keras.Model], x: np.ndarray, y: np.ndarray) -> Figure:
    """Some canvases, their strokes, and what each net takes for strokes."""
    rows = {"canvas": x.mean(axis=-1), "strokes": y}
    rows |= {name: np.argmax(model(x), axis=-1) for name, model in models.items()}
    figure = Figure(figsize=(2 * len(x), 2 * len(rows)), layout="constrained")
    for axes, (name, pictures) in zip(
        figure.subplots(len(rows), len(x)), rows.items(), strict=True
    ):
        axes[0].set_ylabel(name)
        for panel, picture in zip(axes, pictures, strict=True):
            panel.imshow(picture, cmap="gray", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
    return figure


def main(
    data: str = "digits",
    epochs: PositiveInt = 8,
    batch_size: PositiveInt = 8,
    lr: PositiveFloat = 4e-3,
    examples: PositiveInt = 256,
    digits: PositiveInt = 2,
    noise: NonNegativeFloat = 0.3,
    filters: PositiveInt = 8,
    seed: NonNegativeInt = 0,
) -> None:
    """Trains a U-Net with its skip connections and without.

    Args:
        data: digits, keras:mnist (or another of keras.datasets), a folder of images, or the path of
            an .npz file; light strokes on dark ground.
        epochs: Epochs of each of the two trainings.
        batch_size: Canvases per step.
        lr: Learning rate of Adam.
        examples: Canvases to train on; half as many to validate on, and to test on.
        digits: Images on each canvas.
        noise: Standard deviation of what is added to each pixel, whose brightness is 0 to 1.
        filters: Filters of the first convolution; each that follows has twice as many.
        seed: Seed of weights, canvases, order of examples and choice of the validation split.
    """
    params = dict(locals())
    images = load(data, seed=seed)
    few, knobs = max(1, examples // 2), (noise, digits)
    train = canvases(images.x_train, examples, *knobs, seed)
    validation = canvases(images.x_validation, few, *knobs, seed + 1)
    test = canvases(images.x_test, few, *knobs, 0)  # the same for every seed

    dataset = registry.Samples(*test, name=f"{images.name} on canvases").dataset

    models = {}
    record = {"dataset": dataset, "seed": seed, "variants": 2}
    with mka.technique("segmentation", params, **record) as technique:
        for name in ("skips", "plain"):
            with technique.variant(name):
                model = models[name] = net(train[0].shape[1:], name == "skips", filters)
                iou = keras.metrics.IoU(2, target_class_ids=[1], sparse_y_pred=False, name="iou")
                crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
                model.compile(keras.optimizers.Adam(lr), crossentropy, metrics=["accuracy", iou])
                model.fit(
                    *train,
                    batch_size=batch_size,
                    epochs=epochs,
                    validation_data=validation,
                    callbacks=[mka.MlflowLogger()],
                    verbose=0,
                )
                technique.finish(model, *test)

        technique.compare(monitor="val/iou", mode="max", curves=("train/loss", "val/iou"))
        shown = [part[:SHOWN] for part in test]
        technique.run.log_figure(overlays(models, *shown), "strokes.png")
        iou, right = technique.final("iou"), technique.final("accuracy")
        told = np.argmax(models["skips"].predict(test[0], verbose=0), axis=-1) == 1
        true = test[1] == 1
        counted = (told & true).sum() / (told | true).sum()
        technique.conclude(
            f"IoU of the strokes {iou['skips']:.2f} with skip connections and {iou['plain']:.2f} "
            f"without; pixels told right {right['skips']:.1%} and {right['plain']:.1%} (all for "
            f"background: {1 - true.mean():.1%}).",
            mka.Claim(
                "gain", "IoU that skip connections add", iou["skips"] - iou["plain"], at_least=0.1
            ),
            mka.Claim(
                "iou", "IoU of the strokes with skip connections", iou["skips"], at_least=0.6
            ),
            mka.Claim(
                "counted",
                "IoU on record off pixels counted",
                abs(iou["skips"] - counted),
                at_most=1e-5,
            ),
        )


if __name__ == "__main__":
    entry_point.run(main)

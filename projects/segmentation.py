"""Segmentation: a class for each pixel, by a net with skip connections.

Digits lie on a noisy canvas, and each pixel is to be classified as stroke or background. A net that
sees much of the canvas at once has reduced its resolution, and has lost the exact ends of strokes.
The U-Net (Ronneberger, Fischer, Brox 2015, arXiv:1505.04597) concatenates the features of each
resolution with those of the same size on the way back: the skip connections.

Nine pixels of ten are background, so a net that predicts no stroke at all is right on most of them.
The metric is the IoU (intersection over union) of the strokes: the pixels that are both predicted
and true, divided by those that are either.

Two nested runs with the same keys: the net with its skip connections, and without. What to expect:
without them it finds the digits, but draws blots where they are. A minute of computing on two
cores.

    mlflow run . -e segmentation --env-manager local -P noise=0.5
"""

import keras
import numpy as np
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv import registry
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.canvases import canvases
from mlflow_keras_adv.lessons.figures import pictures_figure
from mlflow_keras_adv.lessons.training import crossentropy, fit
from projects.data import load

SHOWN = 5  # canvases of the figure


def net(input_shape: tuple[int, ...], skips: bool, filters: int) -> keras.Model:
    """A U-Net of three resolutions; it gives logits for background and stroke."""
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
        noise: Standard deviation of the noise of each pixel, whose brightness is from 0 to 1.
        filters: Filters of the first convolution; each that follows has twice as many.
        seed: Seed of weights, canvases, order of examples and choice of the validation split.
    """
    params = dict(locals())
    images = load(data, seed=seed)
    few, knobs = max(1, examples // 2), {"noise": noise, "images": digits}
    train = canvases(images.x_train, examples, **knobs, seed=seed)
    validation = canvases(images.x_validation, few, **knobs, seed=seed + 1)
    test = canvases(images.x_test, few, **knobs, seed=0)  # the same for every seed

    dataset = registry.Samples(*test, name=f"{images.name} on canvases")
    models = {}
    with mka.technique("segmentation", params, dataset=dataset, variants=2) as technique:
        for name in ("skips", "plain"):
            with technique.variant(name):
                model = models[name] = net(train[0].shape[1:], name == "skips", filters)
                iou = keras.metrics.IoU(2, target_class_ids=[1], sparse_y_pred=False, name="iou")
                model.compile(keras.optimizers.Adam(lr), crossentropy, metrics=["accuracy", iou])
                fit(model, train, validation, epochs=epochs, batch_size=batch_size)
                technique.finish(model, *test)

        technique.compare(monitor="val/iou", mode="max", curves=("train/loss", "val/iou"))
        x, strokes = (part[:SHOWN] for part in test)
        shown = {"canvas": x.mean(axis=-1), "strokes": strokes}
        shown |= {name: np.argmax(model(x), axis=-1) for name, model in models.items()}
        technique.run.log_figure(pictures_figure(shown), "strokes.png")
        iou, right = technique.final("iou"), technique.final("accuracy")
        told = np.argmax(models["skips"].predict(test[0], verbose=0), axis=-1) == 1
        true = test[1] == 1
        counted = (told & true).sum() / (told | true).sum()
        technique.conclude(
            f"IoU of the strokes {iou['skips']:.2f} with skip connections and {iou['plain']:.2f} "
            f"without; pixel accuracy {right['skips']:.1%} and {right['plain']:.1%} (all "
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

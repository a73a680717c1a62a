"""A generative adversarial network: one net draws digits, another tells them from real ones.

The discriminator learns to give real images a high logit and generated ones a low one; the
generator learns to raise the logits of its images:

    loss of D = crossentropy(1, D(real)) + crossentropy(0, D(drawn))
    loss of G = crossentropy(1, D(drawn))

Two models, two optimizers and two losses alternate in one step. Both nets get the label, so that
the result can be judged: a classifier that was trained on real digits has to recognize it.
Goodfellow et al. 2014, arXiv:1406.2661; conditional: Mirza, Osindero 2014, arXiv:1411.1784.

What to expect: noise, then blots, then digits (the image `samples` has a slider); losses that hover
instead of falling; curves for each optimizer. Half a minute of computing on two cores.

    mlflow run . -e gan --env-manager local -P epochs=120
"""

from math import prod
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.figures import tiles
from projects.data import Data, load
from projects.parameters import Images

layers = keras.layers
NOISE = 32  # numbers that a drawing starts from
ROWS = 8  # of the grid of samples
MOST_GRIDS = 20

crossentropy = keras.losses.BinaryCrossentropy(from_logits=True)


def generator_net(data: Data) -> keras.Model:
    """Noise and a label in, an image out."""
    noise, label = keras.Input((NOISE,), name="noise"), keras.Input((), name="label", dtype="int32")
    x = layers.Concatenate()([noise, keras.ops.one_hot(label, data.classes)])
    for units in (128, 256):
        x = layers.Dense(units)(x)
        x = layers.LeakyReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(prod(data.input_shape), activation="sigmoid")(x)
    return keras.Model([noise, label], layers.Reshape(data.input_shape)(x), name="generator")


def discriminator_net(data: Data) -> keras.Model:
    """An image and a label in, the logit of their being real out."""
    image, label = keras.Input(data.input_shape), keras.Input((), dtype="int32")
    x = layers.Concatenate()([layers.Flatten()(image), keras.ops.one_hot(label, data.classes)])
    for units in (256, 128):
        x = layers.Dropout(0.3)(layers.LeakyReLU()(layers.Dense(units)(x)))
    return keras.Model([image, label], layers.Dense(1)(x), name="discriminator")


def judge_net(data: Data, epochs: int) -> keras.Model:
    """A classifier of real images."""
    body = [layers.Flatten(), layers.Dense(128, "relu"), layers.Dropout(0.3)]
    judge = keras.Sequential([*body, layers.Dense(data.classes, "softmax")])
    judge.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    judge.fit(*data.train, epochs=epochs, verbose=0)
    return judge


def spread(x: Any, y: Any) -> float:
    """How much images of one class differ: root mean square distance of a pixel to its mean."""
    return float(np.sqrt(np.mean([np.var(x[y == label], axis=0).mean() for label in set(y)])))


def main(
    data: Images = "digits",
    epochs: PositiveInt = 60,
    batch_size: PositiveInt = 32,
    lr: PositiveFloat = 1e-3,
    seed: NonNegativeInt = 0,
) -> None:
    """Trains a generator and a discriminator against each other.

    Args:
        epochs: Epochs of the training.
        batch_size: Real images per step, and drawn ones.
        lr: Learning rate of both Adams.
        seed: Seed of weights, noise, order of examples and choice of the validation split.
    """
    params = dict(locals())
    images = load(data, seed=seed)
    keras.utils.set_random_seed(seed)
    generator, discriminator = generator_net(images), discriminator_net(images)
    nets = (generator, discriminator)
    optimizers = {each.name: keras.optimizers.Adam(lr, beta_1=0.5) for each in nets}
    loop = mka.Loop(generator, optimizers=optimizers, callbacks=[mka.MlflowLogger()], verbose=2)

    def update(model: keras.Model, tape: tf.GradientTape, loss: Any) -> None:
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizers[model.name].apply(gradients, model.trainable_variables)
        loop.record(**{f"{model.name}_loss": loss})

    @tf.function(reduce_retracing=True)
    def train_step(real: Any, label: Any) -> None:
        noise = tf.random.normal((tf.shape(real)[0], NOISE))
        with tf.GradientTape() as tape:
            drawn = generator([noise, label], training=True)
            on_real = discriminator([real, label], training=True)
            on_drawn = discriminator([drawn, label], training=True)
            loss = crossentropy(tf.ones_like(on_real), on_real)
            loss += crossentropy(tf.zeros_like(on_drawn), on_drawn)
        update(discriminator, tape, loss)

        with tf.GradientTape() as tape:
            drawn = generator([noise, label], training=True)
            on_drawn = discriminator([drawn, label], training=True)
            loss = crossentropy(tf.ones_like(on_drawn), on_drawn)
        update(generator, tape, loss)

    batches = images.batches(batch_size)
    rng, classes = np.random.default_rng(seed), images.classes
    noise = rng.normal(size=(len(images.y_test), NOISE)).astype(np.float32)
    of_grid = rng.normal(size=(ROWS * classes, NOISE)), np.tile(np.arange(classes), ROWS)

    with mka.technique("gan", params, dataset=images) as technique:
        judge, run = judge_net(images, epochs=min(epochs, 20)), technique.run

        def recognised(x: Any) -> float:
            return float(np.mean(np.argmax(judge(x), axis=1) == images.y_test))

        for epoch in loop.epochs(epochs):
            for real, label in loop.batches(batches):
                train_step(real, label)
            loop.log(val_recognised=recognised(generator([noise, images.y_test])))
            if epoch % -(-epochs // MOST_GRIDS) == 0 or epoch == epochs - 1:
                grid = tiles(generator(of_grid), columns=classes)
                run.log_image(grid, key="samples", step=run.axis.batches)

        drawn = generator([noise, images.y_test]).numpy()
        read = recognised(drawn)
        differ = spread(drawn, images.y_test) / spread(images.x_test, images.y_test)
        scores, inputs = {"recognised": read, "spread": differ}, [noise, images.y_test]
        technique.finish(generator, inputs, name="generator", scores=scores)
        technique.conclude(
            f"A classifier recognizes {read:.1%} of the generated digits (of real test "
            f"images {recognised(images.x_test):.1%}); those of one class differ "
            f"{differ:.2f} times as much as real ones.",
            mka.Claim("recognised", "share of generated digits recognized", read, at_least=0.9),
            mka.Claim("spread", "spread within a class, of real images 1", differ, at_least=0.6),
        )


if __name__ == "__main__":
    entry_point.run(main)

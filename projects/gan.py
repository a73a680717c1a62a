"""A generative adversarial network: one net draws digits, another tells them from real ones.

The discriminator learns to give real images a high logit and drawn ones a low one; the generator
learns to raise the logit of what it draws:

    loss of D = crossentropy(1, D(real)) + crossentropy(0, D(drawn))
    loss of G = crossentropy(1, D(drawn))

Two models, two optimizers and two losses take turns in one step. Both nets are told which digit is
meant, so that the drawing can be marked: a classifier that knows real digits only is asked to read
it. Goodfellow et al. 2014, arXiv:1406.2661; conditional: Mirza, Osindero 2014, arXiv:1411.1784.

What to expect: noise, then blots, then digits (the image `samples` has a slider); losses that hover
instead of falling. Each optimizer's norms and rates have curves of its own. Half a minute of
computing on two cores.

    mlflow run . -e gan --env-manager local -P epochs=120
"""

from math import prod
from typing import Annotated, Any

import keras
import numpy as np
import tensorflow as tf
from pydantic import Field, NonNegativeInt, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv import entry_point
from projects.data import Data, load

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
    judge = keras.Sequential([keras.Input(data.input_shape), *body, layers.Dense(data.classes)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    judge.compile(keras.optimizers.Adam(3e-3), loss)
    judge.fit(data.x_train, data.y_train, epochs=epochs, verbose=0)
    return judge


def spread(x: Any, y: Any) -> float:
    """How much images of one class differ: root mean square distance of a pixel to its mean."""
    return float(np.sqrt(np.mean([np.var(x[y == label], axis=0).mean() for label in set(y)])))


def main(
    data: str = "digits",
    epochs: PositiveInt = 60,
    batch_size: PositiveInt = 32,
    lr: Annotated[float, Field(gt=0)] = 1e-3,
    seed: NonNegativeInt = 0,
) -> None:
    """Trains a generator and a discriminator against each other.

    Args:
        data: digits, keras:mnist (or another of keras.datasets), or the path of an .npz file.
        epochs: Epochs of the training.
        batch_size: Real images per step, and drawn ones.
        lr: Learning rate of both Adams.
        seed: Of weights, noise, order of examples and choice of the validation split.
    """
    params = dict(locals())
    images = load(data, seed=seed)
    keras.utils.set_random_seed(seed)
    generator, discriminator = generator_net(images), discriminator_net(images)
    optimizers = {
        "generator": keras.optimizers.Adam(lr, beta_1=0.5),
        "discriminator": keras.optimizers.Adam(lr, beta_1=0.5),
    }
    loop = mka.Loop(generator, optimizers=optimizers, callbacks=[mka.MlflowLogger()], verbose=2)

    def update(name: str, model: keras.Model, tape: tf.GradientTape, loss: Any) -> None:
        gradients = tape.gradient(loss, model.trainable_variables)
        pairs = zip(gradients, model.trainable_variables, strict=True)
        optimizers[name].apply_gradients(pairs)

    @tf.function(reduce_retracing=True)
    def train_step(real: Any, label: Any) -> None:
        noise = tf.random.normal((tf.shape(real)[0], NOISE))
        with tf.GradientTape() as tape:
            drawn = generator([noise, label], training=True)
            on_real = discriminator([real, label], training=True)
            on_drawn = discriminator([drawn, label], training=True)
            loss = crossentropy(tf.ones_like(on_real), on_real)
            loss += crossentropy(tf.zeros_like(on_drawn), on_drawn)
        update("discriminator", discriminator, tape, loss)
        loop.record(discriminator_loss=loss)

        with tf.GradientTape() as tape:
            drawn = generator([noise, label], training=True)
            on_drawn = discriminator([drawn, label], training=True)
            loss = crossentropy(tf.ones_like(on_drawn), on_drawn)
        update("generator", generator, tape, loss)
        loop.record(generator_loss=loss)

    examples = tf.data.Dataset.from_tensor_slices(images.train)
    batches = examples.shuffle(len(images.y_train)).batch(batch_size)
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(len(images.y_test), NOISE)).astype(np.float32)
    grid_noise = rng.normal(size=(ROWS * images.classes, NOISE)).astype(np.float32)
    columns = np.tile(np.arange(images.classes, dtype=np.int32), ROWS)

    with mka.track("gan", params=params, tags={"technique": "gan"}) as run:
        run.log_dataset(images.dataset, context="training")
        judge = judge_net(images, epochs=min(epochs, 20))

        def recognised(x: Any) -> float:
            return float(np.mean(np.argmax(judge(x), axis=1) == images.y_test))

        for epoch in loop.epochs(epochs):
            for real, label in loop.batches(batches):
                train_step(real, label)
            drawn = generator([noise, images.y_test])
            loop.log(val_recognised=recognised(drawn))
            if epoch % -(-epochs // MOST_GRIDS) == 0 or epoch == epochs - 1:
                samples = tf.reshape(
                    generator([grid_noise, columns]), (ROWS, images.classes, *images.input_shape)
                )
                framed = np.pad(
                    samples, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=1
                )
                grid = np.concatenate(np.concatenate(framed, axis=1), axis=1)  # side by side
                grid = grid.repeat(4, axis=0).repeat(4, axis=1)
                run.log_image(grid, key="samples", step=run.axis.batches)

        drawn = generator([noise, images.y_test]).numpy()
        scores = {
            "recognised": recognised(drawn),
            "real_recognised": recognised(images.x_test),
            "spread": spread(drawn, images.y_test) / spread(images.x_test, images.y_test),
        }
        inputs = [noise, images.y_test]
        mka.log_finished_model(
            run, generator, inputs, name="generator", scores=scores, dataset=images.dataset
        )
        claims = mka.log_claims(
            run,
            mka.Claim(
                "recognised",
                "share of drawings that a classifier of real images reads as what was asked for",
                scores["recognised"],
                at_least=0.9,
            ),
            mka.Claim(
                "spread",
                "how much drawings of one class differ, real images being 1",
                scores["spread"],
                at_least=0.6,
            ),
        )
        result = (
            f"A classifier reads {scores['recognised']:.1%} of the drawings as what was asked for "
            f"(of real test images {scores['real_recognised']:.1%}); drawings of one class differ "
            f"{scores['spread']:.2f} times as much as real ones."
        )
        run.describe(f"{result}\n\n{claims}")
    print(f"{result}\n{claims}")


if __name__ == "__main__":
    entry_point.run(main)

"""A custom training loop: every line of what `fit` does.

Training and validation steps are `tf.function`s around a `GradientTape`, with a custom loss (focal,
Lin et al. 2017, arXiv:1708.02002), metrics, gradients clipped by their global norm and a rate that
falls from epoch to epoch. `Loop` adds what `fit` has around the step: callbacks (EarlyStopping,
checkpoints of the best model), progress, and the record of each step.

Two nested runs with the same keys: the loop, and `fit` with the same weights, examples, loss,
clipping and rates. What to expect: no difference. Both make the same updates, up to the rounding of
float32. Half a minute of computing on two cores.

    mlflow run . -e custom_loop --env-manager local -P gamma=1
"""

from typing import Annotated, Any

import keras
import tensorflow as tf
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.training.steps import clip_by_global_norm
from projects.data import Data, load
from projects.parameters import BatchSize, Examples, Seed, Target


def net(data: Data) -> keras.Model:
    """One hidden layer; no dropout, whose random numbers would differ between two graphs."""
    body = [*data.entrance(), keras.layers.Dense(64, activation="relu")]
    head = keras.layers.Dense(data.classes)
    return keras.Sequential([*body, head])


def focal(gamma: float) -> Any:
    """The mean of `(1 - p)^gamma · -log p` over a batch, p being the label's probability."""

    def loss(labels: Any, logits: Any) -> Any:
        labels = tf.reshape(tf.cast(labels, tf.int32), [-1])
        log_p = tf.gather(tf.nn.log_softmax(logits), labels, batch_dims=1)
        return tf.reduce_mean(-((1 - tf.exp(log_p)) ** gamma) * log_p)

    return loss


def callbacks() -> list[keras.callbacks.Callback]:
    """The callbacks of both trainings."""
    stop = keras.callbacks.EarlyStopping("val_loss", patience=5)
    return [mka.MlflowLogger(), mka.Checkpoints("val_loss"), stop]


def by_loop(model: keras.Model, data: Any, loss_fn: Any, rates: list[float], clip: float) -> None:
    """Trains with a tape: one epoch for each rate, unless EarlyStopping ends it before."""
    optimizer = keras.optimizers.SGD(rates[0], momentum=0.9)
    accuracy, val_accuracy = (keras.metrics.SparseCategoricalAccuracy() for _ in range(2))
    val_loss = keras.metrics.Mean()
    loop = mka.Loop(model, optimizers=optimizer, callbacks=callbacks(), verbose=0)

    @tf.function
    def train_step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            loss = loss_fn(y, logits)
        gradients = tape.gradient(loss, model.trainable_variables)
        clipped, norm = clip_by_global_norm(gradients, clip)
        optimizer.apply(clipped, model.trainable_variables)
        accuracy.update_state(y, logits)
        loop.record(loss=loss, norm_before_clipping=norm)

    @tf.function
    def validation_step(x: Any, y: Any) -> None:
        logits = model(x, training=False)
        val_loss.update_state(loss_fn(y, logits), sample_weight=tf.shape(x)[0])
        val_accuracy.update_state(y, logits)

    metrics = {"accuracy": accuracy, "val_loss": val_loss, "val_accuracy": val_accuracy}
    train, validation = data
    for epoch in loop.epochs(len(rates)):
        optimizer.learning_rate = rates[epoch]
        for metric in metrics.values():
            metric.reset_state()
        for x, y in loop.batches(train):
            train_step(x, y)
        for x, y in validation:
            validation_step(x, y)
        loop.log(**{name: metric.result() for name, metric in metrics.items()})


def by_fit(model: keras.Model, data: Any, loss_fn: Any, rates: list[float], clip: float) -> None:
    """Trains in the same way by `fit`."""
    optimizer = keras.optimizers.SGD(rates[0], momentum=0.9, global_clipnorm=clip)
    model.compile(optimizer, loss=loss_fn, metrics=["accuracy"])
    rate = keras.callbacks.LearningRateScheduler(lambda epoch: rates[epoch])
    settings = {"epochs": len(rates), "validation_data": data[1], "shuffle": False, "verbose": 0}
    model.fit(data[0], callbacks=[rate, *callbacks()], **settings)


def main(
    data: Examples = "digits",
    target: Target = "",
    epochs: PositiveInt = 15,
    batch_size: BatchSize = 32,
    lr: PositiveFloat = 0.1,
    decay: Annotated[float, Field(gt=0, le=1)] = 0.9,
    gamma: NonNegativeFloat = 2.0,
    clip: PositiveFloat = 1.0,
    seed: Seed = 0,
) -> None:
    """Trains one net by a loop of its own and by fit, and compares the two.

    Args:
        epochs: Epochs of each training, if EarlyStopping does not end it before.
        lr: Learning rate of the first epoch.
        decay: What the rate is multiplied by from epoch to epoch.
        gamma: Gamma of the focal loss; 0 is cross-entropy.
        clip: Largest global norm of the gradients of a step.
    """
    params = dict(locals())
    images = load(data, target=target, seed=seed, kinds=("images", "features"))
    rates = [lr * decay**epoch for epoch in range(epochs)]
    # One order for all epochs: fit opens the dataset once more, and would get another one.
    train, validation = map(tf.data.Dataset.from_tensor_slices, (images.train, images.validation))
    train = train.shuffle(len(images.x_train), seed=seed, reshuffle_each_iteration=False)
    batches, weights = (train.batch(batch_size), validation.batch(batch_size)), {}

    with mka.technique("custom_loop", params, dataset=images, variants=2) as technique:
        for name, train_by in {"loop": by_loop, "fit": by_fit}.items():
            with technique.variant(name):
                model = net(images)
                train_by(model, batches, focal(gamma), rates, clip)
                technique.finish(model, *images.test)
            weights[name] = model.get_weights()

        technique.compare()
        accuracy = technique.final("accuracy")
        technique.conclude(
            f"Test accuracy {accuracy['loop']:.1%} by the loop, {accuracy['fit']:.1%} by fit.",
            mka.Claim(
                "weight_difference",
                "largest difference of a weight after the loop and after fit",
                mka.largest_difference(weights["loop"], weights["fit"]),
                at_most=1e-5,
            ),
        )


if __name__ == "__main__":
    entry_point.run(main)

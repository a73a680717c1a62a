"""The same training written in several ways: `fit`, `Loop` and the loop of TensorFlow's guide."""

import itertools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

import mlflow_keras_adv as mka
from projects.measuring.loggers import Logger, bare
from projects.measuring.turns import ENDLESS, Training, Turns

Build = Callable[[], keras.Model]


def loss_function() -> keras.losses.Loss:
    """The loss of models that give logits."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fit(
    build: Build, data: tf.data.Dataset, logger: Logger = bare, *, steps_per_execution: int = 1
) -> Training:
    """`model.fit` with the callbacks of a logger."""

    def train(turns: Turns) -> None:
        model = build()
        model.compile(
            "adam", loss_function(), metrics=["accuracy"], steps_per_execution=steps_per_execution
        )
        with logger() as (callbacks, turns.settle):
            model.fit(data, epochs=ENDLESS, callbacks=[*callbacks, turns], shuffle=False, verbose=0)

    return train


def loop(
    build: Build, data: tf.data.Dataset, logger: Logger = bare, *, steps_per_call: int = 1
) -> Training:
    """The same in a `Loop`: `batches` for single steps, `run` for several in one call."""

    def train(turns: Turns) -> None:
        model, optimizer, loss_fn = build(), keras.optimizers.Adam(), loss_function()
        accuracy = keras.metrics.SparseCategoricalAccuracy()
        with logger() as (callbacks, turns.settle):
            loop = mka.Loop(model, optimizers=optimizer, callbacks=[*callbacks, turns], verbose=0)

            @tf.function
            def train_step(x: Any, y: Any) -> None:
                with tf.GradientTape() as tape:
                    logits = model(x, training=True)
                    loss = loss_fn(y, logits)
                gradients = tape.gradient(loss, model.trainable_weights)
                optimizer.apply(gradients, model.trainable_weights)
                accuracy.update_state(y, logits)
                loop.record(loss=loss)

            for _ in loop.epochs(ENDLESS):
                if steps_per_call > 1:
                    loop.run(train_step, data, steps_per_call=steps_per_call)
                else:
                    for x, y in loop.batches(data):
                        train_step(x, y)
                loop.log(accuracy=accuracy.result())
                accuracy.reset_state()

    return train


def guide(build: Build, data: tf.data.Dataset) -> Training:
    """The loop of TensorFlow's guide "Writing a training loop from scratch", which logs nothing."""

    def train(turns: Turns) -> None:
        model, optimizer, loss_fn = build(), keras.optimizers.Adam(), loss_function()
        accuracy = keras.metrics.SparseCategoricalAccuracy()
        model.stop_training = False
        turns.set_model(model)

        @tf.function
        def train_step(x: Any, y: Any) -> Any:
            with tf.GradientTape() as tape:
                logits = model(x, training=True)
                loss = loss_fn(y, logits)
            gradients = tape.gradient(loss, model.trainable_weights)
            optimizer.apply(gradients, model.trainable_weights)
            accuracy.update_state(y, logits)
            return loss

        for epoch in itertools.count():
            turns.on_epoch_begin(epoch)
            for x, y in data:
                train_step(x, y)
            float(accuracy.result())
            accuracy.reset_state()
            turns.on_epoch_end(epoch)
            if model.stop_training:
                break

    return train

"""The command that the tests of resuming run, kill and run again: one small training in a run.

`python -m tests.callbacks.resumable_training RUN_ID BACKUP_FOLDER HOW SAVE_FREQ KILLED_AT`
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import mlflow_keras_adv as mka

X = np.random.default_rng(0).normal(size=(96, 8)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 3, 96)
BATCH, BATCHES, EPOCHS = 16, 6, 4
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net() -> keras.Model:
    """The model, before its training."""
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(16, activation="relu")
    return keras.Sequential([keras.Input((8,)), hidden, keras.layers.Dense(3)])


def new_optimizer() -> keras.optimizers.Optimizer:
    """One whose state matters: without it the values of a resumed training would differ."""
    return keras.optimizers.SGD(0.1, momentum=0.9)


class Ends(keras.callbacks.Callback):
    """Calls `end` when the weights have seen so many batches."""

    def __init__(self, after: int, end: Callable[[], None]) -> None:
        super().__init__()
        self._after, self._end, self._seen = after, end, 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if int(self.model.optimizer.iterations) == self._after:
            self._end()


def train(how: str, callbacks: list[Any]) -> None:
    """Trains a fresh model, as `fit` or as a loop."""
    model, optimizer = net(), new_optimizer()
    if how == "fit":
        model.compile(optimizer, LOSS)
        model.fit(
            X, Y, batch_size=BATCH, shuffle=False, epochs=EPOCHS, verbose=0, callbacks=callbacks
        )
        return
    loop = mka.Loop(model, optimizers=optimizer, callbacks=callbacks, verbose=0)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(BATCH)

    @tf.function
    def step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = LOSS(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        loop.record(loss=loss)

    for _ in loop.epochs(EPOCHS):
        for x, y in loop.batches(data):
            step(x, y)


def kill() -> None:
    """Ends this process without a word."""
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """What the command does."""
    run_id, folder, how, save_freq, killed_at = sys.argv[1:]
    frequency = save_freq if save_freq == "epoch" else int(save_freq)
    backup = keras.callbacks.BackupAndRestore(
        Path(folder), save_freq=frequency, double_checkpoint=True
    )
    with mka.track(run_id=run_id, log_system_metrics=False):
        train(how, [mka.MlflowLogger(), backup, Ends(int(killed_at), kill)])


if __name__ == "__main__":
    main()

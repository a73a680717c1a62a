"""What is measured: three models on data that is made up, trained in several ways."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from projects.measuring.loggers import loggers, ours
from projects.measuring.loops import Build, fit, guide, loop
from projects.measuring.prices import Price
from projects.measuring.turns import race

layers = keras.layers


def mlp() -> keras.Model:
    """So small that Python is most of its step."""
    return keras.Sequential([keras.Input((64,)), layers.Dense(32, "relu"), layers.Dense(10)])


def cnn() -> keras.Model:
    """A convolutional net for images of 28x28."""
    body = [layers.Conv2D(16, 3, activation="relu"), layers.MaxPooling2D()]
    body += [layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten()]
    return keras.Sequential([keras.Input((28, 28, 1)), *body, layers.Dense(10)])


def large() -> keras.Model:
    """1.3 million parameters."""
    body = [layers.Dense(1024, "relu"), layers.Dense(512, "relu")]
    return keras.Sequential([keras.Input((784,)), *body, layers.Dense(10)])


class Subject(NamedTuple):
    """A model, and how much of it makes an epoch: the steps of the larger ones take longer."""

    build: Build
    batch_size: int
    share_of_steps: float


MODELS = {
    "mlp": Subject(mlp, batch_size=32, share_of_steps=1.0),
    "cnn": Subject(cnn, batch_size=32, share_of_steps=0.2),
    "large": Subject(large, batch_size=128, share_of_steps=0.1),
}


def made_up(subject: Subject, steps: int, seed: int) -> tf.data.Dataset:
    """`steps` batches that are in memory as such: reading them takes next to no time."""
    rng = np.random.default_rng(seed)
    shape = (steps, subject.batch_size)
    x = rng.normal(size=(*shape, *subject.build().input_shape[1:])).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices((x, rng.integers(0, 10, size=shape)))


def prices_of_loggers(model: str, epochs: int, steps: int, seed: int) -> list[Price]:
    """What each logger makes of the time that `fit` takes."""
    subject = MODELS[model]
    steps = max(int(steps * subject.share_of_steps), 1)
    data = made_up(subject, steps, seed)
    others = {name: fit(subject.build, data, logger) for name, logger in loggers().items()}
    reference = fit(subject.build, data)
    return [
        Price.of(pairs, model=model, variant=name, reference="bare", steps=steps)
        for name, pairs in race(reference, others, rounds=epochs, seed=seed).items()
    ]


def prices_of_loops(epochs: int, steps: int, seed: int) -> list[Price]:
    """What `Loop` makes of the time that `fit` and the guide's loop take."""
    data = made_up(MODELS["mlp"], steps, seed)
    trainings = {
        "fit": fit(mlp, data),
        "fit_8": fit(mlp, data, steps_per_execution=8),
        "guide": guide(mlp, data),
        "loop": loop(mlp, data),
        "loop_8": loop(mlp, data, steps_per_call=8),
        "loop_8_logged": loop(mlp, data, ours, steps_per_call=8),
    }
    races = {
        "fit": ["guide", "loop"],
        "fit_8": ["loop_8", "loop_8_logged"],
        "guide": ["loop", "loop_8", "loop_8_logged"],
    }
    return [
        Price.of(pairs, model="mlp", variant=name, reference=reference, steps=steps)
        for reference, names in races.items()
        for name, pairs in race(
            trainings[reference],
            {name: trainings[name] for name in names},
            rounds=epochs,
            seed=seed,
        ).items()
    ]

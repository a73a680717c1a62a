"""The price of the record: what logging costs a training, and what `Loop` saves it.

Trainings of one model on the same data take turns in one process, epoch by epoch: bare `fit`, `fit`
with `MlflowLogger`, and with the loggers that people know; then `Loop` against `fit` and against
the loop of TensorFlow's guide. What counts are ratios of neighbouring epochs, medians with
quartiles: times of a busy machine mean little. Data and models are made up, small and in memory, so
that a logger has nothing to hide behind.

Then two questions about long trainings: do time or memory grow over 100,000 steps, and does a
training wait while a million values are delivered beside it? And three about searches with Keras
Tuner: what does the record add to a trial, does that grow over 1,000 trials, and how much faster
are two workers than one?

The claims are checked at the end, and those that do not hold are named. Fifteen minutes on two
cores that have nothing else to do, ten of them for the searches.

    mlflow run . -e benchmark --env-manager local -P what=fit -P store=http
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Annotated, Any, Literal, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from pydantic import Field, NonNegativeInt, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv import entry_point
from projects.measuring.endurance import Delivery, Growth, measure_delivery, measure_growth
from projects.measuring.loggers import loggers, ours
from projects.measuring.loops import Build, fit, guide, loop
from projects.measuring.prices import Price, data_frame, figure, metrics, tables
from projects.measuring.searches import Searches, measure_searches, measure_workers
from projects.measuring.stores import scratch_store, tracking_in
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

# Median ratios that are claimed: (model, variant, reference).
LIMITS = {
    ("mlp", "ours", "bare"): 1.10,
    ("cnn", "ours", "bare"): 1.03,
    ("large", "ours", "bare"): 1.03,
    ("mlp", "loop_8", "fit_8"): 1.0,
    ("mlp", "loop_8", "guide"): 1.0,
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


def claims(
    prices: list[Price],
    growth: Growth | None,
    delivery: Delivery | None,
    searches: Searches | None = None,
) -> dict[str, bool]:
    """What is claimed of the parts that were measured, and whether it holds."""
    found = {
        f"{price.variant} on {price.model} at most {limit} times {price.reference}": (
            price.ratio <= limit
        )
        for price in prices
        if (limit := LIMITS.get((price.model, price.variant, price.reference))) is not None
    }
    if growth is not None:
        found["steps grow no slower"] = growth.time_ratio <= 1.1
        found["memory does not grow"] = growth.memory_bytes <= 16e6
    if delivery is not None:
        found["no wait for the store"] = delivery.longest_handover_ms <= 50
    if searches is not None:
        found["a recorded trial takes at most 1.05 times as long"] = searches.trial_ratio <= 1.05
        found["trials grow no slower"] = searches.growth_ms <= 0.1 * searches.first_ms
    return found


def main(
    what: Literal["all", "fit", "loop", "growth", "delivery", "search", "workers"] = "all",
    store: Literal["sqlite", "http"] = "sqlite",
    epochs: PositiveInt = 10,
    steps: PositiveInt = 200,
    growth_steps: Annotated[int, Field(ge=100)] = 100_000,
    points: PositiveInt = 1_000_000,
    trials: Annotated[int, Field(ge=4)] = 50,
    simulated_trials: Annotated[int, Field(ge=20)] = 1000,
    seed: NonNegativeInt = 0,
) -> None:
    """Measures what the record costs, and checks the claims.

    Args:
        what: fit (the loggers), loop, growth, delivery, search, workers, or all of them.
        store: Where the measured trainings log to: sqlite, a file, or http, a server on this
            machine. Both are temporary; the result goes where every run goes.
        epochs: Timed epochs of each variant, each between two of what it is compared with.
        steps: Steps of an epoch; fewer for the models whose steps take longer.
        growth_steps: Length of the training that must not grow; 100 or more.
        points: Metric values to deliver while a training goes on.
        trials: Trials that train, of a search with the record and of one without (4 or more); the
            first 16 of them for workers.
        simulated_trials: Trials that do nothing, the same; 20 or more.
        seed: Of weights, data and the order of turns.
    """
    params = dict(locals())
    keras.utils.set_random_seed(seed)
    prices: list[Price] = []
    growth = delivery = searches = workers = None
    with (
        mka.track("benchmark", params=params, log_system_metrics=False) as run,
        scratch_store(store) as uri,
        ThreadPoolExecutor(1) as thread,  # where this run, of another store, is not active
    ):

        def measure(name: str, call: Callable[..., Any], *args: Any) -> Any:
            print(f"measuring {name}", flush=True)
            with tracking_in(uri):
                return thread.submit(call, *args).result()

        def publish(name: str, values: dict[str, float]) -> None:
            with run.child(name) as child:
                child.log_metrics({f"final/{key}": value for key, value in values.items()})
            run.log_metrics({f"final/{name}_{key}": value for key, value in values.items()})

        run.set_tags({"technique": "benchmark", "benchmark.store": store})
        for model in MODELS if what in ("all", "fit") else ():
            of_model = measure(model, prices_of_loggers, model, epochs, steps, seed)
            publish(model, metrics(of_model))
            prices += of_model
        if what in ("all", "loop"):
            of_loops = measure("loop", prices_of_loops, epochs, steps, seed)
            publish("loop", metrics(of_loops))
            prices += of_loops
        if what in ("all", "growth"):
            growth = measure("growth", measure_growth, growth_steps)
            publish("growth", asdict(growth))
        if what in ("all", "delivery"):
            delivery = measure("delivery", measure_delivery, points)
            publish("delivery", asdict(delivery))
        if what in ("all", "search"):
            searches = measure("searches", measure_searches, trials, simulated_trials, seed)
            publish("searches", asdict(searches))
        if what in ("all", "workers"):
            workers = measure("workers", measure_workers, min(trials, 16), seed)
            publish("workers", asdict(workers))

        checked = claims(prices, growth, delivery, searches)
        missed = [claim for claim, holds in checked.items() if not holds]
        verdict = f"Missed: {'; '.join(missed)}." if missed else "All claims hold."
        others = (growth, delivery, searches, workers)
        report = "\n\n".join([*tables(prices), *(str(each) for each in others if each)])
        run.describe(f"{verdict}\n\n{report}")
        run.log_text(f"{report}\n", "benchmark.md")
        run.log_dict({"missed": missed}, "claims.json")
        if prices:
            run.log_table(data_frame(prices), "benchmark.json")
            run.log_figure(figure(prices), "benchmark.png")
    print(f"\n{report}\n\n{verdict}")


if __name__ == "__main__":
    entry_point.run(main)

"""The cost of recording: how much time logging adds to a training, and how much `Loop` saves.

Trainings of one model on the same data take turns in one process, epoch by epoch: bare `fit`, `fit`
with `MlflowLogger`, and with the loggers that people know; then `Loop` against `fit` and against
the loop of TensorFlow's guide. What counts are ratios of neighbouring epochs, medians with
quartiles: times of a busy machine mean little. Data and models are made up, small and in memory, so
that a logger has nothing to hide behind.

Then two questions about long trainings: do time or memory grow over 100,000 steps, and does a
training wait while a million values are delivered beside it? And three about searches with Keras
Tuner: what does the record add to a trial, does that grow over 1,000 trials, and how much faster
are two workers than one? And what does it add to a step of two workers that train one model?

The claims are checked at the end, and those that do not hold are named. Half an hour on two cores
that have nothing else to do, a third of it for the loggers.

    mlflow run . -e benchmark --env-manager local -P what=fit -P store=http
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Annotated, Any, Literal

import keras
from pydantic import Field, NonNegativeInt, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv import Claim
from mlflow_keras_adv.lessons import entry_point
from projects.measuring.endurance import Delivery, Growth, measure_delivery, measure_growth
from projects.measuring.machines import Machines, measure_machines
from projects.measuring.prices import Price, data_frame, figure, metrics, tables
from projects.measuring.searches import Searches, measure_searches, measure_workers
from projects.measuring.stores import scratch_store, tracking_in
from projects.measuring.subjects import MODELS, prices_of_loggers, prices_of_loops

# Median ratios that are claimed: (model, variant, reference).
LIMITS = {
    ("mlp", "ours", "bare"): 1.10,
    ("cnn", "ours", "bare"): 1.03,
    ("large", "ours", "bare"): 1.03,
    ("mlp", "loop_8", "fit_8"): 1.0,
    ("mlp", "loop_8", "guide"): 1.0,
}


def claims(
    prices: list[Price],
    growth: Growth | None = None,
    delivery: Delivery | None = None,
    searches: Searches | None = None,
    machines: Machines | None = None,
) -> list[Claim]:
    """What is claimed of the parts that were measured."""
    found = []
    for price in prices:
        limit = LIMITS.get((price.model, price.variant, price.reference))
        if limit is not None:
            name = f"{price.model}_{price.variant}_to_{price.reference}"
            text = f"time of a step on {price.model}, {price.variant} over {price.reference}"
            found.append(Claim(name, text, price.ratio, at_most=limit))
    if growth is not None:
        text = f"time of a step in the last tenth of {growth.steps:,} steps over the first"
        found.append(Claim("growth_time", text, growth.time_ratio, at_most=1.1))
        text = "growth of the process between them in bytes"
        found.append(Claim("growth_bytes", text, growth.memory_bytes, at_most=16e6))
    if delivery is not None:
        text = f"longest wait in ms of the training that hands in {delivery.points:,} values"
        found.append(Claim("handover_ms", text, delivery.longest_handover_ms, at_most=50))
    if searches is not None:
        text = "time of a trial with the record over that without"
        found.append(Claim("trial_time", text, searches.trial_ratio, at_most=1.05))
        growing = searches.growth_ms / searches.first_ms
        text = f"growth of the record of a trial over {searches.simulated} trials"
        found.append(Claim("trial_growth", text, growing, at_most=0.1))
    if machines is not None:
        text = f"time of a step on {machines.workers} workers with the record over that without"
        found.append(Claim("machines_ours_to_bare", text, machines.ratio, at_most=1.1))
        more = machines.collectives - machines.bare_collectives
        found.append(
            Claim("machines_collectives", "collective operations it adds", more, at_most=1)
        )
    return found


def main(
    what: Literal[
        "all", "fit", "loop", "growth", "delivery", "search", "workers", "machines"
    ] = "all",
    store: Literal["sqlite", "http"] = "sqlite",
    epochs: PositiveInt = 10,
    steps: PositiveInt = 200,
    growth_steps: Annotated[int, Field(ge=100)] = 100_000,
    points: PositiveInt = 1_000_000,
    trials: Annotated[int, Field(ge=10)] = 50,
    simulated_trials: Annotated[int, Field(ge=20)] = 1000,
    seed: NonNegativeInt = 0,
) -> None:
    """Measures what the record costs, and checks the claims.

    Args:
        what: fit (the loggers), loop, growth, delivery, search, workers, machines, or all of them.
        store: Where the measured trainings log to: sqlite, a file, or http, a server on this
            machine. Both are temporary; the result goes where every run goes.
        epochs: Timed epochs of each variant, each between two of what it is compared with.
        steps: Steps of an epoch; fewer for the models whose steps take longer.
        growth_steps: Length of the training that must not grow; 100 or more.
        points: Metric values to deliver while a training goes on.
        trials: Trials that train, of a search with the record and of one without (10 or more);
            the first 16 of them for workers.
        simulated_trials: Trials that do nothing, the same; 20 or more.
        seed: Seed of weights, data and the order of turns.
    """
    params = dict(locals())
    keras.utils.set_random_seed(seed)
    prices: list[Price] = []
    growth = delivery = searches = workers = machines = None
    with (
        mka.track(
            entry_point.run_name("benchmark"), params=params, log_system_metrics=False
        ) as run,
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

        if what in ("all", "machines"):
            machines = measure("machines", measure_machines, epochs, steps, seed)
            publish("machines", asdict(machines))

        checked = claims(prices, growth, delivery, searches, machines)
        verdict = mka.log_claims(*checked) if checked else ""
        others = (growth, delivery, searches, workers, machines)
        report = "\n\n".join([*tables(prices), *(str(each) for each in others if each)])
        run.describe(f"{report}\n\n{verdict}")
        run.log_text(f"{report}\n", "benchmark.md")
        if prices:
            run.log_table(data_frame(prices), "benchmark.json")
            run.log_figure(figure(prices), "benchmark.png")
    print(f"\n{report}\n\n{verdict}")


if __name__ == "__main__":
    entry_point.run(main)

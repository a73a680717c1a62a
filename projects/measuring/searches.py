"""What the record of a search costs: of trials that train, and of very many that do nothing.

Two searches of the same seed, one with `track_search` and one without, take turns of five trials:
each in a thread of its own, one of them at work at a time. So each turn is compared with its twin,
and what slows the machine down slows both. A turn ends when the store has all of it: what is
delivered beside the next trial is paid for by that trial and by the end of the turn, not by the
twin.
"""

import itertools
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import mlflow
import numpy as np

import mlflow_keras_adv as mka
from mlflow_keras_adv.tracking.ending import settle_ended
from mlflow_keras_adv.tracking.outbox import GRACE_SECONDS
from mlflow_keras_adv.tuner.processes import search_in_processes
from mlflow_keras_adv.tuner.run_ids import read_run_ids

# Of a trial that trains: about a second on a machine that has nothing else to do.
EPOCHS = 2
SAMPLES = 32 * 200
# Trials of a turn.
TURN = 5
# Trials at the begin and at the end of a long search, whose medians are compared.
WINDOW = 50


@dataclass(frozen=True)
class Searches:
    """What recording a search costs.

    Attributes:
        trials: Trials that train, those of a turn compared with their twins.
        trial_ms: Median over the turns of the time of one without the record, in milliseconds.
        trial_ratio: Median time of a turn with the record, as a multiple of its twin's.
        trial_overhead_ms: Median of what the record adds to a trial.
        simulated: Trials that do nothing.
        first_ms: Median of what the record adds to one of `WINDOW` from the third turn on.
        last_ms: The same of the last `WINDOW`.
        growth_ms: By how much the median grows from there to there.
    """

    trials: int
    trial_ms: float
    trial_ratio: float
    trial_overhead_ms: float
    simulated: int
    first_ms: float
    last_ms: float
    growth_ms: float

    def __str__(self) -> str:
        return (
            f"`track_search` makes each of {self.trials} trials of {self.trial_ms:.0f} ms take "
            f"{self.trial_ratio:.3f} times as long ({self.trial_overhead_ms:+.0f} ms). To a trial "
            f"that does nothing it adds {self.first_ms:.0f} ms at the begin and "
            f"{self.last_ms:.0f} ms at the end of {self.simulated:,} trials."
        )


@dataclass(frozen=True)
class Workers:
    """The same search by one worker and by two.

    Attributes:
        trials: Trials of each search.
        one_seconds: From the begin of the first trial to the end of the last, with one worker.
        two_seconds: With two.
        speedup: How many times faster two are.
    """

    trials: int
    one_seconds: float
    two_seconds: float
    speedup: float

    def __str__(self) -> str:
        return (
            f"{self.trials} trials take one worker {self.one_seconds:.0f} s and two "
            f"{self.two_seconds:.0f} s on {os.cpu_count()} cores: {self.speedup:.2f} times as fast."
        )


class Trains(keras_tuner.RandomSearch):
    """Short trainings of a small net."""

    def __init__(self, folder: str, trials: int, seed: int) -> None:
        super().__init__(
            hypermodel=_network,
            objective="val_loss",
            max_trials=trials,
            seed=seed + 1,
            directory=folder,
        )

    def search(self, *args: Any, **kwargs: Any) -> None:
        """On data that is made up."""
        rng = np.random.default_rng(0)
        x = rng.normal(size=(SAMPLES, 32)).astype(np.float32)
        y = rng.integers(0, 10, size=SAMPLES)
        fit = {"batch_size": 32, "epochs": EPOCHS, "validation_data": (x[:320], y[:320])}
        super().search(x, y, verbose=0, **fit)


class Simulated(keras_tuner.RandomSearch):
    """Trials that do nothing."""

    def __init__(self, folder: str, trials: int, seed: int) -> None:
        super().__init__(max_trials=trials, seed=seed + 1, directory=folder)

    def search(self, *args: Any, **kwargs: Any) -> None:
        """Without a word."""
        super().search(verbose=0)

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> float:
        """A formula."""
        return trial.hyperparameters.Float("x", 0.0, 1.0) ** 2


def measure_searches(trials: int, simulated: int, seed: int) -> Searches:
    """Runs both kinds of trials with and without the record."""
    bare, recorded = _twins(Trains, trials, seed)
    nothing, noted = _twins(Simulated, simulated, seed)
    added = 1000 * (noted - nothing)
    first = float(np.median(added[1 : 1 + WINDOW // TURN]))
    last = float(np.median(added[-(WINDOW // TURN) :]))
    return Searches(
        trials=TURN * len(bare),
        trial_ms=1000 * float(np.median(bare)),
        trial_ratio=float(np.median(recorded / bare)),
        trial_overhead_ms=1000 * float(np.median(recorded - bare)),
        simulated=TURN * len(nothing),
        first_ms=first,
        last_ms=last,
        growth_ms=last - first,
    )


def measure_workers(trials: int, seed: int) -> Workers:
    """Runs the same search with one worker and with two."""
    one, two = (_seconds_of(workers, trials, seed) for workers in (1, 2))
    return Workers(trials, one, two, one / two)


def _seconds_of(workers: int, trials: int, seed: int) -> float:
    """From the begin of the first trial to the end of the last: starting processes is left out."""
    with tempfile.TemporaryDirectory(prefix="search-", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-m", "projects.measuring.searches", folder]
        search_in_processes([*command, str(trials), str(seed)], workers=workers)
        run_id = read_run_ids(str(Path(folder) / "untitled_project"))["search"]
    client = mlflow.MlflowClient()
    experiment_id = client.get_run(run_id).info.experiment_id
    runs = client.search_runs([experiment_id], f"tags.mlflow.parentRunId = '{run_id}'")
    begin = min(run.info.start_time for run in runs)
    return (max(run.info.end_time for run in runs) - begin) / 1000


def _network(hp: keras_tuner.HyperParameters) -> keras.Model:
    units = hp.Int("units", 16, 64)
    dense = [keras.layers.Dense(units, "relu"), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((32,)), *dense])
    rate = hp.Float("learning_rate", 1e-4, 1e-2, sampling="log")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    return model


def _twins(
    tuner_class: Callable[[str, int, int], keras_tuner.Tuner], trials: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of a trial, the mean of each turn but the first, without the record and with it."""
    turns = [threading.Semaphore(1), threading.Semaphore(0)]
    marks: list[list[float]] = [[], []]
    failures: list[BaseException] = []

    def search(place: int, folder: str) -> None:
        try:
            tuner = tuner_class(folder, trials, seed)
            if place == 1:
                mka.track_search(tuner)
            begun = itertools.count()

            def next_trial() -> None:
                """Between two trials: after the last of a turn it is the other's."""
                if next(begun) % TURN:
                    return
                settle_ended(GRACE_SECONDS)
                marks[place].append(time.perf_counter())
                turns[1 - place].release()
                if not failures:
                    turns[place].acquire()
                marks[place].append(time.perf_counter())

            tuner.pre_create_trial = next_trial
            turns[place].acquire()
            tuner.search()
        except BaseException as error:
            failures.append(error)
        finally:
            turns[1 - place].release()  # for good

    with tempfile.TemporaryDirectory(prefix="searches-", ignore_cleanup_errors=True) as folder:
        threads = [
            threading.Thread(target=search, args=(place, str(Path(folder) / name)))
            for place, name in enumerate(("bare", "recorded"))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    # Begin and end of each turn lie between the marks; what comes before the first and after the
    # last is no turn. The first one traces what all later ones need.
    seconds = [np.diff(each)[1::2][1 : trials // TURN] / TURN for each in marks]
    return seconds[0], seconds[1]


if __name__ == "__main__":  # a chief or a worker of measure_workers
    mka.track_search(Trains(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))).search()

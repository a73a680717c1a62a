"""A producer: a training's record without the training, at a steady rate.

`python -m tests.faults.producer` imports MLflow once and then forks a producer for each plan that
it reads, which takes milliseconds where a new interpreter takes seconds.
"""

import json
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np

from mlflow_keras_adv.tracking.run import Run, track

# Of the points that are logged with a time of their own.
EPOCH_MS = 1_700_000_000_000
ROWS = 5


@dataclass(frozen=True)
class Plan:
    """What one producer does.

    Attributes:
        uri: The store.
        home: Folder for journals and offline runs.
        record: File that receives a line after each step: what was handed in for certain.
        name: Of the run.
        steps: How many steps, or until `stop` exists if that comes later.
        stop: File to wait for; empty for none.
        pause: Seconds from step to step.
        artifact_every: Steps from artifact to artifact; 0 for none.
        odd: Whether to log what no store takes as well.
        clock_back_at: Step at which the clock steps back by an hour; 0 for never.
        file_bytes: Length that no file may exceed; 0 for any. Like a full disk.
        exit_at: Step at which the process ends by `os._exit`; 0 for never.
        environment: More variables.
        logger: "track"; or MLflow's own "synchronous" or "asynchronous" logging, or "callback", its
            `MlflowCallback` in a real `fit`.
    """

    uri: str
    home: str
    record: str
    name: str
    steps: int
    stop: str = ""
    pause: float = 0.01
    artifact_every: int = 0
    odd: bool = False
    clock_back_at: int = 0
    file_bytes: int = 0
    exit_at: int = 0
    environment: tuple[tuple[str, str], ...] = ()
    logger: str = "track"


def loss(step: int) -> float:
    """Value of the metric `loss`, logged at each step."""
    return 1 / step


def norm(step: int) -> float:
    """Value of the metric `norm`, logged in series of `ROWS` steps at `EPOCH_MS + step`."""
    return float(step) ** 0.5


def produce(plan: Plan) -> None:
    """Opens a run, logs, and leaves it."""
    with Path(plan.record).open("a", buffering=1) as record:

        def note(**what: Any) -> None:
            record.write(json.dumps(what) + "\n")

        begin = time.monotonic()
        with track(
            plan.name,
            params={"steps": plan.steps, "optimizer": {"name": "adam"}},
            tags={"producer": plan.name},
            log_system_metrics=False,
        ) as run:
            note(run_id=run.run_id, entered=time.monotonic() - begin)
            if plan.odd:
                log_what_no_store_takes(run)
            if plan.file_bytes:
                resource.setrlimit(resource.RLIMIT_FSIZE, (plan.file_bytes, -1))
            step = 0
            while step < plan.steps or (plan.stop and not Path(plan.stop).exists()):
                step += 1
                if step == plan.clock_back_at:
                    set_clock_back(3600)
                begin = time.monotonic()
                log_step(run, step, plan)
                note(step=step, waited=time.monotonic() - begin)
                if step == plan.exit_at:
                    os._exit(3)
                time.sleep(plan.pause)
            begin = time.monotonic()
        note(left=time.monotonic() - begin, receipt=vars(run.receipt))


def produce_by_mlflow(plan: Plan) -> None:
    """The metric `loss` by MLflow's own means."""
    with Path(plan.record).open("a", buffering=1) as record:
        begin = time.monotonic()
        with mlflow.start_run(run_name=plan.name, tags={"producer": plan.name}) as run:
            record.write(json.dumps({"run_id": run.info.run_id}) + "\n")
            for step in range(1, plan.steps + 1):
                begin = time.monotonic()
                synchronous = plan.logger == "synchronous"
                mlflow.log_metrics({"loss": loss(step)}, step=step, synchronous=synchronous)
                record.write(json.dumps({"step": step, "waited": time.monotonic() - begin}) + "\n")
                time.sleep(plan.pause)
            begin = time.monotonic()
        record.write(json.dumps({"left": time.monotonic() - begin}) + "\n")


def produce_by_callback(plan: Plan) -> None:
    """The metric `loss` of each step of a `fit`, by MLflow's own Keras callback."""
    import keras

    with Path(plan.record).open("a", buffering=1) as record:

        class Timed(mlflow.keras.MlflowCallback):
            def on_batch_end(self, batch: int, logs: Any = None) -> None:
                begin = time.monotonic()
                super().on_batch_end(batch, logs)
                waited = time.monotonic() - begin
                record.write(json.dumps({"step": batch + 1, "waited": waited}) + "\n")
                time.sleep(plan.pause)

        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        x = np.ones((plan.steps, 1), np.float32)
        with mlflow.start_run(run_name=plan.name, tags={"producer": plan.name}) as run:
            record.write(json.dumps({"run_id": run.info.run_id}) + "\n")
            logger = Timed(log_every_epoch=False, log_every_n_steps=1)
            model.fit(x, x, batch_size=1, callbacks=[logger], verbose=0)
            begin = time.monotonic()
        record.write(json.dumps({"left": time.monotonic() - begin}) + "\n")


def log_step(run: Run, step: int, plan: Plan) -> None:
    """What a training logs at a step."""
    run.log_metrics({"loss": loss(step)}, step=step)
    if step % ROWS == 0:
        steps = list(range(step - ROWS + 1, step + 1))
        run.log_series(
            {"norm": np.array([norm(each) for each in steps])},
            steps=steps,
            timestamps_ms=[EPOCH_MS + each for each in steps],
        )
    if plan.artifact_every and step % plan.artifact_every == 0:
        run.log_text(f"step {step}", f"notes/{step}.txt")


def log_what_no_store_takes(run: Run) -> None:
    """Values, keys and texts at the limits of MLflow, and beyond."""
    run.log_metrics({"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}, step=1)
    run.log_metrics({"a [forbidden] key, 100 %": 1.0, "k" * 300: 2.0}, step=1)
    run.log_metrics({"text": "seven"}, step=1)  # type: ignore[dict-item]
    run.log_params({"long": "x" * 6001, "[layers]": {"units": 64}})
    run.log_params({f"many/{number}": number for number in range(10_000)})


def set_clock_back(seconds: int) -> None:
    """Has the clock of this process step back."""
    time_ns, now = time.time_ns, time.time
    time.time_ns = lambda: time_ns() - seconds * 1_000_000_000
    time.time = lambda: now() - seconds


PRODUCERS = {"track": produce, "callback": produce_by_callback}


def main() -> None:
    """Forks a producer for each plan on stdin; says its process id, and its end when asked."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(json.dumps("ready"), flush=True)
    ended: dict[int, int] = {}
    while line := sys.stdin.readline():
        asked = json.loads(line)
        if "poll" in asked:
            pid = asked["poll"]
            if pid not in ended:
                with suppress(ChildProcessError):
                    found, status = os.waitpid(pid, os.WNOHANG)
                    if found:
                        ended[pid] = os.waitstatus_to_exitcode(status)
            print(json.dumps(ended.get(pid)), flush=True)
            continue
        log = asked.pop("log")
        pid = os.fork()
        if pid == 0:
            said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(said, 1)
            os.dup2(said, 2)
            plan = Plan(**asked)
            os.environ.update({"MLFLOW_TRACKING_URI": plan.uri, "MLFLOW_KERAS_ADV_HOME": plan.home})
            os.environ.update(dict(plan.environment))
            PRODUCERS.get(plan.logger, produce_by_mlflow)(plan)
            return
        print(json.dumps(pid), flush=True)


if __name__ == "__main__":
    main()

"""What the record adds to a step of several workers, which add their gradients up."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import mlflow
import numpy as np
import tensorflow as tf

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons.local_workers import on_local_workers

BATCH = 64  # of all workers
WORKERS = 2


@dataclass(frozen=True)
class Machines:
    """Time of a step of `Loop` with `MlflowLogger`, over that of the bare loop.

    Attributes:
        workers: Processes that train together.
        rounds: Timed epochs of each loop, which take turns.
        ratio: Median over neighbouring epochs.
        lower_quartile: Lower quartile of the ratios.
        upper_quartile: Upper quartile of the ratios.
        step_ms: Median time of a step, in milliseconds.
        bare_step_ms: That of the bare loop.
        collectives: Collective operations of a step.
        bare_collectives: Those of the bare loop.
    """

    workers: int
    rounds: int
    ratio: float
    lower_quartile: float
    upper_quartile: float
    step_ms: float
    bare_step_ms: float
    collectives: int
    bare_collectives: int

    def __str__(self) -> str:
        return (
            f"A step on {self.workers} workers of this machine takes {self.ratio:.2f} times as "
            f"long with the record ({self.lower_quartile:.2f} to {self.upper_quartile:.2f}, "
            f"{self.rounds} rounds): {self.step_ms:.2f} ms instead of {self.bare_step_ms:.2f}, "
            f"with {self.collectives} collective operations instead of {self.bare_collectives}."
        )


def measure_machines(epochs: int, steps: int, seed: int) -> Machines:
    """Trains two nets on workers of this machine, one of them with the record, by turns.

    Args:
        epochs: Timed epochs of each.
        steps: Steps of an epoch.
        seed: Of weights and data.
    """
    arguments = {"epochs": epochs, "steps": steps, "seed": seed}
    told = {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    chief, *_ = on_local_workers(by_turns, workers=WORKERS, arguments=arguments, environment=told)
    ours, bare = np.array(chief["ours"]), np.array(chief["bare"])
    # Each epoch of ours stands between two bare ones.
    ratios = np.concatenate([ours / bare[:-1], ours / bare[1:]])
    lower, ratio, upper = np.exp(np.quantile(np.log(ratios), [0.25, 0.5, 0.75])).tolist()
    return Machines(
        workers=WORKERS,
        rounds=epochs,
        ratio=ratio,
        lower_quartile=lower,
        upper_quartile=upper,
        step_ms=1000 * float(np.median(ours)) / steps,
        bare_step_ms=1000 * float(np.median(bare)) / steps,
        collectives=chief["collectives"],
        bare_collectives=chief["bare_collectives"],
    )


def by_turns(epochs: int, steps: int, seed: int) -> dict[str, Any]:
    """What each worker does: epochs of a bare loop and of one on record, one after the other."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    keras.utils.set_random_seed(seed)
    x = np.random.default_rng(seed).normal(size=(BATCH * steps, 64)).astype(np.float32)
    data = tf.data.Dataset.from_tensor_slices((x, (x[:, 0] > 0).astype(np.int64))).batch(BATCH)
    shares = strategy.experimental_distribute_dataset(data)
    bare_step, _, _ = _step(strategy, lambda _: None)
    loops: list[mka.Loop] = []
    step, model, optimizer = _step(strategy, lambda loss: loops[0].record(loss=loss))
    loops.append(mka.Loop(model, optimizers=optimizer, callbacks=[mka.MlflowLogger()], verbose=0))
    found: dict[str, Any] = {"ours": [], "bare": []}

    def timed(batches: Any, made: Any, name: str, epoch: int) -> None:
        begin = time.perf_counter()
        for batch in batches:
            loss = made(*batch)
        float(loss)
        if epoch:  # the first one traces
            found[name].append(time.perf_counter() - begin)

    with mka.track("machines", log_system_metrics=False):
        for epoch in loops[0].epochs(epochs + 1):
            timed(shares, bare_step, "bare", epoch)
            timed(loops[0].batches(shares), step, "ours", epoch)
            if epoch == 0:
                batch = next(iter(shares))
                found["collectives"] = _collectives(step, batch)
                found["bare_collectives"] = _collectives(bare_step, batch)
        timed(shares, bare_step, "bare", epochs)
    return found


def _step(strategy: Any, record: Callable[[Any], None]) -> tuple[Any, keras.Model, Any]:
    """The step of TensorFlow's guide, for a net of its own."""
    with strategy.scope():
        hidden = keras.layers.Dense(64, activation="relu")
        model = keras.Sequential([keras.Input((64,)), hidden, keras.layers.Dense(2)])
        optimizer = keras.optimizers.Adam()
        optimizer.build(model.trainable_variables)

    def worker_step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x, training=True))
            loss = tf.nn.compute_average_loss(losses, global_batch_size=BATCH)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    @tf.function
    def step(x: Any, y: Any) -> Any:
        loss = strategy.reduce("SUM", strategy.run(worker_step, args=(x, y)), axis=None)
        record(loss)
        return loss

    return step, model, optimizer


def _collectives(step: Any, batch: Any) -> int:
    graph = step.get_concrete_function(*batch).graph.as_graph_def()
    nodes = [*graph.node, *(node for each in graph.library.function for node in each.node_def)]
    return sum(node.op.startswith("Collective") for node in nodes)

"""Distributed training: several workers, each with a share of every batch, train one model.

Each worker computes the gradient of its share. The optimizer sums these gradients over all workers
before the update, so that each of them makes the same update, and all have equal weights all the
time. If the loss is divided by the size of the whole batch, the sum is the gradient of the whole
batch: the training is that of one process, and only the order of a few sums differs. This is
`tf.distribute.MultiWorkerMirroredStrategy`, and the loop of TensorFlow's guide.

Two nested runs with the same keys: one process, and `--workers` processes that this script starts
on this machine (`lessons/local_workers.py`; docs/machines.md says how to start them on several).
They are one training and have one run: the first of them writes it. What to expect: the same curve.
On one machine it takes longer, since a step of this small net is shorter than the sum over workers.
A minute or two of computing on two cores.

    mlflow run . -e distributed --env-manager local -P workers=2
"""

import shutil
import tempfile
import time
from typing import Annotated, Any

import keras
import mlflow
import numpy as np
import tensorflow as tf
from pydantic import Field, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.local_workers import on_local_workers
from mlflow_keras_adv.ranks import this_rank
from projects.data import Data, load
from projects.parameters import BatchSize, Examples, Seed, Target


def net(data: Data) -> keras.Model:
    """One hidden layer."""
    body = [*data.entrance(), keras.layers.Dense(64, activation="relu")]
    return keras.Sequential([*body, keras.layers.Dense(data.classes)])


def train(params: dict[str, Any], weights: str, strategy: Any = None) -> float:
    """Trains on all workers of a strategy, each of which calls this.

    Args:
        params: Those of `main`.
        weights: File with the weights to begin with; the chief leaves the trained ones there.
        strategy: How many workers there are, and which of them this is. Default: those of
            `TF_CONFIG`.

    Returns:
        Milliseconds of a step in the last epoch.
    """
    # Before anything else of TensorFlow: it connects the workers.
    strategy = strategy or tf.distribute.MultiWorkerMirroredStrategy()
    keras.utils.set_random_seed(params["seed"])
    images, batch_size = loaded(params), params["batch_size"]
    examples = tf.data.Dataset.from_tensor_slices(images.train)
    examples = examples.shuffle(len(images.x_train), reshuffle_each_iteration=False)
    batches = examples.batch(batch_size, drop_remainder=True)
    shares = strategy.experimental_distribute_dataset(batches)
    with strategy.scope():  # what has variables
        model = net(images)
        optimizer = keras.optimizers.SGD(params["lr"], momentum=0.9)
        optimizer.build(model.trainable_variables)
    model.load_weights(weights)
    loop = mka.Loop(model, optimizers=optimizer, callbacks=[mka.MlflowLogger()], verbose=0)

    def worker_step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x, training=True))
            # Not the mean of the share: all shares add up to the mean of the batch.
            loss = tf.nn.compute_average_loss(losses, global_batch_size=batch_size)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        loop.record(loss=loss)  # added up, too

    @tf.function
    def train_step(x: Any, y: Any) -> None:
        strategy.run(worker_step, args=(x, y))

    with mka.track():  # of all workers the first one writes to it
        for _ in loop.epochs(params["epochs"]):
            begin = time.monotonic()
            for x, y in loop.batches(shares):
                train_step(x, y)
            seconds = time.monotonic() - begin
            answers = model(images.x_validation).numpy().argmax(axis=1)
            loop.log(val_accuracy=np.mean(answers == images.y_validation))
    if this_rank().is_chief:
        model.save_weights(weights)
    return 1000 * seconds / (len(images.x_train) // batch_size)


def loaded(params: dict[str, Any]) -> Data:
    """The data; each worker reads them."""
    kinds: Any = ("images", "features")
    return load(params["data"], target=params["target"], seed=params["seed"], kinds=kinds)


def losses_of(run: mka.Run) -> dict[int, float]:
    """The curve of a run: the loss of each step that is on record."""
    points = mlflow.MlflowClient().get_metric_history(run.run_id, "batch/loss")
    if len({point.step for point in points}) < len(points):
        raise RuntimeError("A step is on record twice.")
    return {point.step: point.value for point in points}


def main(
    data: Examples = "digits",
    target: Target = "",
    epochs: PositiveInt = 5,
    batch_size: BatchSize = 64,
    lr: PositiveFloat = 0.05,
    workers: Annotated[PositiveInt, Field(le=16)] = 2,
    seed: Seed = 0,
) -> None:
    """Trains one net in one process and on several workers, and compares the two.

    Args:
        epochs: Epochs of each training.
        batch_size: Examples per step, of all workers together.
        lr: Learning rate.
        workers: How many processes train together.
    """
    params = dict(locals())
    images, together = loaded(params), f"{workers} workers"
    with (
        mka.technique("distributed", params, dataset=images, variants=2) as technique,
        tempfile.TemporaryDirectory() as folder,
    ):
        model, milliseconds, trained = net(images), {}, {}
        model.save_weights(begin := f"{folder}/begin.weights.h5")
        for name in ("alone", together):
            weights = shutil.copy(begin, f"{folder}/trained.weights.h5")
            with technique.variant(name) as run:
                if name == "alone":
                    milliseconds[name] = train(params, weights, tf.distribute.get_strategy())
                else:
                    milliseconds[name] = max(
                        on_local_workers(
                            train,
                            workers=workers,
                            arguments={"params": params, "weights": weights},
                            environment={
                                "MLFLOW_RUN_ID": run.run_id,
                                "MLFLOW_TRACKING_URI": run.tracking_uri,
                            },
                        )
                    )
                model.load_weights(weights)
                technique.finish(model, *images.test)
            trained[name] = model.get_weights()

        technique.compare(curves=["batch/loss"])
        alone, shared = (losses_of(technique.variants[name]) for name in ("alone", together))
        technique.conclude(
            f"The same curve: {milliseconds['alone']:.1f} ms a step in one process, "
            f"{milliseconds[together]:.1f} ms on {workers} workers of this machine.",
            mka.Claim(
                "curve",
                "largest difference of a step's loss on record from that of one process",
                max(abs(alone[step] - shared[step]) for step in alone),
                at_most=1e-4,
            ),
            mka.Claim(
                "weights",
                "largest difference of a weight after the last step",
                mka.largest_difference(trained["alone"], trained[together]),
                at_most=1e-4,
            ),
        )


if __name__ == "__main__":
    entry_point.run(main)

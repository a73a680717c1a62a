"""A training with servers of parameters: one coordinator, one server, two workers."""

import json
import os
import signal
import sys
from pathlib import Path

import tensorflow as tf

asked = json.loads(sys.argv[1])
resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
if resolver.task_type in ("worker", "ps"):
    tf.distribute.Server(
        resolver.cluster_spec(), job_name=resolver.task_type, task_index=resolver.task_id
    )
    signal.pause()  # until whoever has started it ends it

import keras  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2]))
import mlflow_keras_adv as mka  # noqa: E402
from tests.machines.net import BATCH, RATE, STEPS, X, Y, built  # noqa: E402

strategy = tf.distribute.ParameterServerStrategy(resolver)
coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
with strategy.scope():
    model = built(keras)
    optimizer = keras.optimizers.SGD(RATE)
    optimizer.build(model.trainable_variables)
loop = mka.Loop(model, optimizers=optimizer, callbacks=[mka.MlflowLogger()], verbose=0)


def worker_step(batch):
    x, y = batch
    with tf.GradientTape() as tape:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x, training=True))
        loss = tf.reduce_mean(losses)
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    loop.record(loss=loss)
    return loss


@tf.function
def step(iterator):
    return strategy.run(worker_step, args=(next(iterator),))


def data():
    return tf.data.Dataset.from_tensor_slices((X, Y)).repeat().batch(BATCH)


batches = iter(coordinator.create_per_worker_dataset(data))
with mka.track("servers", log_system_metrics=False) as run:
    for _ in loop.epochs(2):
        scheduled = [coordinator.schedule(step, args=(batches,)) for _ in range(STEPS)]
        coordinator.join()
        if asked["advances"]:
            loop.advance(STEPS, examples=STEPS * BATCH)
        loop.log(loss=sum(float(each.fetch()) for each in scheduled) / STEPS)
print(json.dumps({"run_id": run.run_id, "history": loop.history}), flush=True)
os._exit(0)  # the coordinator would wait for its workers

"""What each process of the tests of this folder runs: the loop of TensorFlow's guide, or `fit`.

One argument: settings in JSON, of which each has a default. The last line that is printed is JSON.
"""

import contextlib
import json
import logging
import os
import sys
import time
from pathlib import Path

SETTINGS = {
    "strategy": "workers",  # or "mirrored", on two logical devices; "alone"
    "library": "keras",  # or "tf_keras"
    "way": "batches",  # or "run": several steps a call; "fit"
    "observed": True,  # whether this process has a Loop; one without has the bare loop
    "record": "replica",  # where the loss is recorded; or "reduced"; ""
    "clipnorm": None,
    "inside": False,  # whether track and Loop are inside of the scope
    "callbacks": [],
    "epochs": 2,
    "models": False,  # whether the model is logged
    "stops_after": None,  # this process has a callback that stops after so many epochs
    "pause": 0.0,  # seconds in each step
    "breaks_at": None,  # the step at which this process raises
    "backups": None,  # folder of BackupAndRestore
    "already": 0,  # how many updates the optimizer has made before
}
asked = SETTINGS | json.loads(sys.argv[1])
if asked["library"] == "tf_keras":
    os.environ["TF_USE_LEGACY_KERAS"] = "1"

import tensorflow as tf  # noqa: E402

if asked["strategy"] == "mirrored":
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
elif asked["strategy"] == "workers":
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
else:
    strategy = tf.distribute.get_strategy()

if asked["library"] == "tf_keras":
    import tf_keras as keras
else:
    import keras

sys.path.insert(0, str(Path(__file__).parents[2]))
import mlflow_keras_adv as mka  # noqa: E402
from tests.machines.net import BATCH, RATE, X, Y, built  # noqa: E402

logging.basicConfig(level=logging.INFO)
print("pid", os.getpid(), flush=True)
with strategy.scope():
    model = built(keras)
    optimizer = keras.optimizers.SGD(RATE, clipnorm=asked["clipnorm"])
    optimizer.build(model.trainable_variables)
    optimizer.iterations.assign(asked["already"])
data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(BATCH)
observed, found = asked["observed"], {"losses": [], "batches": []}


class Stops(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == asked["stops_after"]:
            self.model.stop_training = True


made = {
    "logger": mka.MlflowLogger,
    "norms": mka.LayerNorms,
    "checkpoints": lambda: mka.Checkpoints("loss"),
    "stalls": mka.StallAlert,
    "predictions": lambda: mka.Predictions(X[:8], Y[:8]),
    "early": lambda: keras.callbacks.EarlyStopping("loss", patience=0, min_delta=10.0),
}
callbacks = [made[name]() for name in (["logger"] if observed else []) + asked["callbacks"]]
if asked["stops_after"]:
    callbacks.append(Stops())
if asked["backups"]:
    callbacks.append(keras.callbacks.BackupAndRestore(asked["backups"]))


def collectives(function, *inputs):
    """How many reductions over processes a step makes."""
    graph = function.get_concrete_function(*inputs).graph.as_graph_def()
    nodes = [*graph.node, *(node for each in graph.library.function for node in each.node_def)]
    return sum(node.op.startswith("Collective") and "Reduce" in node.op for node in nodes)


def by_hand(run):
    loop = (
        mka.Loop(model, optimizers=optimizer, callbacks=callbacks, verbose=0) if observed else None
    )
    spread = strategy.experimental_distribute_dataset(data)

    def replica_step(x, y):
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
            loss = tf.nn.compute_average_loss(losses, global_batch_size=BATCH)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        if loop is not None and asked["record"] == "replica":
            loop.record(loss=loss)
        return loss

    @tf.function
    def step(x, y):
        loss = strategy.reduce("SUM", strategy.run(replica_step, args=(x, y)), axis=None)
        if loop is not None and asked["record"] == "reduced":
            loop.record(loss=loss)
        return loss

    made = 0
    for epoch in range(asked["epochs"]) if loop is None else loop.epochs(asked["epochs"]):
        print("epoch", epoch, flush=True)
        if asked["way"] == "run":
            loop.run(step, spread, steps_per_call=3)
        for x, y in (
            () if asked["way"] == "run" else spread if loop is None else loop.batches(spread)
        ):
            found["losses"].append(float(step(x, y)))
            made += 1
            time.sleep(asked["pause"])
            if made == asked["breaks_at"]:
                raise ValueError("broken on purpose")
            if "collectives" not in found:
                found["collectives"] = collectives(step, x, y)
        if loop is not None:
            loop.log(val_loss=1.0 - epoch / 10)
    found["history"] = {} if loop is None else loop.history


def by_fit(run):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with strategy.scope():
        model.compile(optimizer, loss, metrics=["accuracy"])
    fitted = model.fit(data, epochs=asked["epochs"], callbacks=callbacks, verbose=0)
    found["history"] = fitted.history


scope = strategy.scope() if asked["inside"] else contextlib.nullcontext()
about = {"params": {"seed": 0}, "log_system_metrics": False}
tracked = mka.track("distributed", **about) if observed else contextlib.nullcontext()
with scope, tracked as run:
    if run is not None:
        found["run_id"] = run.run_id
        print("run", run.run_id, flush=True)
    (by_fit if asked["way"] == "fit" else by_hand)(run)
    if asked["models"]:
        mka.log_model(model, name="net", input_example=X[:2])
        run.log_metrics({"final/accuracy": 0.5})
found["weights"] = [each.tolist() for each in model.get_weights()]
print(json.dumps(found), flush=True)

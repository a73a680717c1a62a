"""Loop: a hand-written loop behaves, and is recorded, as `fit` is."""

import json
import logging
import subprocess
from collections.abc import Callable
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_keras_adv as mka
from mlflow_keras_adv.training.steps import GradientAccumulator
from tests.warm import PYTHON

EPS = float(np.finfo(np.float32).eps)
ROUNDING = 100 * EPS  # some 10 to 100 float32 roundings on either way, adding up at worst

rng = np.random.default_rng(0)
X = rng.normal(size=(100, 8)).astype(np.float32)
Y = rng.integers(0, 3, 100)
DATA = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)  # 7 batches, the last of 4
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
Curves = Callable[[str], dict[str, dict[int, float]]]


def net() -> keras.Model:
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(16, activation="relu")
    return keras.Sequential([keras.Input((8,)), hidden, keras.layers.Dense(3)])


def step_of(model: Any, optimizer: Any, loop: mka.Loop, **function: Any) -> Any:
    @tf.function(**function)
    def train_step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = LOSS(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        loop.record(loss=loss)

    return train_step


def train(loop: mka.Loop, step: Any, how: int | str, epochs: int = 3) -> None:
    for _ in loop.epochs(epochs):
        if how == "batches":
            for x, y in loop.batches(DATA):
                step(x, y)
        else:
            loop.run(step, DATA, steps_per_call=how)


@pytest.mark.parametrize("how", ["batches", 1, 3, 8])
@pytest.mark.parametrize("function", [{}, {"jit_compile": True}], ids=["graph", "xla"])
def test_the_record_and_the_weights_are_those_of_fit(
    how: int | str, function: dict[str, Any], experiment: str, curves: Curves
) -> None:
    fitted = net()
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 7, 0.5)
    fitted.compile(keras.optimizers.SGD(schedule, momentum=0.9, global_clipnorm=0.5), LOSS)
    with mka.track("fit", log_system_metrics=False) as run:
        fitted.fit(DATA, epochs=3, shuffle=False, verbose=0, callbacks=[mka.MlflowLogger()])
    expected = curves(run.run_id)

    model = net()
    optimizer = keras.optimizers.SGD(schedule, momentum=0.9, global_clipnorm=0.5)
    with mka.track("loop", log_system_metrics=False) as run:
        callbacks = [mka.MlflowLogger()]
        loop = mka.Loop(model, optimizers=optimizer, callbacks=callbacks, verbose=0)
        train(loop, step_of(model, optimizer, loop, **function), how)
    found = curves(run.run_id)

    # 21 updates, each of which may differ by the roundings of one step.
    for ours, theirs in zip(model.variables, fitted.variables, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=21 * ROUNDING)
    assert found.keys() == expected.keys()
    for key in ("batch/loss", "gradient/norm", "gradient/norm_clipped", "optimizer/learning_rate"):
        assert list(found[key]) == list(range(1, 22))
        np.testing.assert_allclose(
            list(found[key].values()), list(expected[key].values()), rtol=21 * ROUNDING
        )
    assert found["train/epoch"] == {7: 1, 14: 2, 21: 3}
    for step, value in expected["train/loss"].items():
        assert found["train/loss"][step] == pytest.approx(value, rel=21 * ROUNDING)


class Diary(keras.callbacks.Callback):
    """Notes which hooks were called, with which logs."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.logs: list[dict[str, float]] = []

    def on_train_begin(self, logs: Any = None) -> None:
        self.events.append("train begin")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.events.append(f"epoch {epoch} begin")

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.events.append(f"batch {batch} begin")

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.events.append(f"batch {batch} end")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.events.append(f"epoch {epoch} end")
        self.logs.append(dict(logs))

    def on_train_end(self, logs: Any = None) -> None:
        self.events.append("train end")


@pytest.mark.parametrize("how", ["batches", 1])
def test_callbacks_are_called_as_fit_calls_them(how: int | str) -> None:
    theirs, ours = Diary(), Diary()
    fitted = net()
    fitted.compile(keras.optimizers.SGD(0.1), LOSS)
    fitted.fit(DATA, epochs=2, shuffle=False, verbose=0, callbacks=[theirs])

    model, optimizer = net(), keras.optimizers.SGD(0.1)
    loop = mka.Loop(model, optimizers=optimizer, callbacks=[ours], verbose=0)
    train(loop, step_of(model, optimizer, loop), how, epochs=2)
    assert ours.events == theirs.events
    assert [logs.keys() for logs in ours.logs] == [logs.keys() for logs in theirs.logs]


def test_keras_callbacks_steer_the_loop(tmp_path: Any) -> None:
    model, optimizer = net(), keras.optimizers.SGD(1.0)
    values = iter([3.0, 2.0, 2.5, 2.6, 2.7, 2.8])
    callbacks = [
        keras.callbacks.EarlyStopping("val_loss", patience=3, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.1, patience=1, verbose=0),
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", "val_loss", save_best_only=True),
        keras.callbacks.TensorBoard(tmp_path / "board"),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
    ]
    loop = mka.Loop(model, optimizers=optimizer, callbacks=callbacks, verbose=0)
    step = step_of(model, optimizer, loop)
    best: list[Any] = []
    for epoch in loop.epochs(10):
        for x, y in loop.batches(DATA):
            step(x, y)
        loop.log(val_loss=next(values))
        if epoch == 1:
            best = model.get_weights()
    assert loop.history["val_loss"] == [3.0, 2.0, 2.5, 2.6, 2.7]
    assert float(optimizer.learning_rate) < 1.0
    for now, then in zip(model.get_weights(), best, strict=True):
        np.testing.assert_array_equal(now, then)
    assert (tmp_path / "log.csv").read_text().splitlines()[0] == "epoch,learning_rate,loss,val_loss"
    assert (tmp_path / "best.keras").exists()
    assert list((tmp_path / "board").rglob("events*"))


@pytest.mark.quick
def test_a_rate_assigned_by_hand_is_the_rate_on_record(experiment: str, curves: Curves) -> None:
    model, optimizer = net(), keras.optimizers.SGD(0.1)
    with mka.track("by hand", log_system_metrics=False) as run:
        callbacks = [mka.MlflowLogger()]
        loop = mka.Loop(model, optimizers=optimizer, callbacks=callbacks, verbose=0)
        step = step_of(model, optimizer, loop)
        for _ in loop.epochs(1):
            for index, (x, y) in enumerate(loop.batches(DATA)):
                optimizer.learning_rate = 0.1 / (1 + index)
                step(x, y)
    rates = list(curves(run.run_id)["optimizer/learning_rate"].values())
    np.testing.assert_array_equal(rates, [float(np.float32(0.1 / (1 + i))) for i in range(7)])


@pytest.mark.parametrize("how", ["end", "break", "raise"])
def test_model_and_optimizer_are_left_as_found(how: str, experiment: str) -> None:
    model, optimizer = net(), keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    found = set(vars(optimizer))
    loop = mka.Loop(model, optimizers=optimizer, callbacks=[Diary()], verbose=0)
    step = step_of(model, optimizer, loop)
    try:
        for _ in loop.epochs(2):
            assert model.optimizer is optimizer
            for x, y in loop.batches(DATA):
                step(x, y)
            if how == "break":
                break
            if how == "raise":
                raise ValueError
    except ValueError:
        pass
    assert getattr(model, "optimizer", None) is None
    assert set(vars(optimizer)) == found
    train(loop, step, "batches", epochs=1)  # and it may run again


def test_one_traced_step_in_two_loops_and_after_them(experiment: str, curves: Curves) -> None:
    model, optimizer = net(), keras.optimizers.SGD(0.1)
    runs = []
    step = None
    for number in range(2):
        with mka.track(f"loop {number}", log_system_metrics=False) as run:
            callbacks = [mka.MlflowLogger()]
            loop = mka.Loop(model, optimizers=optimizer, callbacks=callbacks, verbose=0)
            step = step or step_of(model, optimizer, loop)
            train(loop, step, "batches", epochs=1)
        runs.append(curves(run.run_id))
        step(X[:16], Y[:16])  # outside of any loop: an update that no record counts
    assert step.experimental_get_tracing_count() <= 2  # batches of 16 and of 4
    for found in runs:
        assert list(found["gradient/norm"]) == list(found["batch/loss"]) == list(range(1, 8))
    assert int(optimizer.iterations) == 16


def test_a_step_traced_before_the_loop_is_said_and_can_be_had_anew(
    experiment: str, curves: Curves, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer = net(), keras.optimizers.SGD(0.1)

    @tf.function(reduce_retracing=True)
    def step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = LOSS(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    for x, y in DATA:
        step(x, y)
    with mka.track("late", log_system_metrics=False) as run:
        callbacks = [mka.MlflowLogger()]
        loop = mka.Loop(model, optimizers=optimizer, callbacks=callbacks, verbose=0)
        with caplog.at_level(logging.WARNING, "mlflow_keras_adv"):
            train(loop, step, "batches", epochs=2)
        assert len([r for r in caplog.records if "loop.function(" in r.getMessage()]) == 1
        run.flush(60)
        assert "gradient/norm" not in curves(run.run_id)
        train(loop, loop.function(step), "batches", epochs=1)
    assert list(curves(run.run_id)["gradient/norm"]) == list(range(15, 22))


@pytest.mark.parametrize("how", ["batches", 4])
def test_an_incomplete_group_that_is_flushed_is_an_update_of_the_last_batch(
    how: int | str, experiment: str, curves: Curves
) -> None:
    model, optimizer = net(), keras.optimizers.SGD(0.1)
    accumulator = GradientAccumulator(3)
    with mka.track("flushed", log_system_metrics=False) as run:
        callbacks = [mka.MlflowLogger()]
        loop = mka.Loop(model, optimizers=optimizer, callbacks=callbacks, verbose=0)

        @tf.function(reduce_retracing=True)
        def step(x: Any, y: Any) -> None:
            with tf.GradientTape() as tape:
                loss = LOSS(y, model(x, training=True))
            gradients = tape.gradient(loss, model.trainable_variables)
            accumulator.apply(optimizer, gradients, model.trainable_variables)
            loop.record(loss=loss)

        last: list[float] = []
        for _ in loop.epochs(2):
            if how == "batches":
                for x, y in loop.batches(DATA):
                    step(x, y)
            else:
                loop.run(step, DATA, steps_per_call=how)
            with tf.GradientTape() as tape:
                loss = LOSS(Y[96:], model(X[96:], training=True))
            gradients = tape.gradient(loss, model.trainable_variables)
            last.append(float(tf.linalg.global_norm(gradients)))
            assert accumulator.flush(optimizer)
    found = curves(run.run_id)
    assert list(found["batch/loss"]) == list(range(1, 15))
    assert list(found["gradient/norm"]) == [3, 6, 7, 10, 13, 14]
    assert [found["gradient/norm"][step] for step in (7, 14)] == pytest.approx(last, rel=ROUNDING)
    assert list(found["train/loss"]) == [7, 14]


def test_a_loop_that_leaves_its_batches_early_has_them_on_record(
    experiment: str, curves: Curves
) -> None:
    model, optimizer = net(), keras.optimizers.SGD(0.1)
    with mka.track("early", log_system_metrics=False) as run:
        loop = mka.Loop(model, optimizers=optimizer, callbacks=[mka.MlflowLogger()], verbose=0)
        step = step_of(model, optimizer, loop)
        for _ in loop.epochs(1):
            for index, (x, y) in enumerate(loop.batches(DATA)):
                step(x, y)
                if index == 2:
                    break
            run.flush(60)
            assert list(curves(run.run_id)["batch/loss"]) == [1, 2, 3]


def test_several_optimizers_by_name(experiment: str, curves: Curves) -> None:
    model = net()
    optimizers = {"body": keras.optimizers.SGD(0.1), "head": keras.optimizers.Adam(0.01)}
    with mka.track("two", log_system_metrics=False) as run:
        callbacks = [mka.MlflowLogger()]
        loop = mka.Loop(model, optimizers=optimizers, callbacks=callbacks, verbose=0)

        @tf.function
        def step(x: Any, y: Any) -> None:
            with tf.GradientTape() as tape:
                loss = LOSS(y, model(x, training=True))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizers["body"].apply(gradients[:2], model.trainable_variables[:2])
            optimizers["head"].apply(gradients[2:], model.trainable_variables[2:])
            loop.record(loss=loss, logit=tf.reduce_max(model(x)))

        train(loop, step, 4, epochs=1)
    found = curves(run.run_id)
    assert set(found["optimizer/body/learning_rate"].values()) == {np.float32(0.1)}
    assert set(found["optimizer/head/learning_rate"].values()) == {np.float32(0.01)}
    assert len(found["gradient/body/norm"]) == len(found["batch/logit"]) == 7


def test_loss_scaling_in_a_tape(experiment: str, curves: Curves) -> None:
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        model = net()
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), 2.0**24)
    with mka.track("scaled", log_system_metrics=False) as run:
        callbacks = [mka.MlflowLogger()]
        loop = mka.Loop(model, optimizers=optimizer, callbacks=callbacks, verbose=0)

        @tf.function(reduce_retracing=True)
        def step(x: Any, y: Any) -> None:
            with tf.GradientTape() as tape:
                loss = LOSS(y, tf.cast(model(x, training=True), tf.float32))
                scaled = optimizer.scale_loss(loss)
            gradients = tape.gradient(scaled, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)

        train(loop, step, "batches", epochs=2)
    found = curves(run.run_id)
    scales = list(found["optimizer/loss_scale"].values())
    skips = len(found["optimizer/skipped_updates"])
    assert scales[0] == 2.0**24
    assert scales[-1] == 2.0 ** (24 - skips)
    assert len(found["gradient/norm"]) == 14 - skips
    assert max(found["gradient/norm"].values()) < 100, "norms are unscaled"


NAMES = [f"part_{number:02}" for number in range(100)]


@pytest.mark.parametrize("how", ["batches", 3])
@pytest.mark.parametrize("function", [{}, {"jit_compile": True}], ids=["graph", "xla"])
def test_a_step_may_record_a_hundred_names(
    how: int | str, function: dict[str, Any], experiment: str, curves: Curves
) -> None:
    model, optimizer = net(), keras.optimizers.SGD(0.1)
    with mka.track("many", log_system_metrics=False) as run:
        callbacks = [mka.MlflowLogger()]
        loop = mka.Loop(model, optimizers=optimizer, callbacks=callbacks, verbose=0)
        plain = step_of(model, optimizer, loop, **function)
        train(loop, plain, how, epochs=1)

        @tf.function(**function)
        def step(x: Any, y: Any) -> None:
            plain(x, y)
            count = tf.cast(optimizer.iterations, tf.float32)
            loop.record(**{name: count + i for i, name in enumerate(NAMES)})

        train(loop, step, how, epochs=1)
        train(loop, plain, how, epochs=1)
    found = curves(run.run_id)
    for key in ("batch/loss", "gradient/norm"):
        assert list(found[key]) == list(range(1, 22))
    for i, name in enumerate(NAMES):
        assert found[f"batch/{name}"] == {step: step + i for step in range(8, 15)}
        assert list(found[f"train/{name}"]) == [14]


class Reshuffled(keras.utils.PyDataset):
    """Shuffles its examples when an epoch has ended, as Keras' documentation does it."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.order = np.arange(len(X))
        self.rng = np.random.default_rng(1)

    @property
    def num_batches(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Any:
        chosen = self.order[index * 16 : index * 16 + 16]
        return X[chosen], Y[chosen]

    def on_epoch_begin(self) -> None:
        self.events.append("begin")

    def on_epoch_end(self) -> None:
        self.events.append("end")
        self.rng.shuffle(self.order)


def test_a_dataset_that_reshuffles_itself_is_seen_as_fit_sees_it(
    experiment: str, curves: Curves
) -> None:
    def recorded(train_it: Callable[[Any, Any], None]) -> tuple[dict[int, float], Reshuffled]:
        data = Reshuffled()
        with mka.track("reshuffled", log_system_metrics=False) as run:
            train_it(data, mka.MlflowLogger())
        return curves(run.run_id)["batch/loss"], data

    def fit(data: Any, logger: Any) -> None:
        model = net()
        model.compile(keras.optimizers.SGD(0.1), LOSS)
        for epochs in (3, 1):
            model.fit(data, epochs=epochs, shuffle=False, verbose=0, callbacks=[logger])

    def loop(data: Any, logger: Any) -> None:
        model, optimizer = net(), keras.optimizers.SGD(0.1)
        loop = mka.Loop(model, optimizers=optimizer, callbacks=[logger], verbose=0)
        step = step_of(model, optimizer, loop)
        for epochs in (3, 1):
            for _ in loop.epochs(epochs):
                for x, y in loop.batches(data):
                    step(x, y)

    expected, theirs = recorded(fit)
    found, ours = recorded(loop)
    assert ours.events == theirs.events
    np.testing.assert_array_equal(ours.order, theirs.order)
    assert list(found) == list(expected) == list(range(1, 29))
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=28 * ROUNDING)


def test_a_dataset_that_is_left_early_has_ended_its_epoch() -> None:
    model, data = net(), Reshuffled()
    loop = mka.Loop(model, optimizers=keras.optimizers.SGD(0.1), verbose=0)
    for _ in loop.epochs(2):
        for index, _batch in enumerate(loop.batches(data)):
            if index == 2:
                break
    assert data.events == ["end", *["begin", "end"] * 2]


def test_wrong_use_is_explained() -> None:
    model = net()
    with pytest.raises(TypeError, match="Received 'sgd' as the optimizer"):
        mka.Loop(model, optimizers="sgd")
    loop = mka.Loop(model, optimizers=keras.optimizers.SGD(), verbose=0)
    with pytest.raises(RuntimeError, match="inside `for epoch in loop.epochs"):
        loop.log(val_loss=1)
    with pytest.raises(RuntimeError, match="inside `for epoch in loop.epochs"):
        next(iter(loop.batches(DATA)))
    for _ in loop.epochs(1):
        with pytest.raises(RuntimeError, match="running already"):
            next(iter(loop.epochs(1)))
        with pytest.raises(ValueError, match="steps_per_call=0"):
            loop.run(lambda x, y: None, DATA, steps_per_call=0)


REPLICAS = """
import json
import keras, numpy as np, tensorflow as tf
import mlflow_keras_adv as mka

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
x = np.arange(24, dtype=np.float32).reshape(12, 2) / 24
y = np.arange(12, dtype=np.float32).reshape(12, 1) / 6


def train(where, **how):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        optimizer = keras.optimizers.SGD(0.0)
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
        data = strategy.experimental_distribute_dataset(data)
        loop = mka.Loop(model, optimizers=optimizer, callbacks=[mka.MlflowLogger()], verbose=0)

        def replica_step(inputs):
            images, targets = inputs
            with tf.GradientTape() as tape:
                losses = tf.reduce_sum(tf.square(targets - model(images, training=True)), 1)
                loss = tf.nn.compute_average_loss(losses, global_batch_size=4)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables))
            if where == "in the replica":
                loop.record(loss=loss, **how)
            return loss

        @tf.function
        def step(inputs):
            return strategy.run(replica_step, args=(inputs,))

        with mka.track(where, log_system_metrics=False) as run:
            for _ in loop.epochs(2):
                for batch in loop.batches(data):
                    losses = step(batch)
                    if where == "reduced first":
                        losses = strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)
                    if where != "in the replica":
                        loop.record(loss=losses, **how)
    truth = [float(np.mean((y[i : i + 4] - model(x[i : i + 4])) ** 2)) for i in (0, 4, 8)]
    return run.run_id, truth


print(json.dumps([
    (1, *train("in the replica")),
    (2, *train("in the replica", reduction="mean")),
    (1, *train("spread over replicas")),
    (2, *train("spread over replicas", reduction="mean")),
    (1, *train("reduced first")),
]))
"""


@pytest.mark.slow
def test_what_replicas_record_is_that_of_the_global_batch(experiment: str, curves: Curves) -> None:
    """A loop as in TensorFlow's guide, on two devices, beside the loss by hand."""
    command = [PYTHON, "-c", REPLICAS]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert shown.returncode == 0, shown.stderr
    for parts, run_id, truth in json.loads(shown.stdout.splitlines()[-1]):
        found, expected = curves(run_id), np.array(truth) / parts
        # The mean of four squares, summed in another order.
        np.testing.assert_allclose(
            list(found["batch/loss"].values()), np.tile(expected, 2), rtol=1e-6
        )
        mean = pytest.approx(expected.mean(), rel=1e-6)
        assert found["train/loss"] == {3: mean, 6: mean}
        seconds = 3 * found["train/step_ms"][3] / 1000
        assert found["train/examples_per_second"][3] * seconds == pytest.approx(12)


def test_a_loop_that_raises_outside_of_track_is_a_failed_run(
    experiment: str, client: mlflow.MlflowClient, curves: Curves
) -> None:
    model, optimizer = net(), keras.optimizers.SGD(0.1)
    loop = mka.Loop(model, optimizers=optimizer, callbacks=[mka.MlflowLogger()], verbose=0)
    step = step_of(model, optimizer, loop)

    def trains() -> None:
        for _ in loop.epochs(2):
            for number, (x, y) in enumerate(loop.batches(DATA)):
                step(x, y)
                if number == 2:
                    raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        trains()
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FAILED"
    assert "broken" in run.data.tags["error"]
    assert list(curves(run.info.run_id)["batch/loss"]) == [1, 2, 3]
    assert getattr(model, "optimizer", None) is None
    for _ in loop.epochs(1):  # and again
        for x, y in loop.batches(DATA):
            step(x, y)
        break
    assert {each.info.status for each in client.search_runs([experiment])} == {"FAILED", "FINISHED"}


def test_an_interrupted_loop_that_a_notebook_still_holds_is_begun_again(
    experiment: str, client: mlflow.MlflowClient, curves: Curves
) -> None:
    model, optimizer = net(), keras.optimizers.SGD(0.1)
    loop = mka.Loop(model, optimizers=optimizer, callbacks=[mka.MlflowLogger()], verbose=0)
    step = step_of(model, optimizer, loop)
    kept: list[Any] = []

    def cell() -> None:
        epochs = loop.epochs(2)
        kept.append(epochs)
        for _ in epochs:
            for x, y in loop.batches(DATA):
                step(x, y)
                if None not in kept:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as shown:  # a notebook keeps it, too
        cell()
    kept.append(None)
    cell()
    assert shown.value is not None
    assert loop.history["loss"]
    finished = client.search_runs([experiment], "status = 'FINISHED'")
    assert any(list(curves(each.info.run_id)["batch/loss"]) != [1] for each in finished)
    killed = client.search_runs([experiment], "status = 'KILLED'")
    assert [list(curves(each.info.run_id)["batch/loss"]) for each in killed] == [[1]]
    assert not client.search_runs([experiment], "status = 'RUNNING'")
    assert getattr(model, "optimizer", None) is None


def test_a_first_step_that_is_traced_twice_is_no_second_update(
    experiment: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As it is where the optimizer makes its variables in the step."""
    model = net()
    model.compile(keras.optimizers.Adam(0.1), LOSS)
    callbacks = [mka.MlflowLogger()]
    loop = mka.Loop(model, optimizers=model.optimizer, callbacks=callbacks, verbose=0)
    with mka.track("twice", log_system_metrics=False):
        for _ in loop.epochs(2):
            for x, y in loop.batches(DATA):
                loop.record(loss=model.train_on_batch(x, y))
    assert "more than one update" not in caplog.text

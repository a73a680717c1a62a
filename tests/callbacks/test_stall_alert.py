"""When StallAlert speaks, and what it leaves on the run."""

import copy
import logging
import pickle
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_keras_adv as mka
from mlflow_keras_adv.callbacks.stall_alert import StallAlert

rng = np.random.default_rng(0)
X = rng.normal(size=(24, 4)).astype(np.float32)
Y = rng.normal(size=(24, 1)).astype(np.float32)
BATCH, BATCHES = 4, 6


def net(rate: float = 0.01, **compiled: Any) -> keras.Model:
    """A linear model without a bias: of a batch of zeros the gradient is zero."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(**({"optimizer": keras.optimizers.SGD(rate), "loss": "mse"} | compiled))
    return model


def fit(model: keras.Model, *callbacks: Any, x: Any = X, y: Any = Y, **more: Any) -> Any:
    data = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    return model.fit(x, y, **(data | more), callbacks=list(callbacks))


def tags(client: mlflow.MlflowClient, run: mka.Run) -> dict[str, str]:
    found = client.get_run(run.run_id).data.tags
    return {key: value for key, value in found.items() if key.startswith("alert")}


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = [each for each in caplog.records if each.name.startswith("mlflow_keras_adv")]
    return [each.getMessage() for each in ours if each.levelno == logging.WARNING]


@pytest.mark.parametrize("logger", [True, False])
@pytest.mark.parametrize(
    ("kind", "x", "y"),
    [("vanishing_gradients", 0 * X, Y), ("exploding_gradients", 1e3 * X, 1e3 * Y)],
)
def test_norms_that_are_out_of_range_for_a_whole_window(
    kind: str,
    x: np.ndarray,
    y: np.ndarray,
    logger: bool,
    experiment: str,
    client: mlflow.MlflowClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = net(rate=0.0)
    with mka.track("norms", log_system_metrics=False) as run:
        fit(model)  # before the axis of this run begins
        alert = StallAlert("loss", window=8)
        fit(model, *([mka.MlflowLogger()] if logger else []), alert, x=x, y=y, epochs=3)
    assert tags(client, run) == {"alert": kind, "alert.step": "8"}
    assert said(caplog) == [f"{kind} at step 8: gradient/norm, for 8 updates in a row."]
    assert "apply" not in vars(model.optimizer)
    assert "train_step" not in vars(model)


def test_batches_that_only_accumulate_are_no_updates(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    model = net(optimizer=keras.optimizers.SGD(0.0, gradient_accumulation_steps=2))
    with mka.track("accumulated", log_system_metrics=False) as run:
        fit(model, StallAlert("loss", window=3), x=0 * X)
    assert tags(client, run) == {"alert": "vanishing_gradients", "alert.step": "6"}


def test_a_window_that_is_interrupted_is_none(
    experiment: str, client: mlflow.MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    gap = X.copy()
    gap[: 3 * BATCH] = 0  # the first three batches of six
    gap[4 * BATCH :] = 0  # and the last two, which the next epoch continues
    with mka.track("gap", log_system_metrics=False) as run:
        fit(net(rate=0.0), StallAlert("loss", window=6), x=gap, epochs=3)
        assert run.flush(timeout=60)
        assert tags(client, run) == {}
        fit(net(rate=0.0), StallAlert("loss", window=5), x=gap, epochs=3)
    assert tags(client, run) == {"alert": "vanishing_gradients", "alert.step": str(18 + 9)}


def test_a_nan_is_found_at_its_step_and_stops_the_training_if_asked(
    experiment: str, client: mlflow.MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    broken = X.copy()
    broken[4 * BATCH] = np.nan
    for stop, epochs in ((False, 5), (True, 1)):
        with mka.track("nan", log_system_metrics=False) as run:
            history = fit(net(), StallAlert(stop=stop), x=broken, epochs=5).history
        assert len(history["loss"]) == epochs
        expected = {"alert": "nan_loss, nonfinite_gradients", "alert.step": "5, 5"}
        assert tags(client, run) == expected
    messages = [each for each in said(caplog) if "cannot be watched" not in each]
    assert messages == 2 * [
        "nan_loss at step 5: batch/loss is not finite.",
        "nonfinite_gradients at step 5: gradient is not finite.",
    ]


def test_a_nan_of_validation_alone_is_an_alert_at_the_end_of_the_epoch(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    with mka.track("val", log_system_metrics=False) as run:
        fit(net(), StallAlert(), validation_data=(X * np.nan, Y), epochs=2)
    assert tags(client, run) == {"alert": "nan_loss", "alert.step": str(BATCHES)}


@pytest.mark.parametrize("stop", [True, False])
def test_no_improvement_for_some_epochs(
    stop: bool, experiment: str, client: mlflow.MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    with mka.track("stalled", log_system_metrics=False) as run:
        alert = StallAlert(patience=3, stop=stop)
        history = fit(net(rate=0.0), alert, validation_data=(X, Y), epochs=9).history
    assert len(history["loss"]) == (4 if stop else 9)
    assert tags(client, run) == {"alert": "no_improvement", "alert.step": str(4 * BATCHES)}
    best = history["val_loss"][0]
    assert said(caplog) == [
        f"no_improvement at step 24: val_loss is {best:g}, its best {best:g} was 3 epochs ago."
    ]


class Scores(keras.callbacks.Callback):
    """Puts given values into the logs of the epochs."""

    def __init__(self, **values: list[float]) -> None:
        super().__init__()
        self.values = values

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs.update({name: each[epoch] for name, each in self.values.items()})


@pytest.mark.parametrize(
    ("values", "arguments", "epoch"),
    [
        ([5, 4, 3, 2, 1, 0], {"monitor": "val_loss"}, None),
        ([5, 4, 3, 2, 1, 0], {"monitor": "val_accuracy"}, 3),
        ([0, 1, 2, 3, 4, 5], {"monitor": "val_accuracy"}, None),
        ([5, 4, 3, 2, 1, 0], {"monitor": "val_mae"}, None),
        ([5, 4, 3, 2, 1, 0], {"monitor": "anything", "mode": "max"}, 3),
        ([5, 4.9, 4.8, 4.7, 4.6, 4.5], {"monitor": "loss", "min_delta": 0.35}, 3),
        ([5, 4.9, 4.8, 4.7, 4.6, 4.5], {"monitor": "loss", "min_delta": 0.15}, None),
        ([5, 6, 4, 6, 3, 6], {"monitor": "loss"}, None),
    ],
    ids=str,
)
def test_what_is_an_improvement(
    values: list[float],
    arguments: dict[str, Any],
    epoch: int | None,
    experiment: str,
    client: mlflow.MlflowClient,
) -> None:
    scores = Scores(**{arguments["monitor"]: values})
    patience = 2 if epoch is None else 3
    with mka.track("monitored", log_system_metrics=False) as run:
        fit(net(), scores, StallAlert(patience=patience, **arguments), epochs=6)
    expected = {"alert": "no_improvement", "alert.step": str(((epoch or 0) + 1) * BATCHES)}
    assert tags(client, run) == ({} if epoch is None else expected)


def test_what_cannot_be_watched_is_said_once(
    experiment: str, client: mlflow.MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    with mka.track("missing", log_system_metrics=False) as run:
        fit(net(), StallAlert(patience=1), epochs=3)
        fit(net(), Scores(mine=[1, 1, 1]), StallAlert("mine", patience=1), epochs=3)
    assert said(caplog) == [
        "'val_loss' cannot be watched: the epoch's logs hold loss (did you mean 'loss'?).",
        "'mine' cannot be watched: pass mode='max' or mode='min', whichever is better.",
    ]
    assert tags(client, run) == {}


def test_updates_that_loss_scaling_skips_are_an_alert_only_in_a_row(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    def overflowing() -> keras.Model:
        # Gradients of some thousands, scaled to near the largest float32, overflow; each time the
        # scale is halved.
        return net(
            optimizer=keras.optimizers.LossScaleOptimizer(
                keras.optimizers.SGD(0.0), initial_scale=2.0**127
            )
        )

    same = {"x": np.tile(100 * X[:BATCH], (BATCHES, 1)), "y": np.tile(Y[:BATCH], (BATCHES, 1))}
    with mka.track("count", log_system_metrics=False) as run:
        fit(overflowing(), mka.MlflowLogger(), **same, epochs=4)
    skipped = int(client.get_run(run.run_id).data.metrics["optimizer/skipped_updates"])
    assert 1 < skipped < 4 * BATCHES
    for window, expected in (
        (skipped, {"alert": "nonfinite_gradients", "alert.step": str(skipped)}),
        (skipped + 1, {}),
    ):
        with mka.track("skipped", log_system_metrics=False) as run:
            fit(overflowing(), StallAlert("loss", window=window), **same, epochs=4)
        assert tags(client, run) == expected


def test_an_optimizer_that_is_not_seen_leaves_the_monitor(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    hidden = keras.optimizers.SGD(0.0)

    class Hidden(keras.Sequential):
        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(y - self(x, training=True)))
            gradients = tape.gradient(loss, self.trainable_variables)
            hidden.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"loss": loss}

    model = Hidden(net().layers)
    model.compile("rmsprop", "mse")
    with mka.track("hidden", log_system_metrics=False) as run:
        fit(model, StallAlert("loss", patience=2, window=1), x=0 * X, epochs=4)
    assert tags(client, run) == {"alert": "no_improvement", "alert.step": str(3 * BATCHES)}


def test_every_step_of_a_long_epoch_is_seen_without_a_logger(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    x, y = np.zeros((1200, 4), np.float32), np.zeros((1200, 1), np.float32)
    with mka.track("long", log_system_metrics=False) as run:
        fit(net(), StallAlert("loss", window=1100), x=x, y=y, batch_size=1)
    assert tags(client, run) == {"alert": "vanishing_gradients", "alert.step": "1100"}


@pytest.mark.parametrize("before", [True, False])
def test_in_a_loop_beside_the_logger(
    before: bool, experiment: str, client: mlflow.MlflowClient
) -> None:
    model, optimizer = net(), keras.optimizers.SGD(0.0)
    data = tf.data.Dataset.from_tensor_slices((0 * X, Y)).batch(BATCH)
    callbacks = [StallAlert("loss", window=8, stop=True), mka.MlflowLogger()]
    callbacks = callbacks if before else callbacks[::-1]
    loop = mka.Loop(model, optimizers=optimizer, callbacks=callbacks, verbose=0)

    @tf.function
    def step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(y - model(x, training=True)))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        loop.record(loss=loss)

    with mka.track("loop", log_system_metrics=False) as run:
        epochs = 0
        for _ in loop.epochs(5):
            epochs += 1
            for x, y in loop.batches(data):
                step(x, y)
    assert epochs == 2
    assert tags(client, run) == {"alert": "vanishing_gradients", "alert.step": "8"}
    history = client.get_metric_history(run.run_id, "gradient/norm")
    assert [point.step for point in history] == list(range(1, 2 * BATCHES + 1))


def test_each_training_begins_anew_also_with_copies(
    experiment: str, client: mlflow.MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    alert = StallAlert("loss", window=4)
    with mka.track("copies", log_system_metrics=False) as run:
        fit(net(rate=0.0), alert, x=0 * X)
        fit(net(rate=0.0), alert, x=0 * X)
        fit(net(rate=0.0), pickle.loads(pickle.dumps(copy.deepcopy(alert))), x=0 * X)
    steps = [4, BATCHES + 4, 2 * BATCHES + 4]
    text = "vanishing_gradients at step {}: gradient/norm, for 4 updates in a row."
    assert said(caplog) == [text.format(step) for step in steps]
    assert tags(client, run)["alert.step"] == str(steps[-1])


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()], ids=repr)
def test_a_training_that_raises_is_put_back_and_its_alerts_are_kept(
    error: BaseException, experiment: str, client: mlflow.MlflowClient
) -> None:
    class Break(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if batch == 5:
                raise error

    model = net(rate=0.0)
    with pytest.raises(type(error)), mka.track("raised", log_system_metrics=False) as run:
        fit(model, StallAlert("loss", window=4), Break(), x=0 * X)
    assert tags(client, run) == {"alert": "vanishing_gradients", "alert.step": "4"}
    assert "train_step" not in vars(model)
    assert "apply" not in vars(model.optimizer)


def test_without_a_run_it_says_so_once_and_is_silent(
    experiment: str, client: mlflow.MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    fit(net(rate=0.0), StallAlert("loss", window=2, stop=True), x=0 * X, epochs=2)
    (message,) = said(caplog)
    assert "StallAlert does nothing in this training: it has no run" in message
    assert client.search_runs([experiment]) == []


@pytest.mark.parametrize("arguments", [{"patience": 0}, {"window": 0}, {"mode": "lowest"}], ids=str)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Received"):
        StallAlert(**arguments)

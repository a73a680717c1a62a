"""Each value in the logs of an epoch is on record under a key that says what it is."""

import copy
import logging
import pickle
from collections.abc import Callable
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_keras_adv as mka
from mlflow_keras_adv.tracking.run import Run

Curves = dict[str, dict[int, float]]

rng = np.random.default_rng(0)
X = rng.normal(size=(32, 4)).astype(np.float32)
Y = keras.utils.to_categorical(np.arange(32) % 3, 3).astype(np.float32)


class Fixed(keras.metrics.Mean):
    """A metric that says the same of any data."""

    def __init__(self, value: float, name: str) -> None:
        super().__init__(name=name)
        self.value = value

    def update_state(self, *_: Any, **__: Any) -> Any:
        return super().update_state(self.value)


class Adds(keras.callbacks.Callback):
    """Adds values to the logs of each epoch."""

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self.values = values

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs |= self.values


def net(*metrics: Any, optimizer: Any = "sgd") -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    model.compile(optimizer, "categorical_crossentropy", metrics=list(metrics))
    return model


def fit_recorded(model: keras.Model, *callbacks: Any, y: Any = Y, **fit: Any) -> Run:
    logger = fit.pop("logger", None) or mka.MlflowLogger()
    arguments = {"epochs": 2, "batch_size": 16, "verbose": 0, "shuffle": False}
    with mka.track("keys", log_system_metrics=False) as run:
        model.fit(X, y, **(arguments | fit), callbacks=[*callbacks, logger])
    return run


def warnings_of(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    ours = [r for r in caplog.records if r.name.startswith("mlflow_keras_adv")]
    return [r.getMessage() for r in ours if text in r.getMessage()]


def test_names_that_differ_only_in_what_mlflow_forbids_are_curves_of_their_own(
    experiment: str, curves: Callable[[str], Curves], caplog: pytest.LogCaptureFixture
) -> None:
    names = {"hit@5": 7.0, "hit#5": 1.0, "a/b": 2.0, "a//b": 3.0}  # Keras sorts them
    model = net(*(Fixed(value, name) for name, value in names.items()))
    found = curves(fit_recorded(model, validation_data=(X, Y)).run_id)
    for split in ("train", "val"):
        for key, value in {"hit_5": 1.0, "hit_5.2": 7.0, "a/b": 2.0, "a/b.2": 3.0}.items():
            assert found[f"{split}/{key}"] == {2: value, 4: value}
    assert len(warnings_of(caplog, "would be one in MLflow")) == 4


def test_a_metric_that_is_named_as_one_of_ours_is_on_record_beside_it(
    experiment: str, curves: Callable[[str], Curves], caplog: pytest.LogCaptureFixture
) -> None:
    names = {"epoch": 9.0, "step_ms": 11.0, "examples_per_second": 12.0, "learning_rate": 5.0}
    model = net(*(Fixed(value, name) for name, value in names.items()))
    found = curves(fit_recorded(model, validation_data=(X, Y)).run_id)

    assert found["train/epoch"] == {2: 1, 4: 2}
    assert found["train/epoch.2"] == {2: 9, 4: 9}
    assert found["train/step_ms.2"] == {2: 11, 4: 11}
    assert found["train/examples_per_second.2"] == {2: 12, 4: 12}
    assert found["train/learning_rate"] == {2: 5, 4: 5}
    assert set(found["optimizer/learning_rate"].values()) == {np.float32(0.01)}
    for name, value in names.items():
        assert found[f"val/{name}"] == {2: value, 4: value}
    assert len(warnings_of(caplog, "since there is")) == 3


def test_the_rate_that_keras_puts_into_the_logs_is_on_record_once(
    experiment: str, curves: Callable[[str], Curves]
) -> None:
    callbacks = [
        keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (1 + epoch)),
        keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=9),
    ]
    for callback in callbacks:
        found = curves(fit_recorded(net(), callback, epochs=4).run_id)
        assert "train/learning_rate" not in found
        assert len(set(found["optimizer/learning_rate"].values())) > 1
    found = curves(fit_recorded(net(), Adds(learning_rate=0.7)).run_id)
    assert found["train/learning_rate"] == {2: 0.7, 4: 0.7}
    found = curves(fit_recorded(net(), Adds(learning_rate=[0.01, 0.7], lr=None)).run_id)
    assert found["train/learning_rate/1"] == {2: 0.7, 4: 0.7}


class TwoOutputs(keras.Model):
    """Two outputs, one of which is called as if it were of a validation."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = {name: keras.layers.Dense(1) for name in ("val_arousal", "mood")}
        self.all = list(self.heads.values())

    def call(self, x: Any) -> Any:
        return {name: head(x) for name, head in self.heads.items()}


@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("loss_of_outputs", ["functional", "subclass"])
def test_an_output_whose_name_begins_with_val_keeps_training_and_validation_apart(
    loss_of_outputs: str,
    validates: bool,
    experiment: str,
    curves: Callable[[str], Curves],
) -> None:
    keras.utils.set_random_seed(0)
    if loss_of_outputs == "functional":
        inputs = keras.Input((4,))
        names = ("val_arousal", "mood")
        outputs = {name: keras.layers.Dense(1, name=name)(inputs) for name in names}
        model = keras.Model(inputs, outputs)
    else:
        model = TwoOutputs()
        model(X[:1])
    losses = {"val_arousal": "mse", "mood": "mse"}
    model.compile("sgd", losses, metrics={"val_arousal": "mae", "mood": "mae"})
    y = {"val_arousal": X[:, :1], "mood": X[:, 1:2]}
    away = {"val_arousal": 50 + X[:, :1], "mood": X[:, 1:2]}
    more = {"validation_data": (X, away), "validation_freq": 2} if validates else {}
    found = curves(fit_recorded(model, Adds(val_extra=3.0), y=y, epochs=4, **more).run_id)
    history = model.history.history

    for name in ("loss", "val_arousal_loss", "val_arousal_mae", "mood_loss", "mood_mae"):
        expected = dict(zip([2, 4, 6, 8], history[name], strict=True))
        assert found[f"train/{name}"] == pytest.approx(expected)
        if validates:
            expected = dict(zip([4, 8], history[f"val_{name}"], strict=True))
            assert found[f"val/{name}"] == pytest.approx(expected)
        else:
            assert f"val/{name}" not in found
    assert found["val/extra"] == {2: 3, 4: 3, 6: 3, 8: 3}
    assert "val/arousal_loss" not in found
    assert "train/val_extra" not in found


def test_a_name_that_keras_itself_gives_to_two_values_is_said(
    experiment: str, curves: Callable[[str], Curves], caplog: pytest.LogCaptureFixture
) -> None:
    model = net(Fixed(1.0, "x"), Fixed(2.0, "val_x"))
    found = curves(fit_recorded(model, validation_data=(X, Y)).run_id)
    assert found["train/x"] == found["val/x"] == {2: 1, 4: 1}
    assert found["val/val_x"] == {2: 2, 4: 2}
    assert len(warnings_of(caplog, "both have a value named 'val_x'")) == 1


class OwnSteps(keras.Model):
    """Returns names from its own steps that no metric has."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.dense(x)

    def train_step(self, data: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=data[1], y_pred=self(data[0], training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"energy": loss}

    def test_step(self, data: Any) -> dict[str, Any]:
        return {"distance": tf.constant(4.0)}


def test_own_steps_may_return_other_names_in_training_than_in_validation(
    experiment: str, curves: Callable[[str], Curves]
) -> None:
    model = OwnSteps()
    model.compile("sgd", "mse")
    found = curves(fit_recorded(model, validation_data=(X, Y)).run_id)
    assert list(found["train/energy"]) == [2, 4]
    assert found["val/distance"] == {2: 4, 4: 4}


@pytest.mark.parametrize("class_names", [(), ("cat", "dog", "1/2 @ night")])
def test_a_metric_with_a_value_for_each_class_is_a_curve_for_each(
    class_names: tuple[str, ...],
    experiment: str,
    curves: Callable[[str], Curves],
) -> None:
    logger = mka.MlflowLogger(class_names=class_names)
    for each in (logger, copy.deepcopy(logger), pickle.loads(pickle.dumps(logger))):
        model = net(keras.metrics.F1Score(average=None, name="f1"), "accuracy")
        run = fit_recorded(model, logger=each, validation_data=(X, Y))
        found = curves(run.run_id)
        names = ("cat", "dog", "1/2 _ night") if class_names else ("0", "1", "2")
        for split, prefix in (("train", ""), ("val", "val_")):
            history = model.history.history[f"{prefix}f1"]
            for index, name in enumerate(names):
                expected = {2: float(history[0][index]), 4: float(history[1][index])}
                assert found[f"{split}/f1/{name}"] == expected
            assert len(found[f"{split}/accuracy"]) == 2
        assert not run.receipt.refused_names


def test_entries_and_suffixes_take_the_place_of_no_other_value(
    experiment: str, curves: Callable[[str], Curves], caplog: pytest.LogCaptureFixture
) -> None:
    added = Adds(epoch=5.0, f1=[1.0, 2.0])
    added.values |= {"epoch.2": 6.0, "f1/0": 7.0}
    found = curves(fit_recorded(net(), added).run_id)
    for key, value in {
        "epoch.2": 6,
        "epoch.2.2": 5,
        "f1/0": 7,
        "f1/0.2": 1,
        "f1/1": 2,
    }.items():
        assert found[f"train/{key}"] == {2: value, 4: value}
    assert found["train/epoch"] == {2: 1, 4: 2}
    assert len(warnings_of(caplog, "since there is")) == 2


def test_class_names_that_are_equal_are_refused() -> None:
    with pytest.raises(ValueError, match=r"class_names=\['a', 'a'\]; expected names that differ"):
        mka.MlflowLogger(class_names=["a", "a"])


def test_what_in_the_logs_is_no_number_is_refused_by_name_and_the_training_goes_on(
    experiment: str, curves: Callable[[str], Curves], caplog: pytest.LogCaptureFixture
) -> None:
    odd = {"note": "good", "nothing": None, "wide": np.zeros(65), "thing": object()}
    fine = {"list": [1, 2], "array": np.float64([3, 4]), "val_tensor": tf.constant([5.0, 6.0])}
    added = Adds(**odd, **fine)
    added.values |= {7: 8.0}
    run = fit_recorded(net(), added)

    found = curves(run.run_id)
    for key, value in {
        "train/list/0": 1,
        "train/array/1": 4,
        "val/tensor/0": 5,
        "val/tensor/1": 6,
        "train/7": 8,
    }.items():
        assert found[key] == {2: value, 4: value}
    assert run.receipt.refused_names == {f"train/{name}": 2 for name in odd}
    assert len(warnings_of(caplog, "is not recorded")) == len(odd)


@pytest.mark.parametrize("monitor", ["val_f1", "note"])
def test_what_cannot_be_watched_is_said_once_and_the_training_goes_on(
    monitor: str, experiment: str, client: mlflow.MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    model = net(keras.metrics.F1Score(average=None, name="f1"))
    callbacks = [
        Adds(note="good"),
        mka.StallAlert(monitor, mode="max", patience=1),
        mka.Checkpoints(monitor, mode="max"),
    ]
    run = fit_recorded(model, *callbacks, epochs=3, validation_data=(X, Y))
    assert len(model.history.epoch) == 3
    assert len(warnings_of(caplog, f"'{monitor}' cannot be watched")) == 2
    assert "alert" not in client.get_run(run.run_id).data.tags


def test_the_direction_of_a_metric_whose_own_name_begins_with_val(
    experiment: str, client: mlflow.MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    metric = keras.metrics.CategoricalAccuracy(name="val_hits")
    fit_recorded(net(metric), mka.StallAlert("val_hits"), validation_data=(X, Y))
    assert not warnings_of(caplog, "cannot be watched")


def test_a_loop_logs_arrays_and_leaves_out_what_is_no_number(
    experiment: str, curves: Callable[[str], Curves], caplog: pytest.LogCaptureFixture
) -> None:
    model = net()
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)
    seen: list[dict[str, Any]] = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs: seen.append(dict(logs)))
    f1 = keras.metrics.F1Score(average=None)
    f1.update_state(Y, model(X))
    with (
        mka.track("loop", log_system_metrics=False) as run,
        caplog.at_level(logging.WARNING, "mlflow_keras_adv"),
    ):
        callbacks = [note, mka.MlflowLogger(class_names=["a", "b", "c"])]
        loop = mka.Loop(model, optimizers=model.optimizer, callbacks=callbacks, verbose=1)

        @tf.function(reduce_retracing=True)
        def step(x: Any, y: Any) -> None:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(x) - y) ** 2, axis=0)
            gradients = tape.gradient(loss, model.trainable_variables)
            model.optimizer.apply(gradients, model.trainable_variables)
            loop.record(per_class=loss, loss=loss[:1], wide=tf.zeros(65), text="a", val_loss=1.0)

        for _ in loop.epochs(2):
            for x, y in loop.batches(data):
                step(x, y)
            loop.log(val_f1=f1.result(), val_accuracy=tf.constant(0.5), note="x", nothing=None)
            loop.log(learning_rate=3.0, pair=[1, 2])
    found = curves(run.run_id)

    values = f1.result().numpy()
    for index, name in enumerate("abc"):
        assert found[f"val/f1/{name}"] == {2: float(values[index]), 4: float(values[index])}
        assert list(found[f"batch/per_class/{index}"]) == [1, 2, 3, 4]
        assert list(found[f"train/per_class/{index}"]) == [2, 4]
    assert list(found["batch/loss"]) == [1, 2, 3, 4]
    assert found["batch/loss"] == found["batch/per_class/0"]
    assert found["val/accuracy"] == {2: 0.5, 4: 0.5}
    assert found["train/learning_rate"] == {2: 3, 4: 3}
    assert found["train/pair/1"] == {2: 2, 4: 2}
    assert found["train/val_loss"] == {2: 1, 4: 1}  # recorded by the steps of the training
    np.testing.assert_array_equal(seen[0]["val_f1"], values)
    assert len(loop.history["val_f1"]) == 2
    for name in ("note", "nothing", "wide", "text"):
        assert len(warnings_of(caplog, f"leaves out {name!r}")) == 1

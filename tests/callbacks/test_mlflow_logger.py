"""What lands in the store, step by step, against values computed independently with a tape."""

import copy
import logging
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_keras_adv as mka

EPS = float(np.finfo(np.float32).eps)
# A value passes through some 10 to 100 float32 roundings on either way (XLA fuses and reorders
# them), which in the worst case all add up.
ROUNDING = 100 * EPS

rng = np.random.default_rng(0)
X = rng.normal(size=(100, 8)).astype(np.float32)
Y = rng.integers(0, 3, 100)
BATCH = 16
BATCHES = 7  # the last of 4 examples


def crossentropy() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net() -> keras.Model:
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(16, activation="relu", kernel_regularizer="l2")
    return keras.Sequential([keras.Input((8,)), hidden, keras.layers.Dense(3)])


def batches(epochs: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for _ in range(epochs):
        for start in range(0, len(X), BATCH):
            yield X[start : start + BATCH], Y[start : start + BATCH]


def replay(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    data: Iterator[tuple[Any, ...]],
) -> dict[str, list[float]]:
    """The same training by hand: loss, norm and rate of each step, read before the update."""
    record: dict[str, list[float]] = {"loss": [], "norm": [], "rate": []}
    for x, y, *weight in data:
        with tf.GradientTape() as tape:
            loss = crossentropy()(y, model(x, training=True), *weight) + sum(model.losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        squares = [np.sum(np.square(np.asarray(tf.convert_to_tensor(g), float))) for g in gradients]
        record["loss"].append(float(loss))
        record["norm"].append(float(np.sqrt(sum(squares))))
        record["rate"].append(float(optimizer.learning_rate))
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return record


def fit_recorded(model: keras.Model, **fit: Any) -> str:
    arguments = {"x": X, "y": Y, "batch_size": BATCH, "shuffle": False, "verbose": 0}
    with mka.track("fit", log_system_metrics=False) as run:
        model.fit(**(arguments | fit), callbacks=[mka.MlflowLogger()])
    return run.run_id


def assert_curve(found: dict[int, float], expected: list[float], first_step: int = 1) -> None:
    assert list(found) == list(range(first_step, first_step + len(expected)))
    np.testing.assert_allclose(list(found.values()), expected, rtol=ROUNDING)


@pytest.mark.parametrize(
    "mode",
    [
        {},
        {"run_eagerly": True},
        {"jit_compile": True},
        {"jit_compile": False},
        {"steps_per_execution": 4},
        {"steps_per_execution": 7, "jit_compile": False},
        {"steps_per_execution": 3, "jit_compile": True},
    ],
    ids=str,
)
def test_each_step_of_fit_is_recorded_as_a_tape_computes_it(
    mode: dict[str, Any], experiment: str, curves: Callable[[str], Any]
) -> None:
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, 10)
    model = net()
    model.compile(keras.optimizers.Adam(schedule), crossentropy(), metrics=["accuracy"], **mode)
    found = curves(fit_recorded(model, epochs=2, validation_data=(X, Y)))

    expected = replay(net(), keras.optimizers.Adam(schedule), batches(epochs=2))
    assert_curve(found["batch/loss"], expected["loss"])
    assert_curve(found["gradient/norm"], expected["norm"])
    # cos() of float32 arguments up to pi carries an absolute error of some eps into 1 + cos,
    # which towards the end of the decay is all that is left of the rate.
    rates = list(found["optimizer/learning_rate"].values())
    np.testing.assert_allclose(rates, expected["rate"], rtol=0, atol=1e-2 * 4 * EPS)
    assert "gradient/norm_clipped" not in found


def test_epoch_values_stand_on_the_step_on_which_the_epoch_ended(
    experiment: str, curves: Callable[[str], Any]
) -> None:
    model = net()
    model.compile("sgd", crossentropy(), metrics=["accuracy"])
    found = curves(fit_recorded(model, epochs=3, validation_data=(X, Y)))
    history = model.history.history
    ends = [BATCHES, 2 * BATCHES, 3 * BATCHES]
    for key, name in [
        ("train/loss", "loss"),
        ("train/accuracy", "accuracy"),
        ("val/loss", "val_loss"),
        ("val/accuracy", "val_accuracy"),
    ]:
        assert found[key] == dict(zip(ends, history[name], strict=True))
    assert found["train/epoch"] == {7: 1, 14: 2, 21: 3}
    assert all(value > 0 for value in found["train/step_ms"].values())
    per_second, step_ms = found["train/examples_per_second"], found["train/step_ms"]
    for end in ends:  # 100 examples in 7 batches, in the same seconds
        assert per_second[end] * step_ms[end] / 1000 * BATCHES == pytest.approx(100)
    assert {key.split("/")[0] for key in found} == {
        "batch",
        "gradient",
        "optimizer",
        "train",
        "val",
    }


@pytest.mark.parametrize(
    ("clipping", "clip"),
    [
        ({"clipvalue": 0.01}, lambda gs: [np.clip(g, -0.01, 0.01) for g in gs]),
        (
            {"clipnorm": 0.1},
            lambda gs: [g * min(1, 0.1 / np.linalg.norm(g)) for g in gs],
        ),
        (
            {"global_clipnorm": 0.1},
            lambda gs: [g * min(1, 0.1 / np.sqrt(sum(np.sum(h**2) for h in gs))) for g in gs],
        ),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_norms_before_and_after_clipping(
    clipping: dict[str, float],
    clip: Callable[..., Any],
    experiment: str,
    curves: Callable[[str], Any],
) -> None:
    model = net()
    model.compile(keras.optimizers.SGD(0.1, **clipping), crossentropy())
    found = curves(fit_recorded(model))

    replayed = net()
    for step, (x, y) in enumerate(batches(), start=1):
        with tf.GradientTape() as tape:
            loss = crossentropy()(y, replayed(x, training=True)) + sum(replayed.losses)
        gradients = [g.numpy() for g in tape.gradient(loss, replayed.trainable_variables)]
        norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
        clipped = clip(gradients)
        norm_clipped = np.sqrt(sum(np.sum(g**2) for g in clipped))
        assert found["gradient/norm"][step] == pytest.approx(norm, rel=ROUNDING)
        assert found["gradient/norm_clipped"][step] == pytest.approx(norm_clipped, rel=ROUNDING)
        for variable, gradient in zip(replayed.trainable_variables, clipped, strict=True):
            variable.assign_sub(0.1 * gradient)


def test_class_and_sample_weights_are_in_the_recorded_loss(
    experiment: str, curves: Callable[[str], Any]
) -> None:
    weight = rng.uniform(0.5, 2, 100).astype(np.float32)
    by_class = {0: 1.0, 1: 3.0, 2: 0.5}
    factor = weight * np.array([by_class[y] for y in Y], np.float32)
    weighted = [(x, y, factor[i * BATCH : i * BATCH + BATCH]) for i, (x, y) in enumerate(batches())]
    expected = replay(net(), keras.optimizers.SGD(0.1), iter(weighted))

    model = net()
    model.compile(keras.optimizers.SGD(0.1), crossentropy())
    found = curves(fit_recorded(model, sample_weight=factor))
    assert_curve(found["batch/loss"], expected["loss"])
    assert_curve(found["gradient/norm"], expected["norm"])

    model = net()
    model.compile(keras.optimizers.SGD(0.1), crossentropy())
    found = curves(fit_recorded(model, class_weight=by_class))
    only_class = [(x, y, np.array([by_class[each] for each in y])) for x, y in batches()]
    expected = replay(net(), keras.optimizers.SGD(0.1), iter(only_class))
    assert_curve(found["batch/loss"], expected["loss"])


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # Keras, of any unknown length
@pytest.mark.parametrize("source", ["generator", "tf.data of unknown length"])
def test_data_of_unknown_length(source: str, experiment: str, curves: Callable[[str], Any]) -> None:
    spec = (tf.TensorSpec([None, 8]), tf.TensorSpec([None], tf.int64))
    unknown = tf.data.Dataset.from_generator(batches, output_signature=spec)
    model = net()
    model.compile(keras.optimizers.SGD(0.1), crossentropy())
    fit = {"y": None, "batch_size": None}
    if source == "generator":
        run_id = fit_recorded(model, x=batches(2), steps_per_epoch=BATCHES, epochs=2, **fit)
    else:
        run_id = fit_recorded(model, x=unknown, epochs=2, **fit)
    found = curves(run_id)
    expected = replay(net(), keras.optimizers.SGD(0.1), batches(2))
    assert_curve(found["batch/loss"], expected["loss"])
    assert list(found["train/loss"]) == [BATCHES, 2 * BATCHES]


def test_rates_set_by_keras_callbacks_are_those_of_each_update(
    experiment: str, curves: Callable[[str], Any]
) -> None:
    model = net()
    model.compile(keras.optimizers.SGD(1.0), crossentropy())
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (1 + epoch))
    with mka.track("rates", log_system_metrics=False) as run:
        arguments = {"batch_size": BATCH, "epochs": 3, "verbose": 0}
        model.fit(X, Y, **arguments, callbacks=[scheduler, mka.MlflowLogger()])
    found = curves(run.run_id)
    expected = np.repeat(np.float32([0.1, 0.05, 0.1 / 3]), BATCHES)
    assert_curve(found["optimizer/learning_rate"], expected.tolist())
    assert "train/learning_rate" not in found


def test_a_second_fit_continues_the_axis_and_records_changed_settings(
    experiment: str, curves: Callable[[str], Any], client: mlflow.MlflowClient
) -> None:
    model = net()
    logger = mka.MlflowLogger()
    with mka.track("twice", log_system_metrics=False) as run:
        for rate in (0.1, 0.01):
            model.compile(keras.optimizers.SGD(rate), crossentropy())
            model.fit(X, Y, batch_size=BATCH, epochs=2, verbose=0, callbacks=[logger])
    found = curves(run.run_id)
    assert list(found["batch/loss"]) == list(range(1, 4 * BATCHES + 1))
    assert list(found["train/loss"]) == [7, 14, 21, 28]
    data = client.get_run(run.run_id).data
    assert data.params["optimizer.learning_rate"] == "0.1"
    assert data.tags["param.optimizer.learning_rate.changed"] == "0.01"
    assert data.params["optimizer.class"] == "SGD"
    files = {file.path for file in client.list_artifacts(run.run_id)}
    assert {"config.json", "config-2.json", "model_summary.txt"} <= files


class Interrupt(keras.callbacks.Callback):
    """Raises in the middle of the second epoch, once."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error: BaseException | None = error

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.error is not None and self.model.optimizer.iterations == 10:
            error, self.error = self.error, None
            raise error


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("same_logger", [True, False])
def test_an_interrupted_fit_then_a_good_one_neither_lose_nor_double_a_step(
    error: BaseException, same_logger: bool, experiment: str, curves: Callable[[str], Any]
) -> None:
    def interrupted_then_good(first: list[Any], second: list[Any]) -> keras.Model:
        model = net()
        model.compile(keras.optimizers.SGD(0.1), crossentropy())
        fit = {"batch_size": BATCH, "epochs": 2, "shuffle": False, "verbose": 0}
        with pytest.raises(type(error)):
            model.fit(X, Y, **fit, callbacks=[*first, Interrupt(error)])
        model.fit(X, Y, **fit, callbacks=second)
        return model

    with mka.track("interrupted", log_system_metrics=False) as run:
        logger = mka.MlflowLogger()
        ours = interrupted_then_good([logger], [logger if same_logger else mka.MlflowLogger()])
    plain = interrupted_then_good([], [])
    assert vars(ours).keys() == vars(plain).keys()
    assert vars(ours.optimizer).keys() == vars(plain.optimizer).keys()
    for variable, expected in zip(ours.variables, plain.variables, strict=True):
        np.testing.assert_array_equal(variable, expected)

    found = curves(run.run_id)
    steps = [*list(batches(2))[:10], *batches(2)]
    expected = replay(net(), keras.optimizers.SGD(0.1), iter(steps))
    assert_curve(found["batch/loss"], expected["loss"])
    assert_curve(found["gradient/norm"], expected["norm"])


def test_an_interrupted_fit_is_put_back_when_the_track_ends(
    experiment: str, curves: Callable[[str], Any]
) -> None:
    model = net()
    model.compile(keras.optimizers.SGD(0.1), crossentropy())
    with pytest.raises(ValueError, match="broken"), mka.track("raised") as run:
        model.fit(
            X,
            Y,
            batch_size=BATCH,
            epochs=2,
            verbose=0,
            callbacks=[mka.MlflowLogger(), Interrupt(ValueError("broken"))],
        )
    assert "train_step" not in vars(model)
    assert not {"apply", "_clip_gradients"} & set(vars(model.optimizer))
    assert list(curves(run.run_id)["batch/loss"]) == list(range(1, 11))


def test_the_logger_survives_copies_and_pickle_before_and_after_training(
    experiment: str, curves: Callable[[str], Any]
) -> None:
    model = net()
    model.compile("sgd", crossentropy())
    with mka.track("copies", log_system_metrics=False) as run:
        logger = mka.MlflowLogger()
        for _ in range(2):
            for copied in (copy.deepcopy(logger), pickle.loads(pickle.dumps(logger))):
                model.fit(X, Y, batch_size=50, verbose=0, callbacks=[copied])
            model.fit(X, Y, batch_size=50, verbose=0, callbacks=[logger])
    assert list(curves(run.run_id)["batch/loss"]) == list(range(1, 13))


def test_a_plain_mlflow_run_is_used_and_left_open(
    experiment: str, curves: Callable[[str], Any], client: mlflow.MlflowClient
) -> None:
    model = net()
    model.compile("sgd", crossentropy())
    with mlflow.start_run() as active:
        for _ in range(2):
            model.fit(X, Y, batch_size=BATCH, verbose=0, callbacks=[mka.MlflowLogger()])
        run = mka.current_run()
        assert run is not None
        assert run.flush(timeout=60)
        assert mlflow.active_run().info.run_id == active.info.run_id == run.run_id
        assert client.get_run(active.info.run_id).info.status == "RUNNING"
    assert client.get_run(active.info.run_id).info.status == "FINISHED"
    assert list(curves(active.info.run_id)["batch/loss"]) == list(range(1, 15))


def test_without_any_run_the_logger_opens_and_ends_its_own(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    model = net()
    model.compile("sgd", crossentropy())
    model.fit(X, Y, batch_size=BATCH, verbose=0, callbacks=[mka.MlflowLogger()])
    assert mlflow.active_run() is None
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert "batch/loss" in run.data.metrics


def test_settings_and_versions_are_on_the_run(experiment: str, client: mlflow.MlflowClient) -> None:
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, 10)
    model = net()
    model.compile(keras.optimizers.AdamW(schedule), crossentropy())
    data = client.get_run(fit_recorded(model)).data
    assert data.params["optimizer.class"] == "AdamW"
    assert data.params["optimizer.learning_rate.class"] == "CosineDecay"
    assert data.params["optimizer.learning_rate.initial_learning_rate"] == "0.01"
    assert data.params["optimizer.weight_decay"] == "0.004"
    assert data.params["model.parameters"] == str(8 * 16 + 16 + 16 * 3 + 3)
    assert data.params["fit.epochs"] == "1"
    assert data.tags["keras"] == keras.__version__
    assert data.tags["tensorflow"] == tf.__version__
    assert data.tags["dtype_policy"] == "float32"


def test_evaluation_does_not_overwrite_a_recorded_training_loss(
    experiment: str, curves: Callable[[str], Any]
) -> None:
    class OwnTest(keras.Sequential):
        def test_step(self, data: Any) -> Any:
            x, y = data
            return {"loss": 1e6 + self.compute_loss(x, y, self(x, training=False))}

    model = OwnTest(net().layers)
    model.compile(keras.optimizers.SGD(0.1), crossentropy())
    found = curves(fit_recorded(model, validation_data=(X, Y), epochs=2))
    expected = replay(net(), keras.optimizers.SGD(0.1), batches(2))
    assert_curve(found["batch/loss"], expected["loss"])


def test_an_optimizer_that_is_not_seen_is_said_once_and_recorded_as_nothing(
    experiment: str, curves: Callable[[str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    hidden = keras.optimizers.SGD(0.1)

    class Hidden(keras.Sequential):
        def train_step(self, data: Any) -> Any:
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(crossentropy()(y, self(x, training=True)))
            gradients = tape.gradient(loss, self.trainable_variables)
            hidden.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"crossentropy": tf.reshape(loss, [1])}

    model = Hidden(net().layers)
    model.compile("rmsprop", crossentropy())
    with caplog.at_level(logging.WARNING, "mlflow_keras_adv"):
        found = curves(fit_recorded(model, epochs=3))
    said = [record.getMessage() for record in caplog.records]
    assert len([each for each in said if "No optimizer of" in each]) == 1
    assert len([each for each in said if "compute_loss" in each]) == 1
    assert list(found["train/epoch"]) == [7, 14, 21]
    assert not {key for key in found if key.startswith(("gradient/", "optimizer/", "batch/"))}


def test_a_model_that_cannot_be_described_is_trained_and_said(
    experiment: str, curves: Callable[[str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Shy(keras.Sequential):
        def summary(self, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("no summary")

    model = Shy(net().layers)
    model.compile("sgd", crossentropy())
    with caplog.at_level(logging.WARNING, "mlflow_keras_adv"):
        found = curves(fit_recorded(model, epochs=2))
    assert list(found["batch/loss"]) == list(range(1, 15))
    (said,) = (record.getMessage() for record in caplog.records)
    assert "no summary" in said


def test_what_a_callback_behind_adds_to_the_logs_is_on_record(
    experiment: str, curves: Callable[[str], Any]
) -> None:
    class Adds(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["bleu"], logs["val_bleu"] = 0.1 * epoch, 0.2 * epoch

    model = net()
    model.compile("sgd", crossentropy())
    with mka.track("added", log_system_metrics=False) as run:
        fit: dict[str, Any] = {"batch_size": BATCH, "epochs": 3, "verbose": 0}
        model.fit(X, Y, **fit, callbacks=[mka.MlflowLogger(), Adds()])
    found = curves(run.run_id)
    assert found["train/bleu"] == pytest.approx({7: 0.0, 14: 0.1, 21: 0.2})
    assert found["val/bleu"] == pytest.approx({7: 0.0, 14: 0.2, 21: 0.4})


def test_how_fit_was_called_and_which_epoch_was_the_best(
    experiment: str, client: mlflow.MlflowClient, curves: Callable[[str], Any]
) -> None:
    class Worsens(keras.callbacks.Callback):
        """From the second epoch on the model unlearns."""

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["score"] = [0.5, 0.9, 0.7, 0.6, 0.5][epoch]

    stop = keras.callbacks.EarlyStopping(
        "score", patience=2, mode="max", restore_best_weights=True, verbose=0
    )
    model = net()
    model.compile("sgd", crossentropy())
    with mka.track("best", log_system_metrics=False) as run:
        fit: dict[str, Any] = {"batch_size": BATCH, "epochs": 5, "verbose": 0}
        weights = {0: 1.0, 1: 2.0, 2: 1.0}
        callbacks = [mka.MlflowLogger(), Worsens(), stop]
        model.fit(X, Y, **fit, class_weight=weights, callbacks=callbacks)
    found = curves(run.run_id)
    assert found["final/best/score"] == {0: 0.9}
    assert found["final/best_epoch"] == found["final/restored_epoch"] == {0: 2}
    assert found["final/stopped_epoch"] == {0: 4}
    params = client.get_run(run.run_id).data.params
    assert params["fit.batch_size"] == str(BATCH)
    assert params["fit.steps_per_epoch"] == str(BATCHES)
    assert params["fit.epochs"] == "5"
    assert "fit.class_weight" in params


def test_in_a_run_of_the_users_own_the_record_is_there_when_fit_returns(
    experiment: str, curves: Callable[[str], Any]
) -> None:
    model = net()
    model.compile("sgd", crossentropy())
    for number in (1, 2):
        with mlflow.start_run():
            fit: dict[str, Any] = {"batch_size": BATCH, "epochs": 2, "verbose": 0}
            model.fit(X, Y, **fit, callbacks=[mka.MlflowLogger()])
            run = mlflow.active_run()
            assert run is not None
            found = curves(run.info.run_id)
        assert list(found["batch/loss"]) == list(range(1, 15)), number
        assert list(found["train/loss"]) == [7, 14]


@pytest.mark.parametrize("how", ["autolog", "callback", "the same callback"])
def test_a_fit_of_another_model_inside_of_one_has_curves_of_its_own(
    how: str, experiment: str, client: mlflow.MlflowClient, curves: Callable[[str], Any]
) -> None:
    own = [mka.MlflowLogger()]
    loggers = {
        "autolog": lambda: [],
        "callback": lambda: [mka.MlflowLogger()],
        "the same callback": lambda: own,
    }[how]
    fit: dict[str, Any] = {"batch_size": BATCH, "verbose": 0, "shuffle": False}

    class Teaches(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            teacher.fit(X, Y, **fit, callbacks=loggers())

    teacher, model = net(), net()
    teacher.name = "teacher"
    teacher.compile(keras.optimizers.SGD(0.5), crossentropy())
    model.compile(keras.optimizers.SGD(0.1), crossentropy())
    if how == "autolog":
        mka.autolog()
    try:
        with mka.track("both", log_system_metrics=False) as run:
            model.fit(X, Y, **fit, epochs=2, callbacks=[Teaches(), *loggers()])
    finally:
        mka.autolog(disable=True)
    found = curves(run.run_id)
    assert list(found["batch/loss"]) == list(range(1, 15))
    assert set(found["optimizer/learning_rate"].values()) == {float(np.float32(0.1))}
    assert list(found["train/loss"]) == [7, 14]
    nested = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run.run_id}'")
    assert [each.info.run_name for each in nested] == ["teacher"] * 2
    for each in nested:
        inner = curves(each.info.run_id)
        assert list(inner["batch/loss"]) == list(range(1, 8))
        assert set(inner["optimizer/learning_rate"].values()) == {0.5}
    assert mlflow.active_run() is None


@pytest.mark.parametrize("ends", ["well", "by an exception"])
def test_a_fit_of_the_same_model_with_the_same_callback_inside_of_one(
    ends: str, experiment: str, curves: Callable[[str], Any]
) -> None:
    """Its steps are steps of the training that is on record, which goes on behind it."""
    logger = mka.MlflowLogger()
    fit: dict[str, Any] = {"batch_size": BATCH, "verbose": 0, "shuffle": False}

    class Raises(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if ends != "well" and batch == 2:
                raise ValueError("the user's own")

    class FitsAgain(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            with suppress(ValueError):
                model.fit(X, Y, **fit, callbacks=[logger, Raises()])

    model = net()
    model.compile("sgd", crossentropy())
    with mka.track("both", log_system_metrics=False) as run:
        model.fit(X, Y, **fit, epochs=2, callbacks=[FitsAgain(), logger])
    assert logger.model is model
    found = curves(run.run_id)
    inner = 7 if ends == "well" else 3
    assert list(found["batch/loss"]) == list(range(1, 15 + 2 * inner))
    assert list(found["train/loss"]) == [7 + inner, 14 + 2 * inner]
    assert list(found["train/epoch"].values()) == [1, 2]


def test_no_warning_comes_from_looking_at_settings(experiment: str) -> None:
    """Warnings are errors here; Keras warns of a lambda where a configuration is made."""
    model = net()
    model.compile(keras.optimizers.SGD(learning_rate=lambda: 0.1), crossentropy())
    fit_recorded(model)


class LosesWhatIsRaised(keras.callbacks.Callback):
    """As C code does that asks an object of Python's for an attribute."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 2:
            with suppress(SystemExit):
                os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("looped", [False, True])
def test_a_sigterm_whose_exception_is_lost_ends_the_training_with_the_next_batch(
    looped: bool, experiment: str, client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow_keras_adv.tracking.sigterm._terminated_in", None)
    model, optimizer = net(), keras.optimizers.SGD(0.1)
    model.compile(optimizer, crossentropy())
    callbacks = [mka.MlflowLogger(), LosesWhatIsRaised()]

    def train() -> None:
        if not looped:
            model.fit(X, Y, batch_size=BATCH, epochs=2, verbose=0, callbacks=callbacks)
            return
        loop = mka.Loop(model, optimizers=optimizer, callbacks=callbacks, verbose=0)
        for _ in loop.epochs(2):
            for x, y in loop.batches(batches()):
                with tf.GradientTape() as tape:
                    loss = crossentropy()(y, model(x, training=True))
                gradients = tape.gradient(loss, model.trainable_variables)
                optimizer.apply(gradients, model.trainable_variables)
                loop.record(loss=loss)

    with mka.track(log_system_metrics=False) as run, pytest.raises(SystemExit, match="143"):
        train()
    stored = client.get_metric_history(run.run_id, "batch/loss")
    assert [point.step for point in stored] == [1, 2, 3]


@pytest.mark.parametrize(
    "callback", [mka.LayerNorms, lambda: mka.Checkpoints("loss")], ids=["each batch", "each epoch"]
)
def test_a_lost_one_ends_a_training_without_a_logger_too(
    callback: Callable[[], Any], experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow_keras_adv.tracking.sigterm._terminated_in", None)
    model = net()
    model.compile(keras.optimizers.SGD(0.1), crossentropy())
    callbacks = [callback(), LosesWhatIsRaised()]
    with mka.track(log_system_metrics=False), pytest.raises(SystemExit, match="143"):
        model.fit(X, Y, batch_size=BATCH, epochs=2, verbose=0, callbacks=callbacks)
    model.evaluate(X, Y, verbose=0, callbacks=callbacks)  # which no training goes on in

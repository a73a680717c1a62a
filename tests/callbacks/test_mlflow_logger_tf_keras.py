"""Models of tf_keras, the ones that TensorFlow's model optimization toolkit trains."""

import logging
from collections.abc import Callable
from typing import Any

import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_keras_adv as mka

tf_keras = pytest.importorskip("tf_keras", reason="comes with the extra `compression`")

ROUNDING = 100 * float(np.finfo(np.float32).eps)  # some 10 to 100 roundings adding up at worst

rng = np.random.default_rng(0)
X = rng.normal(size=(100, 8)).astype(np.float32)
Y = rng.integers(0, 3, 100)
BATCHES = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 100, 16)]
Curves = Callable[[str], dict[str, dict[int, float]]]


def loss() -> Any:
    return tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net() -> Any:
    tf_keras.utils.set_random_seed(0)
    layers = tf_keras.layers
    return tf_keras.Sequential(
        [layers.Dense(16, activation="relu", input_shape=(8,)), layers.Dense(3)]
    )


@pytest.mark.parametrize(
    "mode",
    [{}, {"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 4}],
    ids=str,
)
def test_each_step_is_recorded_as_a_tape_computes_it(
    mode: dict[str, Any], experiment: str, curves: Curves, client: mlflow.MlflowClient
) -> None:
    schedule = tf_keras.optimizers.schedules.ExponentialDecay(0.1, 7, 0.5)
    model = net()
    before = vars(model).keys()
    optimizer = tf_keras.optimizers.SGD(schedule, global_clipnorm=0.5)
    model.compile(optimizer, loss(), metrics=["accuracy"], **mode)
    with mka.track("tf_keras", log_system_metrics=False) as run:
        fit = {"batch_size": 16, "epochs": 2, "shuffle": False, "verbose": 0}
        model.fit(X, Y, **fit, validation_data=(X, Y), callbacks=[mka.MlflowLogger()])
    assert not {"train_step", "compute_loss"} & (vars(model).keys() - before)
    assert "_clip_gradients" not in vars(optimizer)
    found = curves(run.run_id)

    replayed = net()
    for step in range(1, 15):
        x, y = BATCHES[(step - 1) % 7]
        with tf.GradientTape() as tape:
            value = loss()(y, replayed(x, training=True))
        gradients = [g.numpy() for g in tape.gradient(value, replayed.trainable_variables)]
        norm = float(np.sqrt(sum(np.sum(g**2) for g in gradients)))
        rate = 0.1 * 0.5 ** ((step - 1) / 7)
        clipped = min(norm, 0.5)
        assert found["batch/loss"][step] == pytest.approx(float(value), rel=step * ROUNDING)
        assert found["gradient/norm"][step] == pytest.approx(norm, rel=step * ROUNDING)
        assert found["gradient/norm_clipped"][step] == pytest.approx(clipped, rel=step * ROUNDING)
        assert found["optimizer/learning_rate"][step] == pytest.approx(rate, rel=ROUNDING)
        for variable, gradient in zip(replayed.trainable_variables, gradients, strict=True):
            variable.assign_sub(rate * gradient * clipped / norm)
    assert list(found["train/accuracy"]) == list(found["val/loss"]) == [7, 14]
    data = client.get_run(run.run_id).data
    assert data.params["optimizer.class"] == "SGD"
    assert data.params["model.parameters"] == str(8 * 16 + 16 + 16 * 3 + 3)


def test_an_optimizer_of_tf_keras_in_a_loop(experiment: str, curves: Curves) -> None:
    model, optimizer = net(), tf_keras.optimizers.Adam(0.01)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)
    with mka.track("loop", log_system_metrics=False) as run:
        callbacks = [mka.MlflowLogger()]
        loop = mka.Loop(model, optimizers=optimizer, callbacks=callbacks, verbose=0)

        @tf.function
        def step(x: Any, y: Any) -> None:
            with tf.GradientTape() as tape:
                value = loss()(y, model(x, training=True))
            gradients = tape.gradient(value, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            loop.record(loss=value)

        for _ in loop.epochs(2):
            loop.run(step, data, steps_per_call=3)
    found = curves(run.run_id)
    assert list(found["gradient/norm"]) == list(range(1, 15))
    assert set(found["optimizer/learning_rate"].values()) == {np.float32(0.01)}


def test_autolog_records_a_fit_of_tf_keras(
    experiment: str, client: mlflow.MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    mka.autolog()
    try:
        model = net()
        model.compile("sgd", loss())
        with caplog.at_level(logging.WARNING):
            model.fit(X, Y, batch_size=16, verbose=0)
    finally:
        mka.autolog(disable=True)
    (run,) = client.search_runs([experiment])
    assert "gradient/norm" in run.data.metrics
    assert not [each for each in caplog.records if each.name.startswith("mlflow_keras_adv")]

"""MlflowLogger(flops=True): what a step computes, and how much of it a second."""

from typing import Any

import keras
import numpy as np
import pytest
from mlflow import MlflowClient

import mlflow_keras_adv as mka
from mlflow_keras_adv.metrics.flops import training_step_flops
from tests.differential import Logged, difference
from tests.peers.programs.data import table
from tests.peers.programs.guides import CROSSENTROPY, classifier

X = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
Y = X[:, :2]


def net() -> keras.Model:
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)]
    )
    model.compile("adam", "mse", metrics=["mae"])
    return model


def net_trained() -> keras.Model:
    model = net()
    model.train_on_batch(X, Y)
    return model


def test_the_flops_of_the_steps_over_the_time_that_they_took(
    experiment: str, client: MlflowClient
) -> None:
    model = net()
    with mka.track("paced") as run:
        model.fit(
            X, Y, batch_size=16, epochs=2, verbose=0, callbacks=[mka.MlflowLogger(flops=True)]
        )
        model.fit(
            X, Y, batch_size=16, epochs=1, verbose=0, callbacks=[mka.MlflowLogger(flops=True)]
        )
    history = {
        name: [each.value for each in client.get_metric_history(run.run_id, f"train/{name}")]
        for name in ("step_flops", "flops_per_second", "examples_per_second")
    }
    step = training_step_flops(model, X[:16], Y[:16]).total  # nobody looks on: the same
    assert history["step_flops"] == [step] * 3
    # 16, 16 and 8 examples: of the last batch half.
    expected = [step / 16 * pace for pace in history["examples_per_second"]]
    np.testing.assert_allclose(history["flops_per_second"], expected)
    assert "flops_per_second" not in client.get_run(run.run_id).data.tags["directions.fit"]


def test_a_step_that_runs_in_python_counts_as_the_traced_one(
    experiment: str, client: MlflowClient
) -> None:
    model = net()
    model.run_eagerly = True
    with mka.track("eager") as run:
        model.fit(X, Y, batch_size=16, verbose=0, callbacks=[mka.MlflowLogger(flops=True)])
    step = training_step_flops(net_trained(), X[:16], Y[:16]).total  # not of the last batch, of 8
    assert client.get_run(run.run_id).data.metrics["train/step_flops"] == step


def test_without_being_asked_nothing_is_counted(experiment: str, client: MlflowClient) -> None:
    with mka.track("plain") as run:
        net().fit(X, Y, verbose=0, callbacks=[mka.MlflowLogger()])
    assert not any("flops" in key for key in client.get_run(run.run_id).data.metrics)


def test_what_cannot_be_counted_is_said_and_the_training_goes_on(
    experiment: str, client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    model = net()
    with mka.track("loop") as run:
        logger = mka.MlflowLogger(flops=True)
        loop = mka.Loop(model, optimizers=model.optimizer, callbacks=[logger], verbose=0)
        for _ in loop.epochs(2):
            for _ in loop.batches([X[:8], X[8:16]]):
                loop.record(loss=1.0)
    metrics = client.get_run(run.run_id).data.metrics
    assert metrics["train/epoch"] == 2
    assert "train/flops_per_second" not in metrics
    said = [each for each in caplog.messages if "flops_per_second" in each]
    assert len(said) == 1
    assert "flops_of_function" in said[0]


class Counting(Logged):
    """Every `fit` by an `MlflowLogger` that counts."""

    @property
    def callbacks(self) -> list[Any]:
        return [mka.MlflowLogger(flops=True)]


def test_counting_changes_no_bit_of_the_training(experiment: str) -> None:
    def program(watch: Any) -> Any:
        x, y = table()
        model = classifier()
        model.compile("adam", CROSSENTROPY, metrics=["accuracy"], jit_compile=False)
        return model, model.fit(x, y, epochs=2, verbose=0, callbacks=watch.callbacks)

    assert difference(program, Counting()) == []

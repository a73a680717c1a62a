"""A run that is taken up again: the axis goes on, and what is superseded is named."""

from collections.abc import Callable
from typing import Any

import keras
import mlflow
import numpy as np

import mlflow_keras_adv as mka

X = np.random.default_rng(0).normal(size=(96, 8)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 3, 96)


def net() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    return model


def fit(model: keras.Model, **arguments: Any) -> None:
    callbacks = [mka.MlflowLogger(), *arguments.pop("callbacks", [])]
    model.fit(X, Y, batch_size=16, shuffle=False, verbose=0, callbacks=callbacks, **arguments)


def steps(client: mlflow.MlflowClient, run_id: str, key: str) -> list[int]:
    return [point.step for point in client.get_metric_history(run_id, key)]


def test_the_axis_of_a_continued_run_goes_on(
    experiment: str, curves: Callable[[str], Any], client: mlflow.MlflowClient
) -> None:
    model = net()
    with mka.track("continued", log_system_metrics=False) as run:
        fit(model, epochs=2)
    with mka.track(run_id=run.run_id, log_system_metrics=False):
        fit(model, epochs=1)
    assert list(curves(run.run_id)["batch/loss"]) == list(range(1, 19))
    assert "superseded" not in client.get_run(run.run_id).data.tags
    files = {file.path for file in client.list_artifacts(run.run_id)}
    assert "config.json" in files


def test_from_a_checkpoint_it_goes_back_and_names_what_is_superseded(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    model = net()
    with mka.track("from a checkpoint", log_system_metrics=False) as run:
        fit(model, epochs=3)
    with mka.track(run_id=run.run_id, log_system_metrics=False) as again:
        alert = mka.StallAlert("loss", patience=1, min_delta=1e9)
        fit(model, epochs=4, initial_epoch=1, callbacks=[alert])
        fit(model, epochs=1)
    assert again.axis.batches == 4 * 6 + 6
    assert steps(client, run.run_id, "batch/loss").count(7) == 2
    assert sorted(set(steps(client, run.run_id, "batch/loss"))) == list(range(1, 31))
    tags = client.get_run(run.run_id).data.tags
    span, _, before = tags["superseded"].partition(" before ")
    assert span == "7-18"
    history = client.get_metric_history(run.run_id, "batch/loss")
    old = [p for p in history if 7 <= p.step <= 18 and p.timestamp < int(before)]
    new = [p for p in history if 7 <= p.step <= 18 and p.timestamp >= int(before)]
    assert len(old) == len(new) == 12
    assert tags["alert.step"] == "18", "two epochs after the checkpoint at step 6"

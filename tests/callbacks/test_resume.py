"""A run that is taken up again: the axis goes on, and what is superseded is named."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest

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


TRAINING = """
import sys, os, signal
import keras, numpy as np
import mlflow_keras_adv as mka

rng = np.random.default_rng(0)
x, y = rng.normal(size=(96, 8)).astype("float32"), rng.integers(0, 3, 96)
keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.SGD(0.1), loss)

class Crash(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 2 and "crash" in sys.argv:
            mka.current_run().flush()
            os.kill(os.getpid(), signal.SIGKILL)

with mka.track(run_id=sys.argv[1], log_system_metrics=False):
    callbacks = [mka.MlflowLogger(), Crash(), keras.callbacks.BackupAndRestore(sys.argv[2])]
    model.fit(x, y, batch_size=16, epochs=4, verbose=0, callbacks=callbacks)
"""


@pytest.mark.slow
def test_a_killed_training_resumed_by_kerass_own_backup(
    experiment: str, client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    run_id = client.create_run(experiment).info.run_id
    command = [sys.executable, "-c", TRAINING, run_id, str(tmp_path / "backup")]
    root = Path(__file__).parents[2]
    for extra, code in [(["crash"], -signal.SIGKILL), ([], 0)]:
        ended = subprocess.run(
            [*command, *extra], cwd=root, env=os.environ, capture_output=True, check=False
        )
        assert ended.returncode == code, ended.stderr.decode()
    # Killed after epoch 3 was recorded and before its backup: it goes on behind epoch 2.
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["superseded"].startswith("13-18 before ")
    found = steps(client, run_id, "batch/loss")
    assert sorted(set(found)) == list(range(1, 25))
    assert [step for step in set(found) if found.count(step) == 2] == list(range(13, 19))
    assert sorted(set(steps(client, run_id, "train/epoch"))) == [6, 12, 18, 24]

"""A training that is killed and started again by the same command: its record is whole."""

import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_keras_adv as mka
from mlflow_keras_adv.tracking.axis import is_superseded, superseded_spans
from tests.callbacks.resumable_training import (
    BATCH,
    BATCHES,
    EPOCHS,
    LOSS,
    Ends,
    X,
    Y,
    net,
    new_optimizer,
    train,
)
from tests.warm import PYTHON

COMMAND = [PYTHON, "-m", "tests.callbacks.resumable_training"]
ROOT = Path(__file__).parents[2]
ROUNDING = 100 * float(np.finfo(np.float32).eps)
ONE_EPOCH = list(range(BATCHES))
ENDS = [BATCHES * (epoch + 1) for epoch in range(EPOCHS)]
Curves = dict[str, dict[int, float]]


def uninterrupted(batches: list[int]) -> dict[str, list[float]]:
    """Loss and gradient norm of each step, by hand, over batches by their index in the epoch."""
    model, optimizer = net(), new_optimizer()
    record: dict[str, list[float]] = {"batch/loss": [], "gradient/norm": []}
    for index in batches:
        rows = slice(index * BATCH, (index + 1) * BATCH)
        with tf.GradientTape() as tape:
            loss = LOSS(Y[rows], model(X[rows], training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        record["batch/loss"].append(float(loss))
        record["gradient/norm"].append(float(tf.linalg.global_norm(gradients)))
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return record


def what_counts(client: mlflow.MlflowClient, run_id: str) -> Curves:
    """Value by step, by key, without what is superseded; no step may be left twice."""
    data = client.get_run(run_id).data
    spans, found = superseded_spans(data.tags), {}
    for key in data.metrics:
        points = [
            point
            for point in client.get_metric_history(run_id, key)
            if not is_superseded(point, spans)
        ]
        found[key] = {point.step: point.value for point in sorted(points, key=lambda p: p.step)}
        assert len(found[key]) == len(points), f"{key} holds a step twice"
    return found


def assert_is(found: Curves, batches: list[int], epoch_ends: list[int]) -> None:
    expected = uninterrupted(batches)
    steps = list(range(1, len(batches) + 1))
    for key, values in expected.items():
        assert list(found[key]) == steps, key
        # Each step adds the roundings of one update to the weights.
        tolerance = len(steps) * ROUNDING
        np.testing.assert_allclose(list(found[key].values()), values, rtol=tolerance)
    assert list(found["optimizer/learning_rate"]) == steps
    assert found["train/epoch"] == {step: n for n, step in enumerate(epoch_ends, start=1)}
    assert list(found["train/loss"]) == epoch_ends


def killed_and_resumed(
    run_id: str, folder: Path, how: str, save_freq: str, kills: list[int]
) -> None:
    for killed_at in [*kills, 0]:
        command = [*COMMAND, run_id, str(folder), how, save_freq, str(killed_at)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        assert ended.returncode == (-signal.SIGKILL if killed_at else 0), ended.stderr.decode()


class CrashError(Exception):
    """What ends a training in the process of the test."""


def crash() -> None:
    raise CrashError


def in_two_parts(
    folder: Path, how: str, *, after: int, backup_first: bool = False, save_freq: Any = "epoch"
) -> str:
    """Trains until it crashes after so many batches, and again with the run's id."""
    run_id = None
    for part in (0, 1):
        backup = keras.callbacks.BackupAndRestore(folder, save_freq=save_freq)
        callbacks = [backup, mka.MlflowLogger()]
        callbacks = callbacks if backup_first else callbacks[::-1]
        if part == 0:
            with pytest.raises(CrashError), mka.track("crashed", log_system_metrics=False) as run:
                train(how, [*callbacks, Ends(after, crash)])
            run_id = run.run_id
        else:
            with mka.track(run_id=run_id, log_system_metrics=False):
                train(how, callbacks)
    return str(run_id)


@pytest.mark.parametrize("backup_first", [False, True])
@pytest.mark.parametrize("save_freq", ["epoch", 5])
@pytest.mark.parametrize("how", ["fit", "loop"])
def test_the_axis_goes_on_where_the_checkpoint_stands(
    how: str,
    save_freq: Any,
    backup_first: bool,
    experiment: str,
    client: mlflow.MlflowClient,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "backup"
    run_id = in_two_parts(folder, how, after=17, backup_first=backup_first, save_freq=save_freq)
    superseded = client.get_run(run_id).data.tags["superseded"]
    found = what_counts(client, run_id)
    if save_freq == "epoch":
        assert superseded.startswith("13-17 before ")
        assert_is(found, ONE_EPOCH * EPOCHS, ENDS)
    else:
        # Saved at step 15, in the third epoch, which Keras begins anew with those weights.
        assert superseded.startswith("16-17 before ")
        assert_is(found, (ONE_EPOCH * 3)[:15] + ONE_EPOCH * 2, [6, 12, 21, 27])


@pytest.mark.parametrize("how", ["fit", "loop"])
def test_where_nothing_was_saved_all_is_superseded(
    how: str, experiment: str, client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    run_id = in_two_parts(tmp_path / "backup", how, after=4)
    assert client.get_run(run_id).data.tags["superseded"].startswith("1-4 before ")
    assert_is(what_counts(client, run_id), ONE_EPOCH * EPOCHS, ENDS)


def test_a_checkpoint_whose_epoch_did_not_come_to_be_recorded(
    experiment: str, client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    class CrashesBetween(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                raise CrashError

    def backup() -> Any:
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    with pytest.raises(CrashError), mka.track("between", log_system_metrics=False) as run:
        train("fit", [backup(), CrashesBetween(), mka.MlflowLogger()])
    with mka.track(run_id=run.run_id, log_system_metrics=False):
        train("fit", [backup(), mka.MlflowLogger()])
    assert "superseded" not in client.get_run(run.run_id).data.tags
    found = what_counts(client, run.run_id)
    assert list(found["batch/loss"]) == list(range(1, 25))
    assert found["train/epoch"] == {6: 1, 18: 3, 24: 4}


def test_after_a_training_that_was_complete_another_one_follows(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    with mka.track("complete", log_system_metrics=False) as run:
        train("fit", [mka.MlflowLogger()])
    with mka.track(run_id=run.run_id, log_system_metrics=False):
        train("loop", [mka.MlflowLogger()])
    found = what_counts(client, run.run_id)
    assert list(found["batch/loss"]) == list(range(1, 2 * BATCHES * EPOCHS + 1))
    tags = client.get_run(run.run_id).data.tags
    assert "superseded" not in tags
    assert tags["step_offset"] == "24", "the second model's optimizer counts from 0"


def test_a_model_that_was_trained_before_the_run(
    experiment: str, client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    """Its optimizer has counted more batches than the run."""

    def part(callbacks: list[Any]) -> None:
        model = net()
        model.compile(new_optimizer(), LOSS)
        model.fit(X, Y, batch_size=32, verbose=0)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=5)
        arguments = {"batch_size": BATCH, "epochs": 2, "verbose": 0}
        model.fit(X, Y, **arguments, callbacks=[mka.MlflowLogger(), backup, *callbacks])

    with pytest.raises(CrashError), mka.track("trained before", log_system_metrics=False) as run:
        part([Ends(3 + 8, crash)])
    with mka.track(run_id=run.run_id, log_system_metrics=False):
        part([])
    tags = client.get_run(run.run_id).data.tags
    assert tags["step_offset"] == "-3"
    assert tags["superseded"].startswith("6-8 before ")
    # Saved at step 5, in the first epoch, which began anew.
    assert list(what_counts(client, run.run_id)["batch/loss"]) == list(range(1, 5 + 12 + 1))


@pytest.mark.slow
@pytest.mark.parametrize(("how", "kills"), [("fit", 1), ("loop", 1)])
def test_every_step_is_on_record_once(
    how: str, kills: int, experiment: str, client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    run_id = client.create_run(experiment).info.run_id
    moments = sorted(random.Random(f"{how} 0").sample(range(1, BATCHES * EPOCHS), kills))
    killed_and_resumed(run_id, tmp_path / "backup", how, "epoch", moments)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert_is(what_counts(client, run_id), ONE_EPOCH * EPOCHS, ENDS)


@pytest.mark.soak
@pytest.mark.parametrize("round_", range(10))
@pytest.mark.parametrize("how", ["fit", "loop"])
def test_every_step_is_on_record_once_at_every_moment(
    how: str, round_: int, experiment: str, client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    run_id = client.create_run(experiment).info.run_id
    chance = random.Random(f"{how} {round_}")
    moments = sorted(chance.sample(range(1, BATCHES * EPOCHS), chance.choice([1, 2, 3])))
    killed_and_resumed(run_id, tmp_path / "backup", how, "epoch", moments)
    assert_is(what_counts(client, run_id), ONE_EPOCH * EPOCHS, ENDS)

"""Which checkpoints are on the server, what they hold, and that the best comes back whole."""

import copy
import logging
import pickle
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

import mlflow_keras_adv as mka
from mlflow_keras_adv.callbacks.checkpoint_index import FOLDER, INDEX_FILE
from mlflow_keras_adv.callbacks.checkpoints import Checkpoints, load_best
from tests.warm import PYTHON

rng = np.random.default_rng(0)
X = rng.normal(size=(24, 4)).astype(np.float32)
Y = rng.normal(size=(24, 1)).astype(np.float32)
BATCHES = 3


def net(**compiled: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(4, activation="relu")
    model = keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(1)])
    model.compile(**({"optimizer": keras.optimizers.Adam(0.01), "loss": "mse"} | compiled))
    return model


class Scores(keras.callbacks.Callback):
    """Puts given values into the logs of the epochs."""

    def __init__(self, **values: list[float]) -> None:
        super().__init__()
        self.values = values

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs.update({name: each[epoch] for name, each in self.values.items()})


class Snapshots(keras.callbacks.Callback):
    """Keeps weights and optimizer state of each epoch."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.taken: list[Any] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.taken.append(state(self.model))


def state(model: keras.Model) -> list[np.ndarray]:
    return [np.array(each) for each in (*model.weights, *model.optimizer.variables)]


def assert_equal(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def fit(model: keras.Model, *callbacks: Any, epochs: int = 1, **more: Any) -> Any:
    data = {"x": X, "y": Y, "batch_size": 8, "shuffle": False, "verbose": 0}
    return model.fit(**(data | more), epochs=epochs, callbacks=list(callbacks))


def fit_scores(model: keras.Model, values: list[float], *callbacks: Any, **more: Any) -> Any:
    return fit(model, Scores(val_loss=values), *callbacks, epochs=len(values), **more)


def files(run_id: str, client: mlflow.MlflowClient) -> list[str]:
    """The checkpoints on the server, without the folder."""
    listed = [file.path for file in client.list_artifacts(run_id, FOLDER)]
    return sorted(path.removeprefix(f"{FOLDER}/") for path in listed if path != INDEX_FILE)


def index(run_id: str) -> list[dict[str, Any]]:
    return mlflow.artifacts.load_dict(f"runs:/{run_id}/{INDEX_FILE}")[FOLDER]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = [each for each in caplog.records if each.name.startswith("mlflow_keras_adv")]
    return [each.getMessage() for each in ours if each.levelno == logging.WARNING]


def test_the_best_are_kept_with_step_and_value_and_the_others_removed(
    experiment: str, client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    with mka.track("best", log_system_metrics=False) as run:
        fit_scores(net(), [3, 1, 2, np.nan, -np.inf, 0.0421, 9], Checkpoints(keep=2))
    names = ["step-000006_val_loss-1.keras", "step-000018_val_loss-0.0421.keras"]
    assert files(run.run_id, client) == names
    best, second = index(run.run_id)
    assert [best["file"], second["file"]] == [f"{FOLDER}/{name}" for name in names[::-1]]
    assert best["monitor"] == "val_loss"
    assert (best["value"], best["step"], best["epoch"]) == (0.0421, 6 * BATCHES, 6)
    assert (second["value"], second["step"], second["epoch"]) == (1, 2 * BATCHES, 2)
    file = Path(client.download_artifacts(run.run_id, best["file"], str(tmp_path)))
    assert file.stat().st_size == best["size_bytes"]


def test_the_best_comes_back_with_weights_and_optimizer_and_trains_on_as_if_never_left(
    experiment: str,
) -> None:
    model, snapshots = net(), Snapshots()
    with mka.track("back", log_system_metrics=False) as run:
        fit_scores(model, [3, 1, 2, 2], snapshots, Checkpoints(), mka.MlflowLogger())
        best = load_best()  # the active run's, while it is being written
    assert_equal(state(best), snapshots.taken[1])
    fit(best, epochs=2)
    assert_equal(state(best), snapshots.taken[3])
    assert_equal(state(load_best(run)), state(load_best(run.run_id)))


@pytest.mark.slow
def test_a_fresh_process_loads_what_was_trained_in_mixed_precision(experiment: str) -> None:
    found = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model, snapshots = net(), Snapshots()
        with mka.track("mixed", log_system_metrics=False) as run:
            fit_scores(model, [3, 1, 2], snapshots, Checkpoints())
    finally:
        keras.config.set_dtype_policy(found)
    program = f"""
import keras, numpy as np
from mlflow_keras_adv.callbacks.checkpoints import load_best
model = load_best({run.run_id!r})
assert keras.config.dtype_policy().name == "float32"
print(type(model.optimizer).__name__)
print(*[float(np.sum(each)) for each in (*model.weights, *model.optimizer.variables)])
"""
    command = [PYTHON, "-c", program]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    name, sums = shown.stdout.splitlines()[-2:]
    assert name == "LossScaleOptimizer"
    expected = [float(np.sum(each)) for each in snapshots.taken[1]]
    assert [float(each) for each in sums.split()] == expected


def test_the_record_is_the_same_and_nothing_of_the_observation_is_saved(
    experiment: str, curves: Callable[[str], Any]
) -> None:
    recorded = []
    for more in ([], [Checkpoints("loss", keep=3)]):
        model = net()
        with mka.track("observed", log_system_metrics=False) as run:
            fit(model, mka.MlflowLogger(), *more, epochs=3)
        found = curves(run.run_id)
        recorded.append([found["gradient/norm"], found["batch/loss"], found["train/loss"]])
    assert recorded[0] == recorded[1]
    best = load_best(run)
    for observed in (best, best.optimizer, model, model.optimizer):
        assert not {"train_step", "apply", "_clip_gradients"} & set(vars(observed))
    assert_equal(state(best), state(model))


@pytest.mark.parametrize("source", ["same process", "same callback", "from the store"])
def test_a_second_training_of_the_run_competes_with_the_first(
    source: str, experiment: str, client: mlflow.MlflowClient
) -> None:
    first = Checkpoints(keep=2)
    second = first if source == "same callback" else Checkpoints(keep=2)
    model = net()
    with mka.track("twice", log_system_metrics=False) as run:
        fit_scores(model, [1, 3], first)
        if source != "from the store":
            fit_scores(model, [2, 4], second)
    if source == "from the store":
        with mka.track(run_id=run.run_id, log_system_metrics=False) as reopened:
            assert reopened is not run
            reopened.axis.batches = run.axis.batches
            fit_scores(model, [2, 4], second)
    assert [each["value"] for each in index(run.run_id)] == [1, 2]
    names = ["step-000003_val_loss-1.keras", "step-000009_val_loss-2.keras"]
    assert files(run.run_id, client) == names


def test_two_monitors_keep_their_own(experiment: str, client: mlflow.MlflowClient) -> None:
    model, snapshots = net(), Snapshots()
    scores = Scores(val_loss=[1, 2, 3], val_accuracy=[0.1, 0.9, 0.5])
    with mka.track("two", log_system_metrics=False) as run:
        callbacks = [scores, snapshots, Checkpoints(), Checkpoints("val_accuracy")]
        fit(model, *callbacks, epochs=3)
    assert_equal(state(load_best(run, monitor="val_loss")), snapshots.taken[0])
    assert_equal(state(load_best(run, monitor="val_accuracy")), snapshots.taken[1])
    with pytest.raises(mka.UserError, match="by val_accuracy, val_loss: pass monitor"):
        load_best(run)
    assert len(files(run.run_id, client)) == 2


@pytest.mark.slow
def test_on_a_server(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    client = mlflow.MlflowClient()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", client.create_experiment(str(time.monotonic_ns())))
    model, snapshots = net(), Snapshots()
    with mka.track("server", log_system_metrics=False) as run:
        fit_scores(model, [3, 2, 1, 4], snapshots, Checkpoints())
    assert files(run.run_id, client) == ["step-000009_val_loss-1.keras"]
    assert_equal(state(load_best(run.run_id)), snapshots.taken[2])


def test_where_deleting_is_refused_it_is_said_once_and_all_are_kept(
    experiment: str,
    client: mlflow.MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(self: Any, artifact_path: str | None = None) -> None:
        raise MlflowException("not yours", error_code=7)  # PERMISSION_DENIED

    monkeypatch.setattr(LocalArtifactRepository, "delete_artifacts", refuse)
    with mka.track("refused", log_system_metrics=False) as run:
        fit_scores(net(), [3, 2, 1], Checkpoints())
    assert len(files(run.run_id, client)) == 3
    assert [each["value"] for each in index(run.run_id)] == [1]
    (message,) = said(caplog)
    assert f"Run {run.run_id} keeps artifacts that should be gone" in message
    assert "not yours" in message


def test_a_model_that_cannot_be_saved_is_said_once_and_breaks_nothing(
    experiment: str, client: mlflow.MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    class Unsaveable(keras.Sequential):
        def save(self, *args: Any, **kwargs: Any) -> None:
            raise OSError("disk full")

    model = Unsaveable(net().layers)
    model.compile("sgd", "mse")
    with mka.track("unsaved", log_system_metrics=False) as run:
        history = fit_scores(model, [3, 2, 1], Checkpoints()).history
    assert len(history["loss"]) == 3
    assert said(caplog) == [
        "Saving a checkpoint failed, the training goes on without: OSError: disk full"
    ]
    assert client.list_artifacts(run.run_id) == []
    with pytest.raises(mka.UserError, match="has no checkpoint"):
        load_best(run)


def test_a_monitor_that_is_missing_is_said_once(
    experiment: str, client: mlflow.MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    with mka.track("missing", log_system_metrics=False) as run:
        fit(net(), Checkpoints("val_accuracy"), epochs=3)
    assert said(caplog) == ["'val_accuracy' cannot be watched: the epoch's logs hold loss."]
    assert client.list_artifacts(run.run_id) == []


@pytest.mark.parametrize("compiled", [True, False])
def test_in_a_loop(compiled: bool, experiment: str, client: mlflow.MlflowClient) -> None:
    model, snapshots = net(), Snapshots()
    optimizer = model.optimizer
    if not compiled:
        keras.utils.set_random_seed(0)
        model, optimizer = keras.Sequential(model.layers), keras.optimizers.Adam(0.01)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    callbacks = [snapshots, Checkpoints("score", mode="max")]
    loop = mka.Loop(model, optimizers=optimizer, callbacks=callbacks, verbose=0)

    @tf.function
    def step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(y - model(x, training=True)))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    with mka.track("loop", log_system_metrics=False) as run:
        for epoch in loop.epochs(3):
            for x, y in loop.batches(data):
                step(x, y)
            loop.log(score=[0, 1, 0.5][epoch])
    assert files(run.run_id, client) == ["step-000006_score-1.keras"]
    best = load_best(run)
    if compiled:
        assert_equal(state(best), snapshots.taken[1])
    else:
        assert not best.compiled
        weights = [np.array(each) for each in best.weights]
        assert_equal(weights, snapshots.taken[1][: len(weights)])


def test_a_training_that_raises_keeps_its_checkpoints(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    class Break(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if self.model.optimizer.iterations == 5:
                raise ValueError("broken")

    model, snapshots = net(), Snapshots()
    with pytest.raises(ValueError, match="broken"), mka.track("raised") as run:
        fit_scores(model, [1, 2], snapshots, Checkpoints(), Break())
    assert files(run.run_id, client) == ["step-000003_val_loss-1.keras"]
    assert_equal(state(load_best(run.run_id)), snapshots.taken[0])
    assert "train_step" not in vars(model)


def test_copies_compete_with_each_other(experiment: str, client: mlflow.MlflowClient) -> None:
    original = Checkpoints("anything", mode="max")
    with mka.track("copies", log_system_metrics=False) as run:
        for value in (1, 3, 2):
            copied = pickle.loads(pickle.dumps(copy.deepcopy(original)))
            fit(net(), Scores(anything=[value]), copied)
            fit(net(), Scores(anything=[value]), original)
    assert files(run.run_id, client) == ["step-000009_anything-3.keras"]


def test_an_unknown_run_is_an_error_of_the_user(experiment: str) -> None:
    with pytest.raises(mka.UserError, match="0000"):
        load_best("0" * 32)


def test_a_file_that_is_not_the_one_that_was_saved_is_refused(
    experiment: str, client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    with mka.track("changed", log_system_metrics=False) as run:
        fit_scores(net(), [1], Checkpoints())
    (name,) = files(run.run_id, client)
    other = tmp_path / name
    net().save(other)
    client.log_artifact(run.run_id, str(other), FOLDER)
    with pytest.raises(mka.UserError, match="is not the file that was saved"):
        load_best(run.run_id)


def test_without_a_run_it_says_so_once_and_is_silent(
    experiment: str, client: mlflow.MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    fit(net(), Checkpoints("loss"), epochs=2)
    (message,) = said(caplog)
    assert "Checkpoints does nothing in this training: it has no run" in message
    assert client.search_runs([experiment]) == []
    with pytest.raises(mka.UserError, match="needs a run, and none is open"):
        load_best()


@pytest.mark.parametrize("arguments", [{"keep": 0}, {"mode": "lowest"}], ids=str)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Received"):
        Checkpoints(**arguments)

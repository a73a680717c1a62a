"""LayerNorms against a tape, as an artifact and as metrics."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import mlflow_keras_adv as mka
from mlflow_keras_adv.callbacks.layer_norms import heat_map

ROUNDING = 100 * float(np.finfo(np.float32).eps)  # some 10 to 100 roundings adding up at worst

rng = np.random.default_rng(0)
X = rng.normal(size=(96, 8)).astype(np.float32)
Y = rng.integers(0, 3, 96)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net() -> keras.Model:
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(16, activation="relu", name="hidden")
    head = keras.layers.Dense(3, name="head")
    return keras.Sequential([keras.Input((8,)), hidden, head], name="net")


def fit(model: keras.Model, callbacks: list[Any], epochs: int = 2) -> None:
    arguments = {"batch_size": 16, "epochs": epochs, "shuffle": False, "verbose": 0}
    model.fit(X, Y, **arguments, callbacks=callbacks)


def table_of(run_id: str, folder: Path, name: str = "layers") -> pd.DataFrame:
    path = mlflow.artifacts.download_artifacts(
        run_id=run_id, artifact_path=f"gradients/{name}.parquet", dst_path=str(folder)
    )
    return pd.read_parquet(path)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_norms_of_each_layer_at_each_step(
    jit_compile: bool, experiment: str, tmp_path: Path, client: mlflow.MlflowClient
) -> None:
    model = net()
    model.compile(keras.optimizers.SGD(0.1), LOSS, jit_compile=jit_compile)
    with mka.track("layers", log_system_metrics=False) as run:
        fit(model, [mka.MlflowLogger(), mka.LayerNorms()])
    table = table_of(run.run_id, tmp_path).set_index(["layer", "step"])

    replayed = net()
    for step in range(1, 13):
        start = (step - 1) % 6 * 16
        with tf.GradientTape() as tape:
            loss = LOSS(Y[start : start + 16], replayed(X[start : start + 16], training=True))
        gradients = tape.gradient(loss, replayed.trainable_variables)
        for layer, own in [("net/hidden", gradients[:2]), ("net/head", gradients[2:])]:
            expected = np.sqrt(sum(np.sum(np.square(g, dtype=float)) for g in own))
            assert table.gradient_norm[layer, step] == pytest.approx(expected, rel=ROUNDING)
        for variable, gradient in zip(replayed.trainable_variables, gradients, strict=True):
            variable.assign_sub(0.1 * gradient)
        if step % 6 == 0:
            kernel, bias = (v.numpy() for v in replayed.layers[0].trainable_variables)
            expected = np.sqrt(np.sum(kernel**2) + np.sum(bias**2))
            assert table.weight_norm["net/hidden", step] == pytest.approx(expected, rel=ROUNDING)
        else:
            assert np.isnan(table.weight_norm["net/hidden", step])
    files = {file.path for file in client.list_artifacts(run.run_id, "gradients")}
    assert files == {"gradients/layers.parquet", "gradients/layers.png"}
    metrics = client.get_run(run.run_id).data.metrics
    assert not {key for key in metrics if key.startswith("gradient/layer")}


def test_as_metrics_when_asked_and_without_a_logger(
    experiment: str, curves: Callable[[str], Any]
) -> None:
    model = net()
    model.compile(keras.optimizers.SGD(0.1), LOSS)
    with mka.track("layers", log_system_metrics=False) as run:
        fit(model, [mka.LayerNorms(as_metrics=True)])
    found = curves(run.run_id)
    assert list(found["gradient/layer/net/hidden"]) == list(range(1, 13))
    assert list(found["gradient/layer/net/head"]) == list(range(1, 13))


def test_long_trainings_are_thinned_evenly(experiment: str, tmp_path: Path) -> None:
    model = net()
    model.compile(keras.optimizers.SGD(0.1), LOSS)
    with mka.track("thinned", log_system_metrics=False) as run:
        fit(model, [mka.LayerNorms(max_steps=10)], epochs=9)
    table = table_of(run.run_id, tmp_path).dropna(subset=["gradient_norm"])
    steps = sorted(set(table.step))
    assert len(steps) <= 10
    assert set(np.diff(steps)) == {8}
    assert steps[0] == 1


def test_copies_a_second_training_and_one_that_raises(experiment: str, tmp_path: Path) -> None:
    class Breaks(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            raise ValueError("broken")

    model = net()
    model.compile(keras.optimizers.SGD(0.1), LOSS)
    norms = mka.LayerNorms(max_steps=50)
    for copied in (copy.deepcopy(norms), pickle.loads(pickle.dumps(norms))):
        assert vars(copied)["_max_steps"] == 50
    with mka.track("twice", log_system_metrics=False) as run:
        fit(model, [mka.MlflowLogger(), norms])
        with pytest.raises(ValueError, match="broken"):
            fit(model, [mka.MlflowLogger(), norms, Breaks()])
    assert sorted(set(table_of(run.run_id, tmp_path).step)) == list(range(1, 13))
    second = table_of(run.run_id, tmp_path, "layers-2")
    assert sorted(set(second.step)) == list(range(13, 19))
    assert not {"apply", "_clip_gradients"} & set(vars(model.optimizer))


def test_a_heat_map_of_nothing_but_zeros_and_nan_is_drawn() -> None:
    norms = pd.DataFrame({"step": [1, 2], "layer": ["a", "a"], "norm": [0.0, float("nan")]})
    heat_map(norms).canvas.draw()


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="max_steps=1"):
        mka.LayerNorms(max_steps=1)

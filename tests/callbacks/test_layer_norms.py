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
from mlflow_keras_adv.callbacks.layer_norms import MAX_NAMED, heat_map

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


def gradients_of(table: pd.DataFrame, step: int) -> dict[str, float]:
    """Norm by layer at a step."""
    rows = table[table.step == step].dropna(subset=["gradient_norm"])
    return dict(zip(rows.layer, rows.gradient_norm, strict=True))


def test_no_layer_of_a_deep_net_is_missing(
    experiment: str, tmp_path: Path, curves: Callable[[str], Any]
) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), Parts(), keras.layers.Dense(3, name="head")])
    model.compile(keras.optimizers.SGD(0.01), LOSS)
    with mka.track("deep", log_system_metrics=False) as run:
        arguments = {"batch_size": 48, "shuffle": False, "verbose": 0}
        model.fit(X, Y, **arguments, callbacks=[mka.MlflowLogger(), mka.LayerNorms()])
    table = table_of(run.run_id, tmp_path)
    for step in (1, 2):
        norms = gradients_of(table, step)
        assert len(norms) == 521
        whole = np.sqrt(sum(np.square(list(norms.values()))))
        assert whole == pytest.approx(curves(run.run_id)["gradient/norm"][step], rel=ROUNDING)
        assert norms[next(name for name in norms if name.endswith("head"))] > 0.1 * whole


class Part(keras.layers.Layer):
    def build(self, shape: Any) -> None:
        self.number = self.add_weight(shape=(), initializer="ones")


class Parts(keras.layers.Layer):
    """520 layers, of a number each."""

    def build(self, shape: Any) -> None:
        self.parts = [Part(name=f"part_{index}") for index in range(520)]
        for part in self.parts:
            part.build(())

    def call(self, inputs: Any) -> Any:
        scales = keras.ops.stack([part.number.value for part in self.parts])
        return scales * inputs[:, :1]


def test_layers_in_float8_have_the_norms_of_their_weights_gradients(
    experiment: str, tmp_path: Path, curves: Callable[[str], Any]
) -> None:
    model = net()
    for layer in model.layers:
        layer.quantize("float8")
    model.compile(keras.optimizers.SGD(0.1), LOSS)
    with mka.track("float8", log_system_metrics=False) as run:
        fit(model, [mka.MlflowLogger(), mka.LayerNorms()], epochs=1)
    norms = gradients_of(table_of(run.run_id, tmp_path), 1)
    assert norms.keys() == {"net/hidden", "net/head"}
    whole = np.sqrt(sum(np.square(list(norms.values()))))
    assert whole == pytest.approx(curves(run.run_id)["gradient/norm"][1], rel=ROUNDING)


class WithoutClipping(keras.optimizers.SGD):
    """An optimizer of a user's own, which never calls Keras' clipping."""

    def _clip_gradients(self, gradients: Any) -> Any:
        raise NotImplementedError

    def _backend_apply_gradients(self, grads: Any, trainable_variables: Any) -> None:
        self._backend_update_step(grads, trainable_variables, self.learning_rate)


class SaysNotWhich(WithoutClipping):
    """One that clips a part of its gradients."""

    def _clip_gradients(self, gradients: Any) -> Any:
        return gradients

    def _backend_apply_gradients(self, grads: Any, trainable_variables: Any) -> None:
        grads = [*self._clip_gradients(grads[:1]), *grads[1:]]
        super()._backend_apply_gradients(grads, trainable_variables)


def test_an_optimizer_that_does_not_clip_as_keras_does(
    experiment: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = []
    for optimizer in (keras.optimizers.SGD(0.1), WithoutClipping(0.1)):
        model = net()
        model.compile(optimizer, LOSS)
        with mka.track("own", log_system_metrics=False) as run:
            fit(model, [mka.LayerNorms()], epochs=1)
        found.append(gradients_of(table_of(run.run_id, tmp_path), 6))
    assert found[1] == pytest.approx(found[0], rel=ROUNDING)
    assert caplog.records == []

    model = net()
    model.compile(SaysNotWhich(0.1), LOSS)
    with mka.track("part", log_system_metrics=False):
        fit(model, [mka.LayerNorms()], epochs=1)
    (record,) = caplog.records
    assert "it clips 1 gradients of the 4 that it was given" in record.getMessage()


def test_a_layer_that_two_optimizers_update_has_the_norm_of_both(
    experiment: str, tmp_path: Path
) -> None:
    class Pair(keras.Model):
        """Kernels by one optimizer, biases by another."""

        def __init__(self) -> None:
            super().__init__(name="pair")
            self.head = keras.layers.Dense(3, name="head")

        def call(self, inputs: Any) -> Any:
            return self.head(inputs)

        def compile(self, *optimizers: Any) -> None:  # type: ignore[override]
            super().compile()
            self.first, self.second = optimizers

        def train_step(self, data: Any) -> dict[str, Any]:
            x, y = data
            with tf.GradientTape() as tape:
                loss = LOSS(y, self(x, training=True))
            kernel, bias = tape.gradient(loss, self.trainable_variables)
            self.first.apply_gradients([(kernel, self.head.kernel)])
            self.second.apply_gradients([(bias, self.head.bias)])
            return {"loss": loss}

    keras.utils.set_random_seed(0)
    model = Pair()
    model(X[:2])
    with tf.GradientTape() as tape:
        loss = LOSS(Y[:16], model(X[:16], training=True))
    gradients = tape.gradient(loss, model.trainable_variables)
    model.compile(keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1))
    with mka.track("pair", log_system_metrics=False) as run:
        fit(model, [mka.LayerNorms()], epochs=1)
    (norm,) = gradients_of(table_of(run.run_id, tmp_path), 1).values()
    expected = np.sqrt(sum(np.sum(np.square(each)) for each in gradients))
    assert norm == pytest.approx(expected, rel=ROUNDING)


def test_a_heat_map_of_thousands_of_layers_is_drawn() -> None:
    layers = [f"layer {index}" for index in range(3000)]
    figure = heat_map(pd.DataFrame({"step": 1, "layer": layers, "norm": 1.0}))
    assert figure.get_size_inches()[1] < 40
    assert len(figure.axes[0].get_yticks()) == MAX_NAMED


def test_a_heat_map_of_nothing_but_zeros_and_nan_is_drawn() -> None:
    norms = pd.DataFrame({"step": [1, 2], "layer": ["a", "a"], "norm": [0.0, float("nan")]})
    heat_map(norms).canvas.draw()


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="max_steps=1"):
        mka.LayerNorms(max_steps=1)

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from mlflow_keras_adv.serialization.saving import save_without_optimizer

X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")


def trained(optimizer: Any = "adam") -> keras.Model:
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    inner.compile("adam", "mse")
    inner.fit(X, np.ones((8, 4)), verbose=0)
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inner(inputs)))
    model.compile(optimizer, "mse", metrics=["mae"])
    model.fit(X, np.ones((8, 2)), verbose=0)
    return model


def datasets(file: Path) -> list[str]:
    """Paths of all arrays in a `.keras` file."""
    found: list[str] = []
    with zipfile.ZipFile(file) as archive:
        weights = h5py.File(io.BytesIO(archive.read("model.weights.h5")))
    weights.visititems(
        lambda n, entry: found.append(n) if isinstance(entry, h5py.Dataset) else None
    )
    return found


@pytest.mark.parametrize("scaled", [False, True])
def test_the_file_holds_the_weights_and_nothing_of_the_training(
    tmp_path: Path, scaled: bool
) -> None:
    adam = keras.optimizers.Adam()
    model = trained(keras.optimizers.LossScaleOptimizer(adam) if scaled else adam)
    file = tmp_path / "model.keras"
    model.save(file)
    assert any("optimizer" in name for name in datasets(file)), "else this test tells nothing"
    save_without_optimizer(model, file)
    names = datasets(file)
    assert len(names) == len(model.weights) == 4
    assert not any("optimizer" in name for name in names)
    with zipfile.ZipFile(file) as archive:
        assert "compile_config" not in archive.read("config.json").decode()
    loaded = keras.saving.load_model(file)
    assert not loaded.compiled
    np.testing.assert_array_equal(loaded(X), model(X))


@pytest.mark.quick
def test_the_model_is_as_before(tmp_path: Path) -> None:
    model = trained()
    inner = model.layers[1]
    optimizer, variables = model.optimizer, [v.numpy() for v in model.optimizer.variables]
    save_without_optimizer(model, tmp_path / "without.keras")
    assert model.compiled
    assert model.optimizer is optimizer
    for variable, value in zip(optimizer.variables, variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    model.save(tmp_path / "with.keras")
    assert any(name.startswith("optimizer/") for name in datasets(tmp_path / "with.keras"))
    assert keras.saving.load_model(tmp_path / "with.keras").compiled
    assert inner.get_compile_config() is not None
    model.fit(X, np.ones((8, 2)), verbose=0)


def test_the_model_is_as_before_when_saving_fails(tmp_path: Path) -> None:
    model = trained()
    with pytest.raises(FileNotFoundError):
        save_without_optimizer(model, tmp_path / "no" / "such" / "model.keras")
    model.save(tmp_path / "with.keras")
    assert any(name.startswith("optimizer/") for name in datasets(tmp_path / "with.keras"))
    assert "get_compile_config" not in vars(model)


def test_compile_arguments_that_keras_cannot_serialize_do_no_harm(tmp_path: Path) -> None:
    class Opaque:
        def __call__(self, y, prediction):
            return keras.ops.mean(prediction)

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", loss=Opaque())
    save_without_optimizer(model, tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras").count_params() == 8


@keras.saving.register_keras_serializable("test_saving")
class Adversary(keras.Model):
    """Two optimizers of its own, one in a list, and its own say in what compile() is saved."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(2)

    def compile(self, first: Any, others: Any) -> None:
        super().compile(loss="mse")
        self.first = first
        self.others = others

    def get_compile_config(self) -> dict[str, Any]:
        return {"first": self.first}

    def call(self, inputs: Any) -> Any:
        return self.dense(inputs)


def test_optimizers_by_other_names_are_left_out_too(tmp_path: Path) -> None:
    model = Adversary()
    model(X)
    first, second = keras.optimizers.Adam(), keras.optimizers.Adam()
    model.compile(first, [second])
    first.build(model.trainable_variables)
    second.build(model.trainable_variables)
    save_without_optimizer(model, tmp_path / "model.keras")
    assert len(datasets(tmp_path / "model.keras")) == 2, "a kernel and a bias"
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        assert "compile_config" not in json.loads(archive.read("config.json"))


def test_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has not been built"):
        save_without_optimizer(keras.Sequential([keras.layers.Dense(2)]), tmp_path / "m.keras")


@pytest.mark.parametrize("trained", [False, True])
def test_a_file_weighs_the_same_compiled_or_not(tmp_path: Path, trained: bool) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    save_without_optimizer(model, tmp_path / "bare.keras")
    model.compile(keras.optimizers.Adam(), "mse")
    if trained:
        model.fit(np.zeros((4, 4)), np.zeros((4, 3)), verbose=0)
    save_without_optimizer(model, tmp_path / "compiled.keras")
    sizes = {file.stat().st_size for file in tmp_path.iterdir()}
    assert len(sizes) == 1

import json
import sys
from importlib import invalidate_caches
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest

from mlflow_keras_adv.serialization.loading import Predictor, load, main_module_name, named_outputs

X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")


def test_the_module_of_a_custom_object_is_imported_before_keras_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shift(keras.layers.Layer):
        def call(self, inputs):
            return inputs + 1

    keras.Sequential([keras.Input((3,)), Shift()]).save(tmp_path / "model.keras")
    with pytest.raises(TypeError, match="Could not locate class 'Shift'"):
        load(tmp_path)
    (tmp_path / "lo_layers.py").write_text(
        "import keras\n"
        "class Outer:\n"
        "    class Shift(keras.layers.Layer):\n"
        "        def call(self, inputs):\n"
        "            return inputs + 1\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    invalidate_caches()
    places = {"Shift": "lo_layers:Outer.Shift"}
    (tmp_path / "loading.json").write_text(json.dumps({"custom_objects": places}))
    np.testing.assert_array_equal(load(tmp_path)(X), X + 1)


@pytest.mark.parametrize(
    ("spec", "file", "name"),
    [
        ("projects.distill", "/somewhere/projects/distill.py", "projects.distill"),
        (None, "/somewhere/train.py", "train"),
        (None, "/usr/bin/pytest", None),
        (None, None, None),
    ],
)
def test_the_name_of_the_running_script(
    monkeypatch: pytest.MonkeyPatch, spec: str | None, file: str | None, name: str | None
) -> None:
    main = ModuleType("__main__")
    main.__file__ = file
    main.__spec__ = None if spec is None else type("Spec", (), {"name": spec})
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert main_module_name() == name


def test_several_outputs_have_names() -> None:
    inputs = keras.Input((3,))
    layers = [keras.layers.Dense(2, name="mean"), keras.layers.Dense(1, name="spread")]
    listed = keras.Model(inputs, [layer(inputs) for layer in layers])
    assert list(named_outputs(listed, listed(X))) == ["mean", "spread"]
    named = keras.Model(inputs, {"m": layers[0](inputs), "s": layers[1](inputs)})
    assert list(named_outputs(named, named(X))) == ["m", "s"]
    twice = keras.Model(inputs, [layers[0](inputs), layers[0](2 * inputs)])
    assert list(named_outputs(twice, twice(X))) == ["output_0", "output_1"]
    with pytest.raises(ValueError, match="list or dict of tensors"):
        named_outputs(listed, {"a": [X, X]})


def feeds(kind: str, **dtypes: str) -> dict[str, Any]:
    inputs = [{"name": name, "dtype": dtype, "shape": [None, 3]} for name, dtype in dtypes.items()]
    return {"kind": kind, "inputs": inputs}


def test_bfloat16_becomes_float32() -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype="bfloat16")])
    assert Predictor(model, feeds("one", x="float32")).predict(X).dtype == np.float32


def test_inputs_come_by_name_and_reach_the_model_in_its_order() -> None:
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    model = keras.Model([right, left], keras.layers.Subtract()([right, left]))
    predictor = Predictor(model, feeds("list", right="float32", left="float32"))
    assert predictor.get_raw_model() is model
    np.testing.assert_array_equal(predictor.predict({"left": X, "right": 3 * X}), 3 * X - X)
    one = feeds("one", x="float32")
    single = Predictor(keras.Sequential([keras.Input((3,)), keras.layers.ReLU()]), one)
    np.testing.assert_array_equal(single.predict(X.tolist()), np.maximum(X, 0))

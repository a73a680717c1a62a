import sys
from importlib import import_module, invalidate_caches
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import keras
import pytest

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.serialization.custom_objects import CustomObject, code_files, custom_objects
from mlflow_keras_adv.serialization.saving import save_without_optimizer

LAYER = """
import keras

@keras.saving.register_keras_serializable("{package}")
class Scale(keras.layers.Layer):
    def call(self, inputs):
        return 2.0 * inputs

class Shift(keras.layers.Layer):
    def call(self, inputs):
        return 1.0 + inputs

def squash(inputs):
    return keras.ops.tanh(inputs)
"""


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    invalidate_caches()
    return path


def found_in(layers: list[keras.layers.Layer], folder: Path, **arguments) -> list[CustomObject]:
    model = keras.Sequential([keras.Input((3,)), *layers])
    save_without_optimizer(model, folder / "model.keras")
    return custom_objects(model, folder / "model.keras", **arguments)


def test_a_model_of_keras_own_parts_has_none(tmp_path: Path) -> None:
    layers = [
        keras.layers.Dense(2, activation="relu", kernel_regularizer="l2"),
        keras.layers.Dense(2, activation=keras.activations.gelu, dtype="mixed_float16"),
        keras.layers.Lambda(keras.ops.tanh),
    ]
    assert found_in(layers, tmp_path) == []


def test_classes_and_functions_are_found_with_the_module_that_defines_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, "co_package/__init__.py", "")
    written(tmp_path, "co_package/inner/blocks.py", LAYER.format(package="co_package"))
    monkeypatch.syspath_prepend(str(tmp_path))
    blocks = import_module("co_package.inner.blocks")
    wrapped = keras.layers.TimeDistributed(blocks.Scale())
    layers = [keras.layers.Dense(2, activation=blocks.squash), blocks.Shift()]
    layers += [keras.layers.Reshape((1, 2)), wrapped]
    assert {each.name: each.place for each in found_in(layers, tmp_path)} == {
        "squash": "co_package.inner.blocks:squash",
        "Shift": "co_package.inner.blocks:Shift",
        "co_package>Scale": "co_package.inner.blocks:Scale",
    }


def test_a_class_inside_a_function_is_refused_by_name(tmp_path: Path) -> None:
    class Hidden(keras.layers.Layer):
        def call(self, inputs):
            return inputs

    with pytest.raises(UserError, match=r"Hidden' is defined in .*test_custom_objects.*code_paths"):
        found_in([Hidden()], tmp_path)


def test_a_registered_class_inside_a_function_is_refused_by_name(tmp_path: Path) -> None:
    @keras.saving.register_keras_serializable("test_custom_objects")
    class Registered(keras.layers.Layer):
        def call(self, inputs):
            return inputs

    with pytest.raises(UserError, match=r"Registered' is defined in"):
        found_in([Registered()], tmp_path)


def test_a_code_path_supplies_what_cannot_be_imported(tmp_path: Path) -> None:
    class Shift(keras.layers.Layer):
        def call(self, inputs):
            return 1.0 + inputs

    written(tmp_path, "co_supplied/__init__.py", "")
    written(tmp_path, "co_supplied/layers.py", LAYER.format(package="co_supplied"))
    package = tmp_path / "co_supplied"
    [found] = found_in([Shift()], tmp_path, code_paths=[package])
    assert found.place == "co_supplied.layers:Shift"
    [found] = found_in([Shift()], tmp_path, code_paths=[package / "layers.py"])
    assert found.place == "layers:Shift"
    assert found.value is Shift


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
@pytest.mark.parametrize(
    "layer",
    [
        lambda: keras.layers.Lambda(lambda inputs: 2 * inputs),
        lambda: keras.layers.Dense(2, activation=lambda inputs: 2 * inputs),
    ],
)
def test_a_lambda_is_refused(tmp_path: Path, layer) -> None:
    with pytest.raises(UserError, match="Python lambda"):
        found_in([layer()], tmp_path)


SCRIPT = """
import keras

class Shift(keras.layers.Layer):
    def call(self, inputs):
        return 1.0 + inputs

{guard}
    print("training")
"""


def running(file: Path, name: str | None, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What `python file.py`, or `python -m name`, makes of a script."""
    main = ModuleType("__main__")
    main.__file__ = str(file)
    main.__spec__ = None if name is None else ModuleSpec(name, None)
    exec(compile(file.read_text(), file, "exec"), vars(main))
    monkeypatch.setitem(sys.modules, "__main__", main)
    return main


@pytest.mark.parametrize(
    ("name", "place"), [(None, "train:Shift"), ("steps.train", "steps.train:Shift")]
)
def test_a_class_of_the_running_script_is_found_under_the_name_that_others_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None, place: str
) -> None:
    script = written(tmp_path, "steps/train.py", SCRIPT.format(guard="if __name__ != '__main__':"))
    written(tmp_path, "steps/__init__.py", "")
    monkeypatch.syspath_prepend(str(tmp_path))
    main = running(script, name, monkeypatch)
    [found] = found_in([main.Shift()], tmp_path)
    assert found.place == place
    assert code_files([found]) == (
        {"train.py": script}
        if name is None
        else {"steps/__init__.py": script.with_name("__init__.py"), "steps/train.py": script}
    )


def test_a_script_that_would_run_when_it_is_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = written(tmp_path, "train.py", SCRIPT.format(guard="if True:"))
    main = running(script, None, monkeypatch)
    with pytest.raises(UserError, match="Loading the model would run the script"):
        found_in([main.Shift()], tmp_path)


def test_a_class_of_an_interactive_session_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = written(tmp_path, "cell.py", SCRIPT.format(guard="if True:"))
    main = running(script, None, monkeypatch)
    del main.__file__
    with pytest.raises(UserError, match="notebook"):
        found_in([main.Shift()], tmp_path)

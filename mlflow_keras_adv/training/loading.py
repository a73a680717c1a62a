"""Loads a Keras model from the folder in which `log_model` left it, and predicts with it.

This file travels with every model, as the top-level module `mlflow_keras_adv_loader`. So a model
loads where the package is not installed, and where it is, an old model does not put its old copy
of the package before it. Therefore this file imports nothing of the package.

The folder holds `model.keras` and `loading.json`:

    {"custom_objects": {"Custom>Scale": "projects.layers:Scale"}, "list_inputs": null}
"""

import json
import sys
from collections.abc import Mapping
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

import keras
import numpy as np

MODEL_FILE = "model.keras"
LOADING_FILE = "loading.json"


def load(folder: str | Path) -> keras.Model:
    """The model in `folder`, uncompiled; the modules of its custom objects are imported first.

    Keras' safe mode stays on: nothing is unpickled.

    Args:
        folder: Holds `model.keras`, and `loading.json` if the model was logged by this package.
    """
    places = _description(folder).get("custom_objects", {})
    custom_objects = {name: _imported(place) for name, place in places.items()}
    path = Path(folder) / MODEL_FILE
    return keras.saving.load_model(path, custom_objects=custom_objects, compile=False)


def main_module_name() -> str | None:
    """The name by which others import the program's `__main__`: `projects.distill` or `train`.

    None where there is no file to import, as in a notebook or an interactive session.
    """
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:  # python -m projects.distill
        return str(spec.name)
    file = Path(getattr(main, "__file__", None) or "")  # python train.py
    return file.stem if file.suffix == ".py" else None


def named_outputs(model: keras.Model, outputs: Any) -> np.ndarray | dict[str, np.ndarray]:
    """What a model returns, as one array or, if it has several outputs, as arrays by name.

    Args:
        model: Gives the names: those of its output layers, or `output_0`, `output_1`, ….
        outputs: A tensor, or a list, tuple or dict of tensors. bfloat16, which JSON and MLflow's
            signatures do not know, becomes float32.

    Raises:
        ValueError: The outputs are nested deeper.
    """
    if isinstance(outputs, (list, tuple)):
        names = getattr(model, "output_names", [])
        if len(set(names)) != len(outputs):
            names = [f"output_{position}" for position in range(len(outputs))]
        outputs = dict(zip(names, outputs, strict=True))
    if isinstance(outputs, Mapping):
        return {name: _array(output) for name, output in outputs.items()}
    return _array(outputs)


class Predictor:
    """What `mlflow.pyfunc.load_model` wraps: arrays in, arrays out."""

    def __init__(self, model: keras.Model, list_inputs: list[str] | None) -> None:
        self._model = model
        self._list_inputs = list_inputs

    def predict(self, data: Any) -> np.ndarray | dict[str, np.ndarray]:
        """Predicts in batches of 32.

        Args:
            data: One input as ndarray, DataFrame or nested list of shape (samples, …), or several
                as a dict of arrays by name.

        Returns:
            Shape (samples, …), or arrays of such shapes by name.
        """
        if not isinstance(data, Mapping):
            data = np.asarray(data)
        elif self._list_inputs is not None:
            data = [data[name] for name in self._list_inputs]
        return named_outputs(self._model, self._model.predict(data, verbose=0))

    def get_raw_model(self) -> keras.Model:
        """The Keras model, for `PyFuncModel.get_raw_model`."""
        return self._model


def _load_pyfunc(path: str) -> Predictor:
    """The hook of MLflow's python_function flavor; `path` is the folder that `load` reads."""
    return Predictor(load(path), _description(path).get("list_inputs"))


def _description(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / LOADING_FILE
    return json.loads(path.read_text()) if path.exists() else {}


def _imported(place: str) -> Any:
    """What is at `module:qualified.name`; the running script is not imported a second time."""
    name, qualname = place.split(":")
    module = sys.modules["__main__"] if name == main_module_name() else import_module(name)
    return attrgetter(qualname)(module)


def _array(output: Any) -> np.ndarray:
    if isinstance(output, (list, tuple, Mapping)):
        raise ValueError(
            "a model's outputs must be a tensor, or a list or dict of tensors; "
            f"got a {type(output).__name__} among them"
        )
    array = keras.ops.convert_to_numpy(output)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array

"""Loads a Keras model from the folder that `log_model` wrote, and predicts with it.

This file is logged with every model, as a top-level module named after its content. So a model
loads where the package is not installed, and each model in a process uses its own loader. Therefore
this file imports nothing of the package.

The folder holds `model.keras`, `loading.json`, and in `code` the modules of its custom objects:

    {"custom_objects": {"Custom>Scale": "projects.layers:Scale"}, "code": "code",
     "feeds": {"kind": "one", "inputs": [{"name": "x", "dtype": "float32", "shape": [null, 4]}]}}

Every model has its own code. Its modules are imported as submodules of a package that is named
after their content, `mlflow_keras_adv_<digest>.projects.layers`, and see each other under the names
that their source says: models of one project side by side do not mix, neither with each other nor
with modules that the program itself has imported. Keras' registry of custom objects is unchanged
by a load, except for the model's own classes, whose names in it begin with that package.
"""

import atexit
import builtins
import hashlib
import importlib
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
)
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np

MODEL_FILE = "model.keras"
LOADING_FILE = "loading.json"
CODE_FOLDER = "code"
# One copy of this package serves all, where it is installed: it hooks into Keras.
_SHARED = "mlflow_keras_adv"
_PREFIX = f"{_SHARED}_model_"
# Of this file: loaders of other versions do not share packages with it. Read now, for the folder of
# a model that it came with may be gone later.
DIGEST = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
_CODE = "__model_code__"  # attribute of a model's package in `sys.modules`


def load(
    folder: str | Path,
    code: str | Path | None = None,
    custom_objects: Mapping[str, Any] | None = None,
) -> keras.Model:
    """Loads the model in a folder, with its own code.

    Keras' safe mode stays on: nothing is unpickled.

    Args:
        folder: Holds `model.keras`, and `loading.json` if the model was logged by this package.
        code: The folder of its modules; default: as `loading.json` says.
        custom_objects: Replacements of the model's own classes and functions, by their names in
            the file.

    Returns:
        The model, uncompiled.
    """
    folder = Path(folder)
    description = _description(folder)
    places = description.get("custom_objects", {})
    if code is None and CODE_FOLDER in description:
        code = folder / description[CODE_FOLDER]
    own = None if code is None or not places else _code_in(Path(code))
    theirs = dict(custom_objects or {})
    known = {name: _imported(place, own) for name, place in places.items() if name not in theirs}
    path = folder / MODEL_FILE
    if own is None:
        return keras.saving.load_model(path, custom_objects=known | theirs, compile=False)
    own.claim(known)
    known |= own.registered
    names = {name for name, value in known.items() if own.owns(value)} - set(theirs)
    # What the program has registered comes before `custom_objects` and before a scope: only names
    # of its own lead to the model's own classes.
    with tempfile.TemporaryDirectory() as temporary:
        renamed = Path(temporary, MODEL_FILE)
        rewrite(path, renamed, lambda config: _renamed(config, names, own.name))
        with keras.saving.custom_object_scope(known | theirs):
            return keras.saving.load_model(renamed, custom_objects=known | theirs, compile=False)


def rewrite(path: Path, target: Path, change: Callable[[Any], Any]) -> None:
    """Rewrites a `.keras` file with another configuration."""
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(target, "w") as after:
        for item in before.infolist():
            with before.open(item) as source, after.open(item, "w", force_zip64=True) as written:
                if item.filename == "config.json":
                    written.write(json.dumps(change(json.load(source))).encode())
                else:
                    shutil.copyfileobj(source, written)


def _renamed(config: Any, names: Set[str], package: str) -> Any:
    """A configuration that calls the objects of these names by names in the package."""
    if isinstance(config, list):
        return [_renamed(value, names, package) for value in config]
    if isinstance(config, str) and ">" in config and config in names:  # by no accident
        return f"{package}>{config}"
    if not isinstance(config, dict):
        return config
    renamed = {key: _renamed(value, names, package) for key, value in config.items()}
    key = "config" if config.get("class_name") == "function" else "registered_name"
    if "class_name" in config and isinstance(config.get(key), str) and config[key] in names:
        renamed[key] = f"{package}>{config[key]}"
    return renamed


def code_of(module: str) -> "ModelCode | None":
    """The code of the model that a module was imported for; None if it belongs to none."""
    top = module.partition(".")[0]
    return getattr(sys.modules.get(top), _CODE, None) if top.startswith(_PREFIX) else None


class ModelCode:
    """The modules of one model.

    Args:
        name: Name of the package that they are imported in.
        folder: Their folder, which must exist as long as the process.

    Attributes:
        name: Name of the package.
        folder: Their folder.
        registered: Objects that they have registered with Keras, by the names that they gave.
        borrowed: Modules that they have imported from elsewhere.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.registered: dict[str, Any] = {}
        self.borrowed: set[str] = set()
        self._tops = {path.name.partition(".")[0] for path in folder.iterdir()}
        # An import statement, wherever and whenever it runs, asks the builtins of its module.
        self.builtins = {**vars(builtins), "__import__": self._import}
        self._importlib = ModuleType("importlib")
        self._importlib.__getattr__ = lambda name: getattr(importlib, name)  # type: ignore[method-assign]
        self._importlib.import_module = self.import_module  # type: ignore[attr-defined]

    def holds(self, module: str) -> bool:
        """Whether a name refers to a module of the model."""
        top = module.partition(".")[0]
        return top in self._tops and not (top == _SHARED and find_spec(top) is not None)

    def import_module(self, name: str, package: str | None = None) -> ModuleType:
        """Replaces `importlib.import_module` for the model's own code."""
        if self.holds(name):
            return importlib.import_module(f"{self.name}.{name}")
        if not name.startswith("."):
            self.borrowed.add(name)
        return importlib.import_module(name, package)

    def own_name(self, name: str) -> str:
        """The original name of a module or a registered object of the model."""
        for mark in ".>":
            name = name.removeprefix(f"{self.name}{mark}")
        return name

    def claim(self, objects: Mapping[str, Any]) -> None:
        """Registers objects of the model with Keras under unique names.

        So a copy, a pickle or a file of the loaded model finds exactly these in this process.
        """
        for name, value in objects.items():
            unmade = isinstance(value, type) and not hasattr(value, "get_config")
            if self.owns(value) and not unmade:
                keras.saving.register_keras_serializable(self.name, name)(value)

    @contextmanager
    def registering(self) -> Iterator[None]:
        """Restores Keras' registry after the block, except for the model's own names."""
        table = keras.saving.get_custom_objects()
        # Another thread may be at the same with another model.
        before = {name: value for name, value in table.copy().items() if not _is_a_models(value)}
        try:
            yield
        finally:
            for name, value in table.copy().items():
                if self.owns(value) and not name.startswith(f"{self.name}>"):
                    self.registered[name] = value
                    table.pop(name, None)
            for name in self.registered.keys() & before.keys():
                table.setdefault(name, before[name])
            self.claim(self.registered)

    def owns(self, value: Any) -> bool:
        """Whether a class or function is defined in the model's own code."""
        return str(getattr(value, "__module__", "")).startswith(f"{self.name}.")

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """Replaces `__import__` in the modules of the model."""
        if level == 0 and self.holds(name):
            found = builtins.__import__(f"{self.name}.{name}", globals, locals, fromlist or (), 0)
            return found if fromlist else sys.modules[f"{self.name}.{name.partition('.')[0]}"]
        found = builtins.__import__(name, globals, locals, fromlist or (), level)
        if level == 0:
            self.borrowed.add(name)
        return self._importlib if found is importlib else found


class _Finder:
    """Finds the modules of models, for import statements of any kind and for pickles."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is None or code_of(name) is None:
            return None
        kinds = (ExtensionFileLoader, EXTENSION_SUFFIXES), (_Loader, SOURCE_SUFFIXES)
        for folder in path:
            spec = FileFinder(folder, *kinds).find_spec(name)
            if spec is not None and spec.loader is None:  # a folder without __init__.py
                places = spec.submodule_search_locations
                spec = ModuleSpec(name, None, is_package=True)
                spec.submodule_search_locations = places
            if spec is not None:
                return spec
        return None


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        code = code_of(module.__name__)
        assert code is not None
        vars(module)["__builtins__"] = code.builtins
        with code.registering():
            super().exec_module(module)


def _code_in(folder: Path) -> ModelCode:
    """The code that a folder holds: for equal files the same, also of another load."""
    digest = hashlib.sha256(DIGEST.encode())
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    # The folder of a download may be gone while the model is in use; modules are imported late.
    copy = Path(tempfile.mkdtemp(prefix=_PREFIX), CODE_FOLDER)
    shutil.copytree(folder, copy, ignore=ignored)
    for file in sorted(path for path in copy.rglob("*") if path.is_file()):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(copy).as_posix()}\0{len(content)}\0".encode() + content)
    name = f"{_PREFIX}{digest.hexdigest()[:16]}"
    package = ModuleType(name)
    package.__path__ = [str(copy)]
    package.__spec__ = ModuleSpec(name, None, is_package=True)
    setattr(package, _CODE, ModelCode(name, copy))
    if sys.modules.setdefault(name, package) is package:
        if _Finder not in sys.meta_path:
            sys.meta_path.insert(0, _Finder)
        atexit.register(_remove, copy.parent, os.getpid())
    else:
        shutil.rmtree(copy.parent, ignore_errors=True)
    found = code_of(name)
    assert found is not None
    return found


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # not a fork, at its own end
        shutil.rmtree(folder, ignore_errors=True)


def _is_a_models(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).startswith(_PREFIX)


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
    """Converts a model's outputs to one array or, if there are several, to arrays by name.

    Args:
        model: Gives the names: those of its output layers, or `output_0`, `output_1`, ….
        outputs: A tensor, or a list, tuple or dict of tensors. bfloat16, which JSON and MLflow's
            signatures do not know, becomes float32; bytes become text where they are text.

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


def fed(feeds: Mapping[str, Any], data: Any) -> Any:
    """Converts a caller's data to the inputs of a model.

    Args:
        feeds: `kind`: "one", "list" or "dict", the structure of the inputs; `inputs`: for each its
            name, dtype ("string" for texts and bytes; None for any), shape with None on free axes
            (None if unknown), and whether it is `ragged`.
        data: For one input an array, Series, DataFrame or nested list of shape (samples, …); for
            any number a dict of these, or a DataFrame with a column for each, by name; for several
            also a list.

    Returns:
        The inputs, in the structure that the model expects.

    Raises:
        ValueError: An input is missing, or does not fit the model.
    """
    inputs = feeds["inputs"]
    values = by_name([each["name"] for each in inputs], data)
    tensors = {each["name"]: _converted(values[each["name"]], each) for each in inputs}
    if any(not isinstance(each, np.ndarray) for each in tensors.values()):
        # Keras does not take arrays beside tensors, and texts have to be tensors.
        tensors = {
            name: keras.ops.convert_to_tensor(each) if isinstance(each, np.ndarray) else each
            for name, each in tensors.items()
        }
    if feeds["kind"] == "dict":
        return tensors
    listed = list(tensors.values())
    return listed if feeds["kind"] == "list" else listed[0]


class Predictor:
    """The model that `mlflow.pyfunc.load_model` wraps: arrays in, arrays out.

    Args:
        model: The Keras model.
        feeds: The structure of its inputs; see `fed`.
    """

    def __init__(self, model: keras.Model, feeds: Mapping[str, Any]) -> None:
        self._model = model
        self._feeds = feeds

    def predict(self, data: Any) -> np.ndarray | dict[str, np.ndarray]:
        """Predicts in batches of 32.

        Args:
            data: See `fed`.

        Returns:
            Shape (samples, …), or arrays of such shapes by name.
        """
        inputs = fed(self._feeds, data)
        return named_outputs(self._model, self._model.predict(inputs, verbose=0))

    def get_raw_model(self) -> keras.Model:
        """The Keras model, for `PyFuncModel.get_raw_model`."""
        return self._model


def _load_pyfunc(path: str) -> Predictor:
    """The hook of MLflow's python_function flavor; `path` is the folder that `load` reads."""
    predictor = Predictor(load(path), _description(path)["feeds"])
    _off_sys_path(Path(path, "../../code"))
    return predictor


def _off_sys_path(folder: Path) -> None:
    """Removes the path that MLflow added for the import of this loader."""
    for index, entry in enumerate(sys.path):
        if os.path.realpath(entry) == os.path.realpath(folder):
            del sys.path[index]
            return


def _description(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / LOADING_FILE
    return json.loads(path.read_text()) if path.exists() else {}


def _imported(place: str, own: ModelCode | None) -> Any:
    """The object at `module:qualified.name`, in the model's own code or an installed package."""
    name, qualname = place.split(":")
    module: ModuleType
    if own is not None and own.holds(name):
        module = own.import_module(name)
    elif name == main_module_name():  # the running script is not imported a second time
        module = sys.modules["__main__"]
    else:
        module = importlib.import_module(name)
    return attrgetter(qualname)(module)


def by_name(names: Sequence[str], data: Any) -> dict[str, Any]:
    """A caller's data by the names of the inputs; see `fed`."""
    if hasattr(data, "columns") and hasattr(data, "to_numpy"):  # a DataFrame
        if set(names) <= set(data.columns):
            return {name: data[name] for name in names}
        if len(names) == 1:
            return {names[0]: data.iloc[:, 0] if len(data.columns) == 1 else data.to_numpy()}
        data = {column: data[column] for column in data.columns}
    if isinstance(data, Mapping):
        if missing := [name for name in names if name not in data]:
            raise ValueError(f"the inputs are {list(names)}; got {list(data)}, without {missing}")
        return {name: data[name] for name in names}
    if len(names) == 1:
        return {names[0]: data}
    if isinstance(data, (list, tuple)) and len(data) == len(names):
        return dict(zip(names, data, strict=True))
    raise ValueError(
        f"send the inputs {list(names)} as a dict of arrays, a DataFrame with these columns, or "
        f"{len(names)} arrays in this order; got a {type(data).__name__}"
    )


def _converted(values: Any, taken: Mapping[str, Any]) -> Any:
    """Values for one input, converted to its dtype and rank."""
    dtype, shape = taken.get("dtype"), taken.get("shape")
    if taken.get("ragged"):
        return _ragged(values, str(dtype), shape)
    if dtype == "string":
        return _texts(_of_rank(cells(values, object), shape), taken["name"])
    array = np.asarray(values)
    if array.dtype == object and dtype is not None:  # of a DataFrame: a number or a list a cell
        array = cells(array, np.dtype(dtype))
    return _of_rank(array, shape)


def cells(values: Any, dtype: Any) -> np.ndarray:
    """An array of lists or arrays as one array with further axes."""
    if hasattr(values, "numpy"):  # a tensor
        values = values.numpy()
    array = np.asarray(values, dtype=object)
    members = [each.tolist() if isinstance(each, np.ndarray) else each for each in array.flat]
    if any(isinstance(each, (list, tuple)) for each in members):
        return np.array(members, dtype=dtype)
    return np.array(members, dtype=dtype).reshape(array.shape)


def _of_rank(array: np.ndarray, shape: Sequence[int | None] | None) -> np.ndarray:
    """Adds or removes a last axis of 1, as the input needs it: a column may have either shape."""
    if shape is None:
        return array
    if array.ndim == len(shape) - 1 and shape[-1] == 1:
        return array[..., np.newaxis]
    if array.ndim == len(shape) + 1 and array.shape[-1] == 1:
        return array[..., 0]
    return array


def _texts(array: np.ndarray, name: str) -> Any:
    import tensorflow as tf  # the one backend that has such tensors

    for each in array.flat:
        if not isinstance(each, (str, bytes)):
            raise ValueError(f"input {name!r} takes texts; got {each!r}, a {type(each).__name__}")
    return tf.constant(array.tolist(), tf.string, shape=array.shape)


def _ragged(values: Any, dtype: str, shape: Sequence[int | None] | None) -> Any:
    import tensorflow as tf  # the one backend that has such tensors

    if isinstance(values, tf.RaggedTensor):
        return values
    rows = lists(values)
    inner = tuple(shape[2:]) if shape is not None and None not in shape[2:] else ()
    return tf.ragged.constant(rows, dtype=dtype, ragged_rank=1, inner_shape=inner)


def lists(values: Any) -> Any:
    """Nested arrays, lists and tuples as nested lists."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    return [lists(each) for each in values] if isinstance(values, (list, tuple)) else values


def _array(output: Any) -> np.ndarray:
    if isinstance(output, (list, tuple, Mapping)):
        raise ValueError(
            "a model's outputs must be a tensor, or a list or dict of tensors; "
            f"got a {type(output).__name__} among them"
        )
    array = np.asarray(keras.ops.convert_to_numpy(output))
    if array.dtype.kind in "OS":
        return decoded(array)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def holds_texts(array: np.ndarray) -> bool:
    """Whether an array holds texts, or bytes that may be texts."""
    if array.dtype.kind == "O":
        return array.size > 0 and all(isinstance(each, (str, bytes)) for each in array.flat)
    return array.dtype.kind in "US"


def decoded(array: np.ndarray) -> np.ndarray:
    """Bytes decoded as text, where they can be."""
    try:
        texts = [each.decode() if isinstance(each, bytes) else each for each in array.flat]
    except UnicodeDecodeError:  # bytes that are no text
        return array
    return np.array(texts, dtype=object).reshape(array.shape)

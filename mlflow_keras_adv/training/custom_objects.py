"""Custom layers and functions of a saved model: what they are, and where their source lies.

A `.keras` file names its classes and functions but does not hold them. Who loads it must have
imported their modules, so the modules travel with the model.
"""

import ast
import importlib.util
import json
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from types import FunctionType
from typing import Any

import keras

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.training.loading import main_module_name

_NO_LAMBDA = (
    "the model holds a Python lambda (a Lambda layer, or an activation or regularizer written as "
    "one). It would be stored as bytecode, which Keras refuses to load. Write a layer, or a named "
    "function in a module, instead."
)
_KERAS = {"builtins", "keras", "keras_hub", "keras_cv", "keras_nlp"}  # Keras finds these itself
_OWN_PACKAGE = __name__.partition(".")[0]
_INSTALLED = {"site-packages", "dist-packages"}


@dataclass(frozen=True)
class CustomObject:
    """A class or function that a saved model needs and Keras does not have.

    Attributes:
        name: What the file calls it: `package>name` if registered with Keras, else its own name.
        module: The module to import, as a fresh process sees it: never `__main__`.
        qualname: Its name in the module, dotted for a nested class.
        value: The object itself; None where only its name is known.
    """

    name: str
    module: str
    qualname: str
    value: Any

    @property
    def place(self) -> str:
        """Its place as text, for example `projects.layers:Scale`."""
        return f"{self.module}:{self.qualname}"


def custom_objects(
    model: keras.Model, path: Path, code_paths: Sequence[Path] = ()
) -> list[CustomObject]:
    """The custom objects that a saved model names.

    Args:
        model: The model; the file does not say where its functions are defined.
        path: The `.keras` file to which it was saved.
        code_paths: Python files and package folders in which to look for what is defined where
            nobody can import it.

    Raises:
        UserError: Another process could not import an object, or the model holds a Python lambda.
    """
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    in_use = _in_use(model)
    found: dict[str, CustomObject] = {}
    for part in _parts(config):
        if part["class_name"] == "__lambda__":
            raise UserError(_NO_LAMBDA)
        is_function = part["class_name"] == "function"  # of which the file keeps only the name
        name = part["config"] if is_function else part.get("registered_name")
        if name is None:  # data, or one of Keras' own classes
            continue
        value = keras.saving.get_registered_object(name) or in_use.get(name)
        if is_function:
            module = "builtins" if value is None else value.__module__
        else:
            module = part["module"] or "__main__"  # which Keras writes as None
        if module.partition(".")[0] not in _KERAS:
            qualname = part["class_name"] if value is None else value.__qualname__
            found[name] = _locate(CustomObject(name, module, qualname, value), code_paths)
    return list(found.values())


def sources(modules: Iterable[str]) -> list[Path]:
    """The package folders and files of `modules` and of every local module that these import.

    Installed distributions are left out: they are requirements. This package is taken along if it
    is imported, since no index has it.

    Args:
        modules: Dotted names of importable modules.
    """
    found: dict[str, Path] = {}
    waiting = [module.partition(".")[0] for module in modules]
    while waiting:
        top = waiting.pop()
        source = _source_of(top)
        if top in found or top in sys.stdlib_module_names or source is None:
            continue
        if top == _OWN_PACKAGE:
            found[top] = source
        elif not _INSTALLED.intersection(source.parts):
            found[top] = source
            waiting.extend(_imports_of(source))
    return [found[top] for top in sorted(found)]


def _parts(config: Any) -> Iterator[dict[str, Any]]:
    """Every serialized object in `config`, outer ones first."""
    if isinstance(config, dict):
        if "class_name" in config:
            yield config
        for value in config.values():
            yield from _parts(value)
    elif isinstance(config, list):
        for value in config:
            yield from _parts(value)


def _in_use(model: keras.Model) -> dict[str, Any]:
    """Layer classes, and functions such as activations and regularizers, by registered name."""
    found: dict[str, Any] = {}
    for layer in model._flatten_layers():  # at any depth; the public `layers` is one level
        found[keras.saving.get_registered_name(type(layer))] = type(layer)
        for value in list(vars(layer).values()):  # another thread may be saving the model
            if isinstance(value, FunctionType):
                if value.__name__ == "<lambda>" and type(layer).__module__.startswith("keras."):
                    raise UserError(_NO_LAMBDA)
                found[keras.saving.get_registered_name(value)] = value
    return found


def _locate(found: CustomObject, code_paths: Sequence[Path]) -> CustomObject:
    """The same object where another process finds it."""
    module = main_module_name() if found.module == "__main__" else found.module
    try:
        value = attrgetter(found.qualname)(sys.modules[found.module])
    except (AttributeError, KeyError):  # defined in a function, or its module is gone
        module = None
    if module is not None and _source_of(module.partition(".")[0]) is not None:
        if found.module == "__main__":
            _refuse_unguarded_script(found.qualname)
        return replace(found, module=module, value=value)
    short = found.qualname.rpartition(".")[2]
    for code_path in code_paths:
        for dotted, file in _python_files(code_path):
            if short in _definitions(file):
                return replace(found, module=dotted, qualname=short)
    raise UserError(
        f"{found.qualname!r} is defined in {found.module!r} where no other process can import it "
        "(in a function, a notebook or an interactive session), so nobody could load the model. "
        "Move it to the top level of a module, or pass a file that defines it: "
        "code_paths=['…/layers.py']."
    )


def _refuse_unguarded_script(qualname: str) -> None:
    script = Path(str(sys.modules["__main__"].__file__))
    body = ast.parse(script.read_bytes()).body
    tests = [ast.unparse(node.test) for node in body if isinstance(node, ast.If)]
    if not any("__name__" in test for test in tests):
        raise UserError(
            f"{qualname!r} is defined in the script {script.name}, which has no "
            "`if __name__ == '__main__':`. Loading the model would run the script. Put what it "
            f"does under such a line, or move {qualname!r} to a module."
        )


def _source_of(top: str) -> Path | None:
    """The folder of the top-level package `top`, or the file of the top-level module."""
    if top == main_module_name():  # sys.path may lack the script's folder
        return Path(str(sys.modules["__main__"].__file__)).resolve()
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module made by hand has none
        return None
    if spec is None or (spec.origin is None and top not in sys.modules):
        return None  # not there, or a folder without __init__.py that happens to have this name
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    if spec.origin is not None and spec.origin.endswith(".py"):
        return Path(spec.origin).resolve()
    return None  # built in, or compiled


def _imports_of(source: Path) -> set[str]:
    """Top-level names that the Python files of `source` import, in functions too."""
    names: set[str] = set()
    for _, file in _python_files(source):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                names.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.partition(".")[0])
    return names


def _python_files(source: Path) -> Iterator[tuple[str, Path]]:
    """The Python files of a package folder or of a single file, with dotted module names."""
    for file in sorted(source.rglob("*.py")) if source.is_dir() else [source]:
        parts = file.relative_to(source.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


def _definitions(file: Path) -> set[str]:
    """What a Python file defines at its top level."""
    kinds = (ast.ClassDef, ast.FunctionDef)
    return {node.name for node in ast.parse(file.read_bytes()).body if isinstance(node, kinds)}

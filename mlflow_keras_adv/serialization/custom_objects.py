"""Custom layers and functions of a saved model, and the files of their source.

A `.keras` file names its classes and functions but does not contain them. Their modules must be
importable where the model is loaded, so the modules are logged with the model.
"""

import ast
import json
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from types import FunctionType
from typing import Any

import keras

from mlflow_keras_adv.compat.keras import layers_of
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.serialization.loading import ModelCode, code_of, main_module_name, rewrite
from mlflow_keras_adv.serialization.needed_modules import (
    Files,
    dotted_name,
    modules_in,
    needed_files,
    source_of,
)

_NO_LAMBDA = (
    "the model holds a Python lambda (a Lambda layer, or an activation or regularizer written as "
    "one). It would be stored as bytecode, which Keras refuses to load. Write a layer, or a named "
    "function in a module, instead."
)
_KERAS = {"builtins", "keras", "keras_hub", "keras_cv", "keras_nlp"}  # Keras finds these itself


@dataclass(frozen=True)
class CustomObject:
    """A class or function that a saved model needs and Keras does not have.

    Attributes:
        name: Its name in the file: `package>name` if registered with Keras, else its own name.
        module: The module to import, as a fresh process sees it: never `__main__`.
        qualname: Its name in the module, dotted for a nested class.
        value: The object itself; None where only its name is known.
        code: Code of the model that it was loaded with; None for what the program imported.
    """

    name: str
    module: str
    qualname: str
    value: Any
    code: ModelCode | None = None

    @property
    def place(self) -> str:
        """Its place as text, for example `projects.layers:Scale`."""
        return f"{self.module}:{self.qualname}"


def custom_objects(
    model: keras.Model, path: Path, code_paths: Sequence[Path] = ()
) -> list[CustomObject]:
    """Finds the custom objects that a saved model needs.

    Args:
        model: The model; the file does not say where its functions are defined.
        path: The `.keras` file to which it was saved.
        code_paths: Python files and package folders in which to look for objects that are defined
            where they cannot be imported.

    Returns:
        The objects.

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
        # Another class may have been registered since: a module that was loaded anew.
        value = in_use.get(name) or keras.saving.get_registered_object(name)
        if is_function:
            module = "builtins" if value is None else value.__module__
        else:
            module = part["module"] or "__main__"  # which Keras writes as None
        if module.partition(".")[0] not in _KERAS:
            qualname = part["class_name"] if value is None else value.__qualname__
            one = CustomObject(name, module, qualname, value, code_of(module))
            if one.code is not None:
                own = one.code.own_name
                one = replace(one, name=own(name), module=own(module))
            known = found.setdefault(one.name, one)
            if known.code is not one.code:
                raise UserError(
                    f"the model holds two versions of {one.name!r}: one of a model that was loaded "
                    "and another one. A model has one code; log its parts as models of their own."
                )
    return [_locate(each, code_paths) for each in found.values()]


def code_files(
    objects: Iterable[CustomObject],
    code_paths: Sequence[Path] = (),
    package_data: Sequence[str] = (),
) -> Files:
    """The files that custom objects need; see `needed_files`.

    Raises:
        UserError: Two loaded models contain different files of one name.
    """
    found: Files = {}
    codes: dict[ModelCode | None, set[str]] = {}
    for each in objects:
        codes.setdefault(each.code, set()).add(each.module)
    for code, modules in (codes or {None: set()}).items():
        base = None if code is None else code.folder
        files = needed_files(modules, code_paths, package_data, base=base)
        if code is not None:  # its data were asked for when it was logged
            kept = (path for path in code.folder.rglob("*") if path.is_file())
            data = {path.relative_to(code.folder).as_posix(): path for path in kept}
            files |= {
                name: path for name, path in data.items() if not name.endswith((".py", ".pyc"))
            }
        for name, file in files.items():
            if found.setdefault(name, file).read_bytes() != file.read_bytes():
                raise UserError(
                    f"the model needs two versions of {name}, of which a model that was loaded "
                    "brought one. A model has one code; log its parts as models of their own."
                )
    return found


def with_own_names(path: Path, objects: Iterable[CustomObject]) -> None:
    """Restores, in a file, the original names of objects that come from loaded models.

    Args:
        path: A `.keras` file.
        objects: Its custom objects.
    """
    codes = {each.code for each in objects} - {None}
    if not codes:
        return

    def own(text: str) -> str:
        for code in codes:
            text = code.own_name(text) if code is not None else text
        return text

    changed = path.with_suffix(".new")
    rewrite(path, changed, lambda config: _mapped(config, own))
    changed.replace(path)


def _mapped(config: Any, change: Callable[[str], str]) -> Any:
    if isinstance(config, dict):
        return {key: _mapped(value, change) for key, value in config.items()}
    if isinstance(config, list):
        return [_mapped(value, change) for value in config]
    return change(config) if isinstance(config, str) else config


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
    for layer in layers_of(model):  # at any depth; the public `layers` is one level
        found[keras.saving.get_registered_name(type(layer))] = type(layer)
        for value in list(vars(layer).values()):  # another thread may be saving the model
            if isinstance(value, FunctionType):
                if value.__name__ == "<lambda>" and type(layer).__module__.startswith("keras."):
                    raise UserError(_NO_LAMBDA)
                found[keras.saving.get_registered_name(value)] = value
    return found


def _locate(found: CustomObject, code_paths: Sequence[Path]) -> CustomObject:
    """The same object, with a module that another process can import."""
    module = main_module_name() if found.module == "__main__" else found.module
    if found.code is not None:  # it was found before
        return found
    try:
        value = attrgetter(found.qualname)(sys.modules[found.module])
    except (AttributeError, KeyError):  # defined in a function, or its module is gone
        module = None
    if module is not None and source_of(module.partition(".")[0]) is not None:
        if found.module == "__main__":
            _refuse_unguarded_script(found.qualname)
        return replace(found, module=module, value=value)
    short = found.qualname.rpartition(".")[2]
    for code_path in code_paths:
        for file in modules_in(code_path) if code_path.is_dir() else [code_path]:
            if file.suffix == ".py" and short in _definitions(file):
                dotted = dotted_name(file.relative_to(code_path.parent).as_posix())
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


def _definitions(file: Path) -> set[str]:
    """The names that a Python file defines at its top level."""
    kinds = (ast.ClassDef, ast.FunctionDef)
    return {node.name for node in ast.parse(file.read_bytes()).body if isinstance(node, kinds)}

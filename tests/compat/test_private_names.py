"""What other packages keep to themselves is used in `compat` alone."""

import ast
from pathlib import Path

import pytest

from tests.test_imports import MODULES, PACKAGE

# Python's own.
PYTHON = {"_thread", "_getframe", "_current_frames", "_initializing", "_is_protocol"}
# Ours, on objects of others.
OURS = {"_student_features"}
OUTSIDE = [module for module in MODULES if not module.startswith("compat/")]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names(tree: ast.AST) -> set[str]:
    """What a module defines, and what its classes set on themselves."""
    found = PYTHON | OURS
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            on_itself = isinstance(node, ast.Name) or ast.unparse(node.value) in {"self", "cls"}
            found |= {getattr(node, "id", None) or node.attr} if on_itself else set()
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "mlflow_keras_adv"
        ):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def private_names(source: str, own: set[str]) -> list[str]:
    """Private names that are used, and not those of the package: attributes, texts, imports."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(attr=name) if is_private(name) and name not in own:
                found.append(ast.unparse(node))
            case ast.Call(func=ast.Name(id="getattr" | "hasattr" | "setattr" | "delattr")):
                name = node.args[1]
                if (
                    isinstance(name, ast.Constant)
                    and is_private(name.value)
                    and name.value not in own
                ):
                    found.append(ast.unparse(node))
            case ast.Import(names=names):
                found += [each.name for each in names if is_hidden(each.name)]
            case ast.ImportFrom(module=str(module), names=names) if (
                "mlflow_keras_adv" not in module
            ):
                full = [f"{module}.{each.name}" for each in names]
                found += [each for each in full if is_hidden(each)]
    return found


def is_hidden(module: str) -> bool:
    """Whether a part of a dotted name is private, or is where Keras or TensorFlow hide all."""
    parts = [part for part in module.split(".") if part not in PYTHON]
    return any(map(is_private, parts)) or bool({"src", "python"} & set(parts[1:]))


@pytest.mark.quick
def test_no_private_name_of_another_package_stands_outside_of_compat() -> None:
    sources = {module: (PACKAGE / module).read_text() for module in MODULES}
    own = set().union(*(own_names(ast.parse(source)) for source in sources.values()))
    found = {module: private_names(sources[module], own) for module in OUTSIDE}
    assert {module: names for module, names in found.items() if names} == {}


@pytest.mark.quick
@pytest.mark.parametrize(
    "source",
    [
        "model._flatten_layers()",
        "getattr(model, '_compile_config', None)",
        "from keras.src import backend",
        "import tensorflow.python.eager.context",
        "from mlflow.tracking._tracking_service import utils",
    ],
)
def test_the_reader_sees_each_way_to_a_private_name(source: str) -> None:
    assert private_names(source, own_names(ast.parse(source)))
    assert Path(PACKAGE / "compat").is_dir()

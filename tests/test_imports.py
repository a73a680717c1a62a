"""The one law: the store side never imports Keras or TensorFlow, the training side never MLflow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mlflow_keras_adv"
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

STORE = {"numpy", "mlflow", "packaging"}
TRAINING = {"numpy", "tensorflow", "keras"}
TFLITE = {"ai_edge_litert"}
COMPRESSION = {"tf_keras", "tensorflow_model_optimization", "litert_quantizer"}
FIGURES = {"pandas", "matplotlib", "sklearn", "scipy"}
MEETING = STORE | TRAINING | {"pandas", "matplotlib"}

EVERYWHERE = {"errors", "extras", "compat", "keywords", "ranks", "replacing"}
# A module of `compat` is named after the package that it is about, and is for rooms that know that;
# `random_state` looks at libraries only where somebody has loaded them.
ABOUT = {
    **{name: name for name in ("keras", "keras_tuner", "mlflow", "tensorflow")},
    "tf_keras": "keras",
    "tfmot": "tensorflow_model_optimization",
}

# What each room may import beside the standard library and the rooms in the second set.
ROOMS = {
    "__init__.py": ({"lazy_loader"}, {"when_imported"}),
    "errors.py": (set(), set()),
    "when_imported.py": (set(), set()),
    "keywords.py": (set(), set()),
    "ranks.py": (set(), set()),
    "replacing.py": (set(), set()),
    "extras.py": (set(), set()),
    "cli.py": ({"click"}, {"tracking", "comparison", "diagnostics", "registry", "evaluation"}),
    "autologging.py": (set(), {"tracking", "callbacks", "tuner"}),
    "compat/__init__.py": (set(), set()),
    "compat/keras.py": (TRAINING | {"packaging"}, set()),
    "compat/mlflow.py": (STORE | {"requests"}, set()),
    "compat/keras_tuner.py": ({"keras_tuner"}, set()),
    "compat/random_state.py": ({"numpy"}, set()),
    "compat/tensorflow.py": ({"tensorflow"}, set()),
    "compat/tf_keras.py": ({"keras"}, set()),
    "compat/tfmot.py": ({"tensorflow_model_optimization"}, set()),
    "compat/system.py": (set(), set()),
    "compat/tested.py": ({"packaging"}, set()),
    # The store side.
    "tracking/": (STORE, {"durable"}),
    "durable/": (STORE, {"tracking"}),
    "diagnostics/": (STORE, {"tracking"}),
    "registry/": (STORE | {"jinja2", "scipy"}, {"tracking"}),
    "comparison/": (STORE | FIGURES - {"sklearn"} | {"jinja2", "PIL"}, {"tracking"}),
    # The training side.
    "serialization/": (TRAINING, set()),
    "training/": (TRAINING, {"serialization"}),
    "distillation/": (TRAINING, {"metrics", "training"}),
    "metrics/": (TRAINING | FIGURES, {"serialization"}),
    "tflite/": (TRAINING | TFLITE, {"metrics"}),
    "compression/": (
        TRAINING | TFLITE | COMPRESSION | {"lazy_loader"},
        {"metrics", "serialization", "tflite", "training"},
    ),
    # Where both meet.
    "callbacks/": (MEETING, {"metrics", "tracking", "training"}),
    "flavors/": (
        MEETING | {"lazy_loader"},
        {"compression", "metrics", "serialization", "tflite", "tracking"},
    ),
    "evaluation/": (
        MEETING,
        {"compression", "flavors", "metrics", "registry", "tflite", "tracking"},
    ),
    "tuner/": (MEETING | {"keras_tuner", "sklearn"}, {"callbacks", "flavors", "tracking"}),
    "lessons/": (
        MEETING | {"pydantic", "sklearn"},
        {"callbacks", "comparison", "compression", "evaluation", "metrics", "tflite", "tracking"},
    ),
    "plugins/": (STORE, {"durable", "evaluation", "tracking"}),
}


def room_of(module: str) -> str:
    return module if module in ROOMS or "/" not in module else module.split("/")[0] + "/"


def imports_of(source: str, *, for_types: bool = False) -> list[str]:
    """Every module that the source imports, in functions too; `for_types` in TYPE_CHECKING too."""
    found: list[str] = []

    def visit(node: ast.AST) -> None:
        types = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if types and not for_types:
            for each in node.orelse:
                visit(each)
            return
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room"
            found.extend(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return found


@pytest.mark.quick
@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_room_may_know(module: str) -> None:
    third_party, rooms = ROOMS[room_of(module)]
    rooms = rooms | EVERYWHERE | {module.split("/")[0]}
    for imported in imports_of((PACKAGE / module).read_text()):
        top, *rest = imported.split(".")
        if top == "mlflow_keras_adv":
            assert rest[0] in rooms, f"{module} may not know {imported}"
            about = ABOUT.get(rest[1]) if rest[0] == "compat" else None
            assert about in {None, *third_party}, f"{module} may not know {imported}"
        elif top not in sys.stdlib_module_names:
            assert top in third_party, f"{module} may not import {imported}"


@pytest.mark.quick
def test_imports_run_one_way() -> None:
    known = {
        module.removesuffix("/__init__.py").removesuffix(".py").replace("/", "."): {
            imported.removeprefix("mlflow_keras_adv.")
            for imported in imports_of((PACKAGE / module).read_text(), for_types=True)
            if imported.startswith("mlflow_keras_adv.")
        }
        for module in MODULES
        if module != "__init__.py"
    }

    def home(imported: str) -> str:
        """The module that the longest part of a dotted name is: `a.b.C` is in `a.b`."""
        parts = imported.split(".")
        names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        return next(name for name in names if name in known)

    arrows = {module: {home(each) for each in used} for module, used in known.items()}

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"circle: {' -> '.join((*path, module))}"
        for other in arrows[module] - {module}:
            walk(other, (*path, module))

    for module in arrows:
        walk(module, ())


@pytest.mark.quick
def test_the_reader_of_imports_sees_functions_and_types_if_asked() -> None:
    source = """
import os
if TYPE_CHECKING:
    import hidden
else:
    import fallback
def f():
    from inner.package import name
"""
    assert imports_of(source) == ["os", "fallback", "inner.package.name"]
    everything = ["os", "hidden", "fallback", "inner.package.name"]
    assert imports_of(source, for_types=True) == everything


@pytest.mark.quick
def test_importing_the_package_imports_neither_tensorflow_nor_mlflow() -> None:
    program = "import sys, mlflow_keras_adv; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    shown = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    loaded = set(shown.stdout.split())
    assert "mlflow_keras_adv" in loaded
    assert not loaded & {"tensorflow", "keras", "mlflow"}


@pytest.mark.quick
def test_every_public_name_can_be_had() -> None:
    import mlflow_keras_adv

    for package in (mlflow_keras_adv, mlflow_keras_adv.compression):
        assert [name for name in package.__all__ if not hasattr(package, name)] == []
        stub = (Path(str(package.__file__)).parent / "__init__.pyi").read_text()
        listed = ast.literal_eval(stub[stub.index("__all__ = ") :].removeprefix("__all__ = "))
        assert sorted(package.__all__) == sorted(listed)  # for the docs and for type checkers


@pytest.mark.quick
def test_the_quick_tests_touch_every_room() -> None:
    tests = Path(__file__).parent
    touched = {
        path.relative_to(tests).parts[0]
        for path in tests.rglob("test_*.py")
        if "@pytest.mark.quick" in path.read_text()
    }
    assert {module.split("/")[0] for module in MODULES if "/" in module} <= touched

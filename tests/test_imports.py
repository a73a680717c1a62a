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
LITERT = {"tf_keras", "tensorflow_model_optimization", "ai_edge_litert", "litert_quantizer"}
MEETING = STORE | TRAINING | {"pandas", "matplotlib"}

# `random_state` imports NumPy and nothing else, and looks at libraries only where somebody has
# loaded them. A module of `compat` is named after the package that it is about.
EVERYWHERE = {"random_state", "compat", "keywords"}

# What each room may import beside the standard library and the rooms in the second set.
ROOMS = {
    "__init__.py": (set(), {"*"}),
    "errors.py": (set(), set()),
    "when_imported.py": (set(), set()),
    "random_state.py": ({"numpy"}, set()),
    "keywords.py": (set(), set()),
    "extras.py": (set(), {"errors"}),
    "compat/__init__.py": (set(), set()),
    "compat/keras.py": (TRAINING | {"packaging"}, set()),
    "compat/mlflow.py": (STORE, set()),
    "compat/tensorflow.py": (set(), set()),
    "compat/system.py": (set(), set()),
    "compat/tested.py": ({"packaging"}, set()),
    "entry_point.py": ({"pydantic"}, {"errors", "extras"}),
    "tracking/": (STORE, {"errors", "tracking"}),
    "training/": (TRAINING, {"errors", "training"}),
    "metrics/": (TRAINING | {"pandas", "matplotlib", "sklearn"}, {"errors", "metrics"}),
    "compression/": (
        TRAINING | LITERT,
        {"errors", "extras", "metrics", "training", "compression"},
    ),
    "callbacks/": (MEETING, {"errors", "metrics", "tracking", "training", "callbacks"}),
    "autologging.py": (set(), {"tracking", "tuner", "recorded_fits"}),
    "recorded_fits.py": ({"keras"}, {"callbacks", "training"}),
    "claims.py": (STORE, {"errors", "tracking"}),
    "cli.py": (
        {"click"},
        {"errors", "tracking", "comparison", "doctor", "registry", "side_by_side"},
    ),
    "doctor.py": (STORE, {"errors", "tracking"}),
    "litert.py": (
        STORE | {"pandas"},
        {
            *("errors", "extras", "compression", "metrics"),
            *("litert_signature", "model_logging", "served"),
        },
    ),
    "litert_signature.py": (STORE | {"pandas"}, {"compression"}),
    "model_signature.py": (MEETING, {"training"}),
    "model_logging.py": (STORE, {"errors", "tracking"}),
    "models.py": (
        MEETING,
        {"errors", "metrics", "training", "model_signature", "model_logging", "served"},
    ),
    "served.py": (STORE, {"errors"}),
    "measure.py": (MEETING, {"metrics", "errors", "tracking", "training", "compression", "models"}),
    "measure_file.py": (
        MEETING,
        {"errors", "tracking", "compression", "metrics", "litert", "measure"},
    ),
    "plugins/": (
        MEETING,
        {"errors", "metrics", "tracking", "training", "compression", "plugins"},
    ),
    "tuner/": (
        MEETING | {"keras_tuner", "sklearn"},
        {"errors", "tracking", "recorded_fits", "models", "tuner"},
    ),
    "figures.py": ({"numpy", "matplotlib"}, set()),
    "new_process.py": (STORE, {"errors"}),
    "trade_off.py": (
        MEETING,
        {"compression", "errors", "measure", "metrics", "tracking", "variants"},
    ),
    "variants.py": (
        MEETING,
        {"entry_point", "tracking", "measure", "measure_file", "report", "claims"},
    ),
    "registry/": (STORE | {"scipy"}, {"errors", "tracking", "registry"}),
    "comparison/": (
        STORE | {"pandas", "matplotlib", "jinja2", "PIL", "scipy"},
        {"errors", "tracking", "comparison"},
    ),
    "report.py": (STORE | {"pandas", "matplotlib"}, {"errors", "tracking", "comparison"}),
    "side_by_side.py": (
        MEETING,
        {"errors", "extras", "compression", "metrics", "litert", "models", "registry"},
    ),
}


def room_of(module: str) -> str:
    return module if module in ROOMS or "/" not in module else module.split("/")[0] + "/"


def imports_of(source: str) -> list[str]:
    """Every module that the source imports, in functions too; under `if TYPE_CHECKING` excepted."""
    found: list[str] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
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


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_room_may_know(module: str) -> None:
    third_party, rooms = ROOMS[room_of(module)]
    rooms = rooms | EVERYWHERE
    for imported in imports_of((PACKAGE / module).read_text()):
        top, *rest = imported.split(".")
        if top == "mlflow_keras_adv":
            assert "*" in rooms or rest[0] in rooms, f"{module} may not know {imported}"
            about = {*rest[1:2]} & {"keras", "mlflow"} if rest[0] == "compat" else set()
            assert about <= third_party, f"{module} may not know {imported}"
        elif top not in sys.stdlib_module_names:
            assert top in third_party, f"{module} may not import {imported}"


def test_imports_run_one_way() -> None:
    known = {
        module.removesuffix("/__init__.py").removesuffix(".py").replace("/", "."): {
            imported.removeprefix("mlflow_keras_adv.")
            for imported in imports_of((PACKAGE / module).read_text())
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


def test_the_reader_of_imports_sees_functions_and_skips_type_checking() -> None:
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


def test_importing_the_package_imports_neither_tensorflow_nor_mlflow() -> None:
    program = "import sys, mlflow_keras_adv; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    shown = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    loaded = set(shown.stdout.split())
    assert "mlflow_keras_adv" in loaded
    assert not loaded & {"tensorflow", "keras", "mlflow"}


def test_every_public_name_can_be_had() -> None:
    import mlflow_keras_adv

    assert [name for name in mlflow_keras_adv.__all__ if not hasattr(mlflow_keras_adv, name)] == []
    assert sorted(mlflow_keras_adv._HOMES) == sorted(mlflow_keras_adv.__all__)

"""Extras: who asks for what an extra brings is told so in a sentence, whatever asks first."""

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import mlflow_keras_adv as mka
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.extras import (
    EXTRAS,
    MissingExtraError,
    extra,
    missing,
    require,
    require_mlflow,
)
from tests.test_imports import imports_of

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = sorted(
    path for folder in ("mlflow_keras_adv", "projects") for path in (ROOT / folder).rglob("*.py")
)
# TensorFlow is asked for where a public name is looked up, and where an entry point begins.
EXTRA_OF = {
    module: name for name, modules in EXTRAS.items() for module in modules if name != "tensorflow"
}
# Distributions that are not called as their module is.
CALLED = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}


def names_of(requirements: list[str]) -> list[str]:
    return [re.split(r"[<>=\[ ]", requirement)[0] for requirement in requirements]


def test_the_modules_are_those_of_pyproject() -> None:
    for name, modules in EXTRAS.items():
        brought = set(names_of(PROJECT["optional-dependencies"][name])) - {PROJECT["name"]}
        assert sorted(modules) == sorted(each.replace("-", "_") for each in brought)


def test_what_is_imported_is_declared() -> None:
    tops = {each.split(".")[0] for source in SOURCES for each in imports_of(source.read_text())}
    tops -= {*sys.stdlib_module_names, *EXTRA_OF, "tensorflow", "mlflow_keras_adv", "projects"}
    declared = names_of(PROJECT["dependencies"])
    assert {CALLED.get(top, top.replace("_", "-")) for top in tops} <= set(declared)


def unguarded(tree: ast.AST, guards: tuple[str, ...] = ()) -> list[str]:
    """Imports of an extra's modules that stand in no `with extra("…")` of theirs."""
    if isinstance(tree, ast.If) and ast.unparse(tree.test).endswith("TYPE_CHECKING"):
        return []
    if isinstance(tree, ast.With):
        guards += tuple(ast.unparse(item.context_expr) for item in tree.items)
    modules = []
    if isinstance(tree, ast.Import):
        modules = [alias.name for alias in tree.names]
    elif isinstance(tree, ast.ImportFrom):
        modules = [tree.module or ""]
    tops = [module.split(".")[0] for module in modules]
    found = [top for top in tops if top in EXTRA_OF and f"extra('{EXTRA_OF[top]}')" not in guards]
    for child in ast.iter_child_nodes(tree):
        found += unguarded(child, guards)
    return found


def test_each_import_of_an_extra_says_which_it_is() -> None:
    found = {source.name: unguarded(ast.parse(source.read_text())) for source in SOURCES}
    assert found.pop("runtime.py")  # it travels with models, to where this package is not
    assert {name for name, modules in found.items() if modules} == set()


def test_the_reader_of_guards_sees_what_is_not_guarded() -> None:
    source = """
import tf_keras
with extra("rl"):
    import tf_keras.layers
with extra("compression"), other():
    import tf_keras
def f():
    from gymnasium import vector
if TYPE_CHECKING:
    import wandb
"""
    assert unguarded(ast.parse(source)) == ["tf_keras", "tf_keras", "gymnasium"]


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    sentence = (
        'gymnasium is not installed; the extra "rl" brings it: pip install "mlflow-keras-adv[rl]"'
    )
    for error in (UserError, ImportError):
        with pytest.raises(error) as told, extra("rl"):
            importlib.import_module("gymnasium")
        assert str(told.value) == sentence
    assert missing("rl") == ["gymnasium"]
    with pytest.raises(MissingExtraError) as asked:
        require("rl")
    assert str(asked.value) == sentence


def test_several_missing_packages_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tf_keras", "litert_quantizer"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match="^tf_keras, litert_quantizer are .* brings them: [^.]*$"):
        require("compression")


def test_what_is_installed_is_not_missing() -> None:
    require("compression")
    assert missing("compression") == []


def test_what_installing_would_not_mend_passes_through(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A package that is there and broken, or needs another one that is not."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(EXTRAS, "rl", ("broken_extra", "hungry_extra"))
    (tmp_path / "broken_extra.py").write_text("raise ImportError('of another TensorFlow')")
    (tmp_path / "hungry_extra.py").write_text("import not_there_at_all")
    for module, message in (("broken_extra", "another TensorFlow"), ("hungry_extra", "not_there")):
        with pytest.raises(ImportError, match=message) as told, extra("rl"):
            importlib.import_module(module)
        assert not isinstance(told.value, UserError)


# In a process that has none of them.

ASKED = """
import hashlib, json, pathlib, shutil, sys, tempfile
sys.modules |= dict.fromkeys(json.loads(sys.argv[1]))  # an import of None fails as if not there

import numpy as np
import mlflow_keras_adv as mka
from mlflow_keras_adv import *
assert "tensorflow" in sys.modules
from mlflow_keras_adv.tflite.footprint import file_footprint, weight_table
from mlflow_keras_adv.tflite.runtime import LiteRTModel

said = {}

def ask(what, call):
    try:
        call()
    except Exception as error:
        said[what] = [[each.__name__ for each in type(error).__mro__], str(error)]
    else:
        said[what] = None

content, x = b"    TFL3", np.zeros((1, 2))
# As much of a LiteRT model as is read before LiteRT runs it.
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "data").mkdir()
(folder / "data" / "model.tflite").write_bytes(content)
described = {"sha256": hashlib.sha256(content).hexdigest()}
(folder / "data" / "model.json").write_text(json.dumps(described))
(folder / "MLmodel").write_text("flavors: {litert: {data: data}}")

for name in mka.compression.__all__:
    ask(name, lambda: getattr(mka.compression, name))
ask("LiteRTModel", lambda: LiteRTModel(content))
ask("file_footprint", lambda: file_footprint(content, x))
ask("weight_table", lambda: weight_table(content))
ask("litert.save_model", lambda: mka.litert.save_model(content, "never"))
ask("litert.log_model", lambda: mka.litert.log_model(content, name="never"))
ask("litert.load_model", lambda: mka.litert.load_model(str(folder)))
ask("log_finished_file", lambda: mka.log_finished_file(content, x, name="never"))
ask("measure_models", lambda: mka.measure_models([folder], mka.registry.Samples(x)))
for name in ("bridge", "clustering", "conversion", "dead_channels", "graphs", "kernels", "pruning",
             "layer_translation", "quantization", "quantization_aware"):
    ask(f"import {name}", lambda: __import__(f"mlflow_keras_adv.compression.{name}"))
ask("import tfmot", lambda: __import__("mlflow_keras_adv.compat.tfmot"))
shutil.rmtree(folder)
print(json.dumps(said))
"""


NO_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = None
import mlflow_keras_adv as mka
with mka.track("only tracked", log_system_metrics=False) as run:  # needs none
    run.log_metrics({"m": 1.0}, step=1)
try:
    mka.MlflowLogger
except ImportError as error:
    print(error)
"""
TENSORFLOW = (
    'tensorflow is not installed; the extra "tensorflow" brings it: pip install '
    '"mlflow-keras-adv[tensorflow]", or any build of it, such as tensorflow-cpu'
)


def test_without_tensorflow_runs_are_tracked_and_a_callback_says_what_to_install() -> None:
    command = [sys.executable, "-c", NO_TENSORFLOW]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == TENSORFLOW


def test_without_tensorflow_an_entry_point_says_what_to_install() -> None:
    program = (
        "import sys, runpy; sys.modules['tensorflow'] = None; "
        "runpy.run_module('projects.distill', run_name='__main__')"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    assert done.stderr == f"error: {TENSORFLOW}\n"


def test_a_part_of_mlflow_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    require_mlflow()
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)  # what mlflow-skinny does not bring
    monkeypatch.delitem(vars(mka), "track", raising=False)  # asked for the first time
    with pytest.raises(ImportError, match="only mlflow-skinny") as told:
        _ = mka.track
    assert isinstance(told.value, UserError)


# Nothing of an extra is in them.
BARE = {"Artifact", "constant", "polynomial"}


@pytest.mark.slow
def test_every_public_name_says_which_extra_it_wants() -> None:
    blocked = [module for name in ("compression", "rl") for module in EXTRAS[name]]
    command = [sys.executable, "-c", ASKED, json.dumps(blocked)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])

    assert {name for name, answer in said.items() if answer is None} == BARE
    for name in said.keys() - BARE:
        kinds, sentence = said[name]
        assert {"UserError", "ImportError"} <= set(kinds), f"{name}: {sentence}"
        assert re.fullmatch(
            r'\w+ is not installed; the extra "compression" brings it: '
            r'pip install "mlflow-keras-adv\[compression\]"',
            sentence,
        ), f"{name}: {sentence}"

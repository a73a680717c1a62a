"""MLproject and conda.yaml repeat what `main` and pyproject.toml say; here they are held equal."""

import importlib
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from mlflow_keras_adv.lessons import entry_point
from projects import mlproject

ROOT = Path(__file__).parent.parent.parent
MLPROJECT_TYPES = {"string": "string", "integer": "int", "number": "float", "boolean": "bool"}


SCRIPTS = mlproject.scripts()


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "MLproject").read_text())


def declared(name: str) -> list[entry_point.Parameter]:
    return entry_point.parameters(importlib.import_module(f"projects.{name}").main)


def test_it_is_written_from_the_signatures() -> None:
    assert (ROOT / "MLproject").read_text() == mlproject.text(), "run python -m projects.mlproject"
    assert {"distill", "main", "tune"} < set(SCRIPTS)


def test_parameters_types_and_defaults_are_those_of_main(project: dict[str, Any]) -> None:
    assert sorted(project["entry_points"]) == SCRIPTS
    for name in SCRIPTS:
        expected = [
            (
                parameter.name,
                MLPROJECT_TYPES[TypeAdapter(parameter.annotation).json_schema()["type"]],
                type(parameter.default),
                parameter.default,
            )
            for parameter in declared(name)
        ]
        repeated = [
            (key, value["type"], type(value["default"]), value["default"])
            for key, value in project["entry_points"][name]["parameters"].items()
        ]
        assert repeated == expected, name
        assert [each.name for each in declared(name) if not each.description] == [], name


def test_the_command_hands_each_parameter_to_the_script(project: dict[str, Any]) -> None:
    for name in SCRIPTS:
        expected = ["python", "-m", f"projects.{name}"]
        for parameter in declared(name):
            expected += [parameter.option, f"{{{parameter.name}}}"]

        command = project["entry_points"][name]["command"]

        assert shlex.split(command) == expected
        # MLflow quotes the values, and quotes around them would undo it; cmd /c takes one line.
        assert not set(command) & set("'\"\\\n")


def test_the_environment_is_that_of_pyproject(project: dict[str, Any]) -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / project["conda_env"]).read_text())["dependencies"]
    requirements = next(entry["pip"] for entry in conda if isinstance(entry, dict))

    extras = pyproject["optional-dependencies"]
    brought = [*extras["tensorflow"], *extras["compression"], *extras["rl"]]
    own = "mlflow-keras-adv[tensorflow]"
    assert requirements == [*pyproject["dependencies"], *(each for each in brought if each != own)]
    assert f"python{pyproject['requires-python']}" in conda
    # The code is the working folder's; an installed copy would be stale after an edit.
    assert [
        entry for entry in requirements if entry.startswith((".", "-", "mlflow-keras-adv"))
    ] == []

"""Each technique of the catalogue: one short run of its `main`, read back from the store.

Whoever adds a script adds nothing here: an entry point of MLproject whose script logs claims is
found. What a run needs to be short is `epochs=1`.
"""

import importlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run

import mlflow_keras_adv as mka
from mlflow_keras_adv import entry_point
from tests.mlflow_run import copy_project, new_shell, store_in

ROOT = Path(__file__).parent.parent.parent
PARAMETERS = {
    name: each["parameters"]
    for name, each in yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"].items()
}
ENTRY_POINTS = sorted(PARAMETERS)
# Without `epochs` a run cannot be short; such a script has tests of its own.
TECHNIQUES = [
    name
    for name in ENTRY_POINTS
    if "epochs" in PARAMETERS[name]
    and "log_claims" in (ROOT / "projects" / f"{name}.py").read_text()
]
# Their layers and losses are defined in the script, which is `__main__` there and not here.
BY_COMMAND = {"callbacks", "custom_layer", "self_regularization"}


@dataclass(frozen=True)
class Recorded:
    """What one run of a script has left in the store."""

    name: str
    parent: Run
    children: list[Run]
    models: list[LoggedModel]


def main_of(name: str) -> Any:
    return importlib.import_module(f"projects.{name}").main


def record(name: str, folder: Path, **arguments: Any) -> Recorded:
    """Runs the script's `main` in this process, in an experiment of its own."""
    client = MlflowClient()
    experiment = client.create_experiment(f"{name}-{folder.name}", folder.as_uri())
    before = os.environ.get("MLFLOW_EXPERIMENT_ID")
    os.environ["MLFLOW_EXPERIMENT_ID"] = experiment
    try:
        main_of(name)(**arguments)
    finally:
        keras.utils.clear_session()
        os.environ.pop("MLFLOW_EXPERIMENT_ID")
        if before is not None:
            os.environ["MLFLOW_EXPERIMENT_ID"] = before
    runs = client.search_runs([experiment])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    return Recorded(name, parent, children, client.search_logged_models([experiment]))


@pytest.fixture(scope="module", params=TECHNIQUES)
def recorded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, store: str
) -> Recorded:
    """A run of one epoch."""
    short = {"epochs": 1} if has_epochs(request.param) else {}
    return record(request.param, tmp_path_factory.mktemp(request.param), **short)


def has_epochs(name: str) -> bool:
    return "epochs" in {parameter.name for parameter in entry_point.parameters(main_of(name))}


def test_techniques_are_found() -> None:
    assert {"custom_loop", "lr_schedules"} <= set(TECHNIQUES)


@pytest.mark.slow
def test_every_run_is_finished_and_names_its_technique(recorded: Recorded) -> None:
    runs = [recorded.parent, *recorded.children]

    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags.get("technique") for run in runs} == {recorded.name}
    assert [tag for run in runs for tag in run.data.tags if tag.startswith("param.")] == []


@pytest.mark.slow
def test_nested_runs_are_children_of_the_one_parent(recorded: Recorded) -> None:
    names = [run.info.run_name for run in recorded.children]

    assert len(set(names)) == len(names)
    assert {run.data.tags["mlflow.parentRunId"] for run in recorded.children} <= {
        recorded.parent.info.run_id
    }


@pytest.mark.slow
def test_the_parameters_of_main_are_those_of_the_parent(recorded: Recorded) -> None:
    declared = {parameter.name for parameter in entry_point.parameters(main_of(recorded.name))}

    assert declared <= set(recorded.parent.data.params)


@pytest.mark.slow
def test_variants_have_final_values_under_the_same_keys(recorded: Recorded) -> None:
    finals = [
        {key for key in run.data.metrics if key.startswith("final/")}
        for run in [recorded.parent, *recorded.children]
    ]

    assert {key for key in set.intersection(*finals) if not key.startswith("final/claim/")}


@pytest.mark.slow
def test_a_comparison_has_its_table_and_its_figure(recorded: Recorded) -> None:
    files = {file.path for file in MlflowClient().list_artifacts(recorded.parent.info.run_id)}

    assert not recorded.children or {"comparison.json", "learning_curves.png"} <= files


@pytest.mark.slow
def test_every_finished_model_is_a_logged_model(recorded: Recorded) -> None:
    runs = {run.info.run_id for run in [recorded.parent, *recorded.children]}

    assert recorded.models
    assert {model.status for model in recorded.models} == {"READY"}
    assert {model.source_run_id for model in recorded.models} <= runs


@pytest.mark.slow
def test_the_claims_are_on_the_parent(recorded: Recorded) -> None:
    data = recorded.parent.data
    claims = mka.logged_claims(recorded.parent.info.run_id)
    missed = [claim.name for claim in claims if not claim.holds]

    assert {f"final/claim/{claim.name}" for claim in claims} == {
        key for key in data.metrics if key.startswith("final/claim/")
    }
    assert data.tags["claims"] == (f"missed: {', '.join(missed)}" if missed else "hold")
    for claim in claims:
        assert str(claim) in data.tags["mlflow.note.content"]
    first_line = data.tags["mlflow.note.content"].splitlines()[0]
    assert first_line
    assert not first_line.startswith("- ")  # the result, not a claim


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_help_names_every_parameter(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        entry_point.run(main_of(name), ["--help"])

    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for parameter in entry_point.parameters(main_of(name)):
        assert f"{parameter.option} " in shown


def by_command(name: str, folder: Path) -> None:
    """`mlflow run . -e <name>` in a copy of the project."""
    command = [sys.executable, "-m", "mlflow", "run", ".", "-e", name, "--env-manager", "local"]
    command += ["-P", "epochs=1"] if has_epochs(name) else []
    done = subprocess.run(
        command, cwd=copy_project(folder), env=new_shell(), capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    (parent,) = [
        run
        for run in MlflowClient(store_in(folder)).search_runs(["0"])
        if "mlflow.parentRunId" not in run.data.tags
    ]
    assert parent.data.tags["mlflow.project.entryPoint"] == name
    assert parent.data.tags["claims"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BY_COMMAND))
def test_the_command_runs(name: str, tmp_path: Path) -> None:
    by_command(name, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("name", sorted({*TECHNIQUES} - BY_COMMAND))
def test_every_command_runs(name: str, tmp_path: Path) -> None:
    by_command(name, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("name", TECHNIQUES)
def test_the_claims_hold_with_the_defaults(name: str, tmp_path: Path) -> None:
    found = record(name, tmp_path)

    claims = mka.logged_claims(found.parent.info.run_id)
    assert [str(claim) for claim in claims if not claim.holds] == []

"""Each technique of the catalogue: one short run of it, read back from the store.

Whoever adds a script adds nothing here: an entry point of MLproject whose script opens
`mka.technique` is found. What a run needs to be short is `epochs=1`.
"""

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from sklearn.datasets import load_breast_cancer, load_digits

import mlflow_keras_adv as mka
from mlflow_keras_adv.extras import EXTRAS, require
from mlflow_keras_adv.lessons import entry_point
from tests.mlflow_run import copy_project, new_shell, store_in
from tests.warm import PYTHON

ROOT = Path(__file__).parent.parent.parent
PARAMETERS = {
    name: each["parameters"]
    for name, each in yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"].items()
}
ENTRY_POINTS = sorted(PARAMETERS)
SOURCES = {name: (ROOT / "projects" / f"{name}.py").read_text() for name in ENTRY_POINTS}
# Tests of their own read their runs back; that of distill comes from the command line too.
ELSEWHERE = {"cluster", "compress", "distill", "prune", "quantize", "tune"}
TECHNIQUES = [
    name for name in ENTRY_POINTS if "mka.technique(" in SOURCES[name] and name not in ELSEWHERE
]
# By `mlflow run`: the default, and one whose layers are defined in the script, which is `__main__`
# there and not here.
BY_COMMAND = {"main", "self_regularization"}
# The store in which `.ci/run` has had every entry point run for an epoch, each by its command.
ALREADY_RUN = os.environ.get("ENTRY_POINT_RUNS", "")
TRAIN, TEST = slice(40), slice(40, 52)  # of the images of a digit
# Knobs beside `epochs` that make a run shorter.
SHORT: Mapping[str, Mapping[str, Any]] = {
    "initializers": {"depth": 2},
    "optimizers": {"seeds": 1},
    "segmentation": {"examples": 32},
    "sequence": {"examples": 64},
}


@dataclass(frozen=True)
class Recorded:
    """What one run of a script has left in the store."""

    name: str
    parent: Run
    children: list[Run]
    models: list[LoggedModel]


def main_of(name: str) -> Any:
    return importlib.import_module(f"projects.{name}").main


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def read(name: str, experiment: str, which: str = "") -> Recorded:
    client = MlflowClient()
    runs = client.search_runs([experiment], which)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    models = [
        model
        for run in runs
        for model in client.search_logged_models(
            [experiment], filter_string=f"source_run_id = '{run.info.run_id}'"
        )
    ]
    return Recorded(name, parent, children, models)


@contextmanager
def only_what_it_asks_for(name: str) -> Iterator[None]:
    """As if no extra were installed but the one that the script hands to `entry_point.run`."""
    with pytest.MonkeyPatch.context() as patched:
        for extra in EXTRAS:
            asked_for = f'entry_point.run(main, extra="{extra}")' in SOURCES[name]
            if asked_for or extra == "tensorflow":  # which README's first command installs
                continue
            for module in EXTRAS[extra]:
                patched.setitem(sys.modules, module, None)  # its import fails as if not there
            if extra == "compression":  # whose own modules have imported theirs, maybe
                patched.setattr(mka.compression, "_imported", lambda _: require("compression"))
                for known in mka.compression.__all__:
                    patched.delitem(vars(mka.compression), known, raising=False)
        yield


def record(name: str, folder: Path, **arguments: Any) -> Recorded:
    """Runs the script's `main` in this process, in an experiment of its own."""
    experiment = MlflowClient().create_experiment(f"{name}-{folder.name}", folder.as_uri())
    with environment("MLFLOW_EXPERIMENT_ID", experiment):
        try:
            with only_what_it_asks_for(name):
                main_of(name)(**arguments)
        finally:
            keras.utils.clear_session()
    return read(name, experiment)


def by_command(name: str, folder: Path) -> None:
    """`mlflow run . -e <name>` in a copy of the project; without -e for `main`."""
    command = [PYTHON, "-m", "mlflow", "run", ".", "--env-manager", "local"]
    command += ["-P", "epochs=1"] + ([] if name == "main" else ["-e", name])
    done = subprocess.run(
        command, cwd=copy_project(folder), env=new_shell(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for `data`, with a quarter of the digits: 40 of each to train on, 12 to test."""
    digits = load_digits()
    chosen = [np.flatnonzero(digits.target == digit)[:52] for digit in range(10)]
    train, test = (np.concatenate([each[part] for each in chosen]) for part in (TRAIN, TEST))
    file = tmp_path_factory.mktemp("digits") / "few.npz"
    x, y = (digits.images / 16).astype(np.float32), digits.target
    np.savez(file, x_train=x[train], y_train=y[train], x_test=x[test], y_test=y[test])
    return file


@pytest.fixture(scope="module", params=TECHNIQUES)
def recorded(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    store: str,
    few_digits: Path,
) -> Iterator[Recorded]:
    """A run of one epoch."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    if ALREADY_RUN:
        with environment("MLFLOW_TRACKING_URI", ALREADY_RUN):
            yield read(name, "0", f"tags.technique = '{name}'")
        return
    if name not in BY_COMMAND:
        usual = PARAMETERS[name].get("data", {}).get("default")
        data = {"data": str(few_digits)} if usual == "digits" else {}  # a table is small as it is
        yield record(name, folder, epochs=1, **data, **SHORT.get(name, {}))
        return
    by_command(name, folder)
    with environment("MLFLOW_TRACKING_URI", store_in(folder)):
        found = read(name, "0")
        assert found.parent.data.tags["mlflow.project.entryPoint"] == name
        yield found


def test_techniques_are_found() -> None:
    assert {"custom_loop", "lr_schedules", *BY_COMMAND} <= set(TECHNIQUES)


@pytest.mark.parametrize("name", TECHNIQUES)
def test_a_technique_takes_what_all_take(name: str) -> None:
    """Where there is no data, the docstring says why."""
    taken = [parameter.name for parameter in entry_point.parameters(main_of(name))]
    expected = {"data", "epochs", "batch_size", "seed"}
    if "no `--data`" in (ast.get_docstring(ast.parse(SOURCES[name])) or "").replace("\n", " "):
        expected -= {"data"}

    assert expected <= set(taken)


@pytest.mark.parametrize("name", TECHNIQUES)
def test_the_docstring_says_the_technique_how_long_and_the_command(name: str) -> None:
    docstring = ast.get_docstring(ast.parse(SOURCES[name])) or ""

    assert docstring.splitlines()[0][-1] in ".?"
    assert "minute" in docstring
    assert "    mlflow run . " in docstring
    assert name == "main" or f"-e {name} " in docstring


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


@pytest.mark.parametrize(
    "name", [each for each in sorted({*TECHNIQUES, *ELSEWHERE}) if "data" in PARAMETERS[each]]
)
def test_a_table_with_texts_is_refused_before_there_is_a_run(name: str, experiment: str) -> None:
    if name == "tabular":
        return
    with pytest.raises(mka.UserError, match="wine holds .*, but this script takes .*`tabular`"):
        main_of(name)(data="wine")

    assert MlflowClient().search_runs([experiment]) == []


@pytest.mark.slow
def test_a_dense_net_trains_on_the_numbers_of_a_table(experiment: str, tmp_path: Path) -> None:
    table = load_breast_cancer(as_frame=True).frame.iloc[:120]
    table.to_csv(tmp_path / "cells.csv", index=False)

    main_of("custom_loop")(data=str(tmp_path / "cells.csv"), target="target", epochs=2)

    runs = MlflowClient().search_runs([experiment])
    assert {run.info.status for run in runs} == {"FINISHED"}
    (parent,) = [run for run in runs if run.data.tags["mlflow.runName"] == "custom_loop"]
    assert parent.data.metrics["final/accuracy"] > 0.6  # the cells' sizes lie between 0.05 and 2500
    assert parent.inputs.dataset_inputs[0].dataset.name == "cells.csv"


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_a_script_asks_for_the_extra_that_it_uses(name: str) -> None:
    used = {"compression": "mka.(compression|litert|TradeOff)", "rl": "import gymnasium"}
    for extra, pattern in used.items():
        if re.search(pattern, SOURCES[name]):
            asked = rf'entry_point.run\(main, extra="{extra}"\)|require\("{extra}"\)'
            assert re.search(asked, SOURCES[name])


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_help_names_every_parameter(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        entry_point.run(main_of(name), ["--help"])

    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for parameter in entry_point.parameters(main_of(name)):
        assert f"{parameter.option} " in shown


@pytest.mark.soak
@pytest.mark.parametrize("name", sorted({*TECHNIQUES, *ELSEWHERE} - BY_COMMAND - {"tune"}))
def test_every_command_runs(name: str, tmp_path: Path) -> None:
    by_command(name, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", [*TECHNIQUES, "distill"])
def test_the_claims_hold_with_the_defaults_whatever_the_seed(
    name: str, seed: int, tmp_path: Path
) -> None:
    found = record(name, tmp_path, seed=seed)

    claims = mka.logged_claims(found.parent.info.run_id)
    assert [str(claim) for claim in claims if not claim.holds] == []

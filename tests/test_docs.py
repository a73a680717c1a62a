"""The pages hold: they build without a warning, name all that is public, and what they say runs.

README is a page here too. The Python and shell blocks of a page are one script, in the order of the
page, in a fresh folder with a fresh store. What is not run so is in `ELSEWHERE`, with the reason.
"""

import ast
import functools
import inspect
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import keras_tuner
import mlflow
import pydantic
import pytest
import tensorflow as tf
import yaml
from click.testing import CliRunner

import mlflow_keras_adv as mka
from mlflow_keras_adv.callbacks.base import RunCallback
from mlflow_keras_adv.cli import main
from mlflow_keras_adv.evaluation.options import Options
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.metrics import flops
from mlflow_keras_adv.training import steps
from mlflow_keras_adv.training.recorder import StepRecorder
from tests.mlflow_run import new_shell

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
CONFIG = DOCS / "site" / "mkdocs.yml"
README = "../README.md"
PAGES = [README, *sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# How a command begins that no page runs here, and why.
ELSEWHERE = {
    "python3 -m venv": ".ci/run runs README's first command",
    ". .venv/bin/activate": ".ci/run runs README's first command",
    "pip install": ".ci/run runs README's first command",
    "pytest -n 2": ".ci/run runs README's second command",
    "mlflow run . -e ": ".ci/entry_points.py runs every entry point; its values are checked here",
    "mlflow run . --env-manager": "the same, of main; own-project.md has a test of its own",
    "python -m projects.": "as mlflow run",
    "export KERASTUNER_": "tests/tuner/test_processes.py has a chief and workers",
    "KERASTUNER_TUNER_ID=": "tests/tuner/test_processes.py has a chief and workers",
    "export MLFLOW_TRACKING_URI=durable": "tests/durable has servers of its own",
    "python .ci/matrix.py": "minutes to hours; .ci/run makes the oldest environment",
}

# Metrics that a page promises, beside what runs without an error.
STEPS = {"batch/loss", "gradient/norm", "optimizer/learning_rate"}
PROMISED = {
    README: STEPS | {"val/accuracy", "final/accuracy", "final/latency_ms_p50"},
    "index.md": STEPS | {"train/accuracy", "val/accuracy"},
    "fit.md": STEPS
    | {"train/step_ms", "train/examples_per_second", "final/accuracy"}
    | {"final/mae", "final/r2_score", "final/error_p90"},
    "loop.md": {"batch/loss", "gradient/norm", "gradient/norm_clipped", "val/loss"},
    "search.md": {"trial/score", "val/accuracy"},
    "compress.md": {"final/size_bytes", "final/sparsity", "final/agreement"},
    "evaluate.md": {"final/ece", "final/rmse", "final/agreement", "final/gzip_bytes"},
    "promote.md": {"final/accuracy", "final/mae"},
}


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of each fenced block of a page."""
    return FENCE.findall((DOCS / page).read_text())


def fences(page: str, language: str) -> list[str]:
    """The blocks of a page in a language, in order."""
    return [block for kind, block in blocks(page) if kind == language]


def commands(block: str) -> list[str]:
    """The commands of a shell block, each on one line and without its comment."""
    lines = block.replace("\\\n", " ").splitlines()
    parts = [
        shlex.join(shlex.split(part, comments=True)) for line in lines for part in line.split("&&")
    ]
    return [part for part in parts if part]


def elsewhere(command: str) -> str | None:
    """The beginning of a command in `ELSEWHERE`, without variables before it."""
    bare = re.sub(r"^MLFLOW_\w+=\S+ ", "", command)
    return next((known for known in ELSEWHERE if bare.startswith(known)), None)


def script_of(page: str) -> str:
    """What a page says, as a script in which `shell` runs a command."""
    parts = []
    for language, block in blocks(page):
        if language == "python":
            parts.append(block)
        elif language == "bash":
            parts += [f"shell({each!r})\n" for each in commands(block) if not elsewhere(each)]
    return "\n\n".join(parts)


def shell(command: str) -> None:
    """Runs a command of this package, in this process, which spares some seconds."""
    program, *arguments = shlex.split(command)
    assert program == "mlflow-keras-adv", f"{command!r} is in no table; run it, or say why not"
    done = CliRunner(catch_exceptions=False).invoke(main, arguments)
    assert done.exit_code == 0, f"{command}\n{done.output}"


WITH_CODE = [page for page in PAGES if script_of(page)]


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with nothing in it: MLflow takes seconds to make one, a copy takes none."""
    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages. Strict: a broken link, a lost anchor or a page in no menu is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(CONFIG)]
    done = subprocess.run([*command, "-d", str(folder)], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return folder


def public_names(module: ModuleType, called: str | None = None) -> Iterator[str]:
    """Full names of what a module offers, and of what the modules among that offer."""
    called = called or module.__name__
    own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__]
    for name in getattr(module, "__all__", [each for each in own if not each.startswith("_")]):
        value = getattr(module, name)
        yield f"{called}.{name}"
        if isinstance(value, ModuleType):
            yield from public_names(value, f"{called}.{name}")


def test_every_public_name_has_an_entry(site: Path) -> None:
    html = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    entries = set(re.findall(r'id="(mlflow_keras_adv[\w.]*)"', html))
    steps = import_module("mlflow_keras_adv.training.steps")
    names = {*public_names(mka), *public_names(steps)}
    assert {"mlflow_keras_adv.track", "mlflow_keras_adv.compression.prune"} <= names
    assert sorted(names - entries) == []


def test_every_command_and_option_has_its_place(site: Path) -> None:
    html = (site / "reference" / "commands.html").read_text()
    assert [name for name in main.commands if f"mlflow-keras-adv {name}" not in html] == []
    listed = re.findall(r"^\| `(\w+)` \|", (DOCS / "reference" / "commands.md").read_text(), re.M)
    assert listed == sorted(main.commands)
    evaluate = (DOCS / "evaluate.md").read_text()
    assert [name for name in Options.known() if f"`{name}`" not in evaluate] == []


def test_the_pages_are_read_without_a_network(site: Path) -> None:
    fetched = r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)'
    for page in site.rglob("*.html"):
        assert re.findall(fetched, page.read_text()) == [], page.name


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_whole_where_it_is_read_as_a_file(page: str) -> None:
    text = (DOCS / page).read_text()
    lines = [line for line in text.splitlines() if re.match(r"[^#<:\s]", line)]
    assert len(lines) >= 1  # below the heading stands more than what the site fills in
    marks = set(re.findall(r"^<!-- (\w+).* -->$", text, re.MULTILINE))
    assert marks <= {"catalogue", "end", "measured", "topologies", "run", "test", "commands"}
    assert page == "reference/commands.md" or "commands" not in marks


@pytest.mark.parametrize("page", WITH_CODE)
def test_what_a_page_says_runs_from_top_to_bottom(
    page: str, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_store, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # `sync` sets it
    # What `mlflow.set_experiment` leaves in a process.
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "page.py"
    script.write_text(script_of(page))
    before = list(sys.path)
    try:
        keras.utils.set_random_seed(0)
        runpy.run_path(str(script), {"shell": shell})
    finally:
        sys.path[:] = before  # a loaded model's code is put before it
        mka.autolog(disable=True)
    assert mlflow.active_run() is None
    client = mlflow.MlflowClient()
    everywhere = [each.experiment_id for each in client.search_experiments()]
    runs = client.search_runs(everywhere)
    assert {run.info.status for run in runs} <= {"FINISHED"}
    assert PROMISED.get(page, set()) <= {key for run in runs for key in run.data.metrics}
    for registered in client.search_registered_models():  # no gate has refused
        assert "champion" in registered.aliases, registered.name


@pytest.mark.parametrize("page", PAGES)
def test_commands_on_a_page_exist(page: str) -> None:
    entry_points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    for block in fences(page, "bash"):
        assert set(re.findall(r"mlflow-keras-adv (\w+)", block)) <= set(main.commands)
        for command in commands(block):
            found = re.search(r"(?:run \. -e |-m projects\.)(\w+)(.*)", command)
            if found and "--help" not in command:
                assert found[1] in entry_points
                check_values(found[1], found[2])


def check_values(name: str, options: str) -> None:
    """The script of an entry point takes these `-P name=value`, and is not run."""
    called = import_module(f"projects.{name}").main
    given = [f"--{each}" for each in re.findall(r"-P (\S+)", options)]
    entry_point.run(functools.wraps(called)(lambda **_: None), given)


def test_what_is_run_elsewhere_stands_on_a_page() -> None:
    said = [each for page in PAGES for block in fences(page, "bash") for each in commands(block)]
    assert {elsewhere(command) for command in said} - {None} == ELSEWHERE.keys()


@pytest.mark.slow
def test_the_project_of_the_page_runs(tmp_path: Path, store: str, experiment: str) -> None:
    (project,) = fences("own-project.md", "yaml")
    (script,) = fences("own-project.md", "python")
    (tmp_path / "MLproject").write_text(project)
    (tmp_path / "train.py").write_text(script)
    (command,) = fences("own-project.md", "bash")
    done = subprocess.run(
        ["bash", "-c", command.replace("epochs=5", "epochs=1")],
        cwd=tmp_path,
        env=new_shell(
            MLFLOW_TRACKING_URI=store, MLFLOW_EXPERIMENT_ID=experiment, PYTHONPATH=str(ROOT)
        ),
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    found = mlflow.MlflowClient().search_runs([experiment])
    assert [run.info.status for run in found] == ["FINISHED"]
    assert found[0].data.params["epochs"] == "1"
    assert "gradient/norm" in found[0].data.metrics


# The prose of these is checked beside the code: its calls are the mistakes themselves.
OF_MISTAKES = {"mistakes.md"}
BESIDE = ("../CONTRIBUTING.md", "../projects/README.md")
# What prose calls by a short name.
MODULES = {
    "mka": mka,
    "mlflow_keras_adv": sys.modules["mlflow_keras_adv"],
    "registry": mka.registry,
    "entry_point": entry_point,
    "keras": keras,
    "mlflow": mlflow,
    "tf": tf,
    "run": mka.Run,
    "loop": mka.Loop,
    "technique": mka.Technique,
    "recorder": StepRecorder,
    "model": keras.Model,
    "MlflowClient": mlflow.MlflowClient,
    "Pruned": import_module("mlflow_keras_adv.compression.pruning").Pruned,
}
# Where a bare name may come from.
HOMES = (
    *(mka, mka.registry, mka.compression, mka.litert, mka.Technique, steps, flops, keras_tuner),
    *(keras, keras.callbacks, keras.layers, keras.losses, keras.metrics, keras.models, keras.utils),
    *(tf, tf.distribute, mlflow, mlflow.keras, pydantic, keras.Model, import_module("builtins")),
)
FILES = {"csv", "db", "json", "md", "parquet", "py", "txt", "yaml"}  # how names of files end
BY_NAME = {"RunCallback": RunCallback, "MLproject": None, "WandbMetricsLogger": None}


def said_in_prose(page: str) -> list[ast.expr]:
    """Names and calls between single backticks."""
    text = FENCE.sub("", (DOCS / page).read_text())
    found = []
    for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text):
        try:
            found.append(ast.parse(code.replace("(…, ", "(").replace("…", "..."), mode="eval").body)
        except SyntaxError:
            continue
    return found


def resolved(node: ast.expr) -> Any:
    """The object that a name or a dotted name stands for; None for what is no name of code."""
    if isinstance(node, ast.Attribute):
        if node.attr in FILES:
            return None
        owner: Any = None
        if isinstance(node.value, ast.Name):
            owner = MODULES.get(node.value.id)
        elif isinstance(node.value, ast.Attribute):
            owner = resolved(node.value)
        if owner is None:
            return None
        known = getattr(owner, node.attr, None)
        if known is None and isinstance(owner, ModuleType):
            known = import_module(f"{owner.__name__}.{node.attr}")
        if known is None and node.attr not in getattr(owner, "__annotations__", {}):
            raise AttributeError(f"{owner!r} has no {node.attr}")
        return known
    if isinstance(node, ast.Name) and re.match(r"[A-Z]+[a-z]", node.id):
        if node.id in BY_NAME:
            return BY_NAME[node.id]
        known = next((getattr(each, node.id) for each in HOMES if hasattr(each, node.id)), None)
        if known is None:
            raise AttributeError(f"{node.id} is in no package that the pages speak of")
        return known
    return None


def check_name(node: ast.expr) -> None:
    """The name exists, and what is called takes these keywords."""
    if not isinstance(node, ast.Call):
        resolved(node)
        return
    called = resolved(node.func)
    if called is None and isinstance(node.func, ast.Name):
        found = [getattr(each, node.func.id) for each in HOMES if hasattr(each, node.func.id)]
        called = found[0] if found else None
    if called is None or not getattr(called, "__module__", "").startswith("mlflow_keras_adv"):
        return
    taken = inspect.signature(called).parameters
    if not any(each.kind is each.VAR_KEYWORD for each in taken.values()):
        unknown = {each.arg for each in node.keywords} - set(taken)
        assert not unknown, f"{ast.unparse(node)}: {called.__qualname__} does not take {unknown}"


@pytest.mark.parametrize(
    "page", ["../CONTRIBUTING.md", *(p for p in PAGES if p not in OF_MISTAKES)]
)
def test_what_prose_names_exists(page: str) -> None:
    for node in said_in_prose(page):
        check_name(node)


@pytest.mark.parametrize(
    "code",
    ["MlflowLogger(layers=True)", "mka.tracks", "Pruned.size", "RunLogger", "run.log_metric()"],
)
def test_a_name_that_does_not_exist_is_found(code: str) -> None:
    with pytest.raises((AssertionError, AttributeError, ModuleNotFoundError)):
        check_name(ast.parse(code, mode="eval").body)

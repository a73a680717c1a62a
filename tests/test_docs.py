"""The pages hold: they build without a warning, name all that is public, and their code runs."""

import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import keras
import mlflow
import pytest
import yaml

import mlflow_keras_adv as mka
from mlflow_keras_adv.cli import main
from mlflow_keras_adv.plugins.evaluator import Options
from tests.mlflow_run import new_shell

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
CONFIG = DOCS / "site" / "mkdocs.yml"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def fences(page: str, language: str) -> list[str]:
    """The blocks of a page in a language, in order."""
    found = FENCE.findall((DOCS / page).read_text())
    return [block for kind, block in found if kind == language]


WITH_CODE = [page for page in PAGES if fences(page, "python")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages. Strict: a broken link, a lost anchor or a page in no menu is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(CONFIG)]
    done = subprocess.run([*command, "-d", str(folder)], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return folder


def public_names(module: ModuleType) -> Iterator[str]:
    """Full names of what a module offers, and of what the modules among that offer."""
    own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__]
    for name in getattr(module, "__all__", [each for each in own if not each.startswith("_")]):
        value = getattr(module, name)
        yield f"{module.__name__}.{name}"
        if isinstance(value, ModuleType):
            yield from public_names(value)


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
    evaluate = (DOCS / "evaluate.md").read_text()
    assert [name for name in Options.known() if f"`{name}`" not in evaluate] == []


def test_the_pages_are_read_without_a_network(site: Path) -> None:
    fetched = r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)'
    for page in site.rglob("*.html"):
        assert re.findall(fetched, page.read_text()) == [], page.name


def test_what_readme_says_stands_in_the_pages(site: Path) -> None:
    for page, words in {
        "techniques": "Knowledge distillation",
        "benchmark": "WandbMetricsLogger",
        "limits": "TensorFlow backend only",
        "offline": "points.refused",
    }.items():
        html = (site / f"{page}.html").read_text()
        assert words in html
        assert "<!-- readme" not in html


@pytest.mark.parametrize("page", WITH_CODE)
def test_the_code_of_a_page_runs_from_top_to_bottom(
    page: str, experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "page.py"
    script.write_text("\n\n".join(fences(page, "python")))
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    try:
        keras.utils.set_random_seed(0)
        runpy.run_path(str(script))
    finally:
        sys.path[:] = before  # a loaded model's code is put before it
        mka.autolog(disable=True)
    assert mlflow.active_run() is None
    statuses = [run.info.status for run in mlflow.MlflowClient().search_runs([experiment])]
    assert set(statuses) <= {"FINISHED"}


@pytest.mark.parametrize("page", PAGES)
def test_commands_on_a_page_exist(page: str) -> None:
    entry_points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    for block in fences(page, "bash"):
        assert set(re.findall(r"mlflow-keras-adv (\w+)", block)) <= set(main.commands)
        assert set(re.findall(r"mlflow run \. -e (\w+)", block)) <= set(entry_points)
        assert set(re.findall(r"-m projects\.(\w+)", block)) <= set(entry_points)


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

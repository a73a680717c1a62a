"""Who has installed less than README says is told so: the extra `tensorflow` alone, by itself."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
import yaml

import mlflow_keras_adv as mka
from mlflow_keras_adv.extras import EXTRAS
from tests.mlflow_run import ROOT, copy_project, new_shell, store_in
from tests.test_extras import ASKED, BARE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # what is installed has to be downloaded where uv's cache is empty
]

ENTRY_POINTS = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
WANTED = {
    **dict.fromkeys(("cluster", "compress", "main", "prune", "quantize"), "compression"),
    "reinforce": "rl",
}
# What needs an extra only if asked for it.
ASKING = {"distill": ["--quantize", "true"]}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution and the wheel, built of what is in the repository."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    copy_project(source)
    shutil.copytree(ROOT / "docs", source / "docs", ignore=shutil.ignore_patterns("images"))
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def bare(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lessons without the package's source, and `venv`, in which its wheel is installed."""
    folder = copy_project(tmp_path_factory.mktemp("bare"))
    shutil.rmtree(folder / "mlflow_keras_adv")
    uv = str(Path(sys.executable).with_name("uv"))
    for arguments in (
        ["venv", "--python", sys.executable, "venv"],
        ["pip", "install", "--python", "venv/bin/python", f"{built[1]}[tensorflow]"],
    ):
        done = subprocess.run([uv, *arguments], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder


def call(bare: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A program of that environment, as after `activate`."""
    program = str(bare / "venv" / "bin" / command[0])
    shell = new_shell(MLFLOW_KERAS_ADV_HOME=str(bare / "home"))
    shell["PATH"] = f"{bare / 'venv' / 'bin'}:{shell['PATH']}"
    return subprocess.run(
        [program, *command[1:]], cwd=bare, env=shell, capture_output=True, text=True, timeout=600
    )


def test_what_is_built_is_fit_for_an_index(built: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    with zipfile.ZipFile(built[1]) as wheel:
        (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        description = message_from_bytes(wheel.read(metadata)).get_payload()
    assert "# mlflow_keras_adv" in description
    assert re.findall(r"\]\((?!https?:)", description) == []  # beside it there are no files


USED = """
import sys, keras, mlflow, numpy as np
import mlflow_keras_adv as mka
assert "site-packages" in mka.__file__, mka.__file__
x, y = np.eye(4, dtype="float32"), np.arange(4)
runs = []
for rate in (0.1, 0.5):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate), loss)
    with mka.track(f"rate {rate}", log_system_metrics=False) as run:
        model.fit(x, y, epochs=3, verbose=0, callbacks=[mka.MlflowLogger()])
    runs.append(run.run_id)
with mlflow.start_run() as plain:
    pass
mka.compare(runs, output="report.html")
client = mlflow.MlflowClient()
print([len(client.get_metric_history(run, "batch/loss")) for run in runs])
print(client.get_run(plain.info.run_id).data.tags["mlflow_keras_adv"])  # of the plugin
"""


def test_the_wheel_records_compares_and_plugs_in(bare: Path) -> None:
    done = call(bare, "python", "-c", USED)
    assert done.returncode == 0, done.stderr
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert done.stdout.splitlines()[-2:] == ["[3, 3]", version]
    assert "rate 0.5" in (bare / "report.html").read_text()
    helped = call(bare, "mlflow-keras-adv", "--help")
    assert helped.returncode == 0
    assert "sync" in helped.stdout


def sentence(extra: str) -> str:
    """What is said of an extra of which nothing is there."""
    modules = EXTRAS[extra]
    are, them = ("is", "it") if len(modules) == 1 else ("are", "them")
    return (
        f'error: {", ".join(modules)} {are} not installed; the extra "{extra}" brings {them}: '
        f'pip install "mlflow-keras-adv[{extra}]"'
    )


def test_the_list_of_those_that_want_one_is_complete() -> None:
    declared = re.compile(r'^    entry_point\.run\(main, extra="(\w+)"\)$', re.MULTILINE)
    found = {}
    for name in ENTRY_POINTS:
        if wanted := declared.search((ROOT / "projects" / f"{name}.py").read_text()):
            found[name] = wanted[1]
    assert found == WANTED


def test_an_entry_point_says_which_extra_it_wants(bare: Path) -> None:
    """All of them in one process: each would import TensorFlow for seconds."""
    program = """
import runpy, sys
from contextlib import redirect_stderr
for line in sys.argv[1:]:
    name, *arguments = line.split()
    sys.argv = [name, *arguments]
    try:
        with redirect_stderr(sys.stdout):
            runpy.run_module(f"projects.{name}", run_name="__main__")
    except SystemExit as ended:
        print(f"{name} ended with {ended.code}")
"""
    asked = [[name, *ASKING.get(name, ())] for name in sorted(WANTED.keys() | ASKING.keys())]
    done = call(bare, "python", "-c", program, *map(" ".join, asked))

    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if re.match("error: |.* ended with ", line)]
    assert said == [
        line
        for name, *_ in asked
        for line in (sentence(WANTED.get(name, "compression")), f"{name} ended with 1")
    ]
    assert "Traceback" not in done.stdout
    assert "Epoch" not in done.stdout


def test_the_run_of_one_that_lacks_its_extra_is_failed(bare: Path) -> None:
    done = call(bare, "mlflow", "run", ".", "-e", "reinforce", "--env-manager", "local")

    assert done.returncode == 1, done.stderr
    assert sentence("rl") in done.stderr.splitlines()
    assert "Traceback" not in done.stdout + done.stderr
    client = mlflow.MlflowClient(store_in(bare))
    runs = client.search_runs(["0"], "tags.mlflow.project.entryPoint = 'reinforce'")
    assert [run.info.status for run in runs] == ["FAILED"]


def test_every_other_entry_point_is_ready(bare: Path) -> None:
    """Each can be imported and says what it takes; that they run so is in test_catalogue."""
    program = """
import importlib, sys
from mlflow_keras_adv.lessons import entry_point
for name in sys.argv[1:]:
    try:
        entry_point.run(importlib.import_module(f"projects.{name}").main, ["--help"])
    except SystemExit as ended:
        print(f"{name} ended with {ended.code}")
"""
    done = call(bare, "python", "-c", program, *ENTRY_POINTS)
    assert done.returncode == 0, done.stderr
    ended = [line for line in done.stdout.splitlines() if " ended with " in line]
    assert ended == [f"{name} ended with 0" for name in ENTRY_POINTS]


def test_promotion_wants_an_extra_for_a_file_and_none_for_a_keras_model(
    bare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_in(bare))
    monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(tmp_path))
    x, y = np.eye(2, dtype=np.float32), np.arange(2)
    np.savez(bare / "data.npz", x=x, y=y)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.layers[0].set_weights([x, y * 0])
    with mka.track("net", log_system_metrics=False):
        net = mka.log_model(model, name="net", input_example=x).model_uri
        file = mka.litert.log_model(mka.compression.convert(model, x).content, name="file")

    promote = ["mlflow-keras-adv", "promote", "bare", "--data", "data.npz", "--yes"]
    done = call(bare, *promote, net)
    assert done.returncode == 0, done.stdout + done.stderr
    refused = call(bare, *promote, file.model_uri)
    assert refused.returncode == 1
    told = 'Error: ai_edge_litert is not installed; the extra "compression" brings it: '
    assert f'{told}pip install "mlflow-keras-adv[compression]"' in refused.stderr.splitlines()
    assert "Traceback" not in refused.stdout + refused.stderr

    client = mlflow.MlflowClient()
    assert client.get_model_version_by_alias("bare", "champion").source == net
    statuses = [run.info.status for run in client.search_runs(["0"], max_results=3)]
    assert statuses == ["FAILED", "FINISHED", "FINISHED"]  # the last first


def test_every_public_name_says_which_extra_it_wants(bare: Path) -> None:
    done = call(bare, "python", "-c", ASKED, "[]")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert {name for name, answer in said.items() if answer is None} == BARE
    for name in said.keys() - BARE:
        assert said[name][1].endswith('pip install "mlflow-keras-adv[compression]"'), name

"""The lines that say where to look, and `mlflow-keras-adv ui`: each address is opened."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import pytest
import requests
from click.testing import CliRunner
from mlflow import MlflowClient

import mlflow_keras_adv as mka
from mlflow_keras_adv import cli
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.tracking.addresses import how_to_open
from tests.mlflow_run import new_shell


@contextmanager
def folder(path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


def test_one_line_says_where_the_run_and_the_charts_of_its_variants_are(
    experiment: str, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with mka.track("outer", log_system_metrics=False) as run:
        variants = {}
        for name, loss in {"a": 1.0, "b": 2.0}.items():
            with run.child(name) as child, mka.track("adopts") as same:
                assert same is child
                child.log_metrics({"val/loss": loss}, step=1)
            variants[name] = child
        mka.log_comparison(variants)
    (line,) = capsys.readouterr().out.splitlines()
    ui = "http://127.0.0.1:5000/#/experiments"
    assert line.startswith(
        f"Run outer: `mlflow ui --backend-store-uri {store}`, then "
        f"{ui}/{experiment}/runs/{run.run_id}, charts {ui}/{experiment}/runs?compareRunsMode=CHART"
    )


def test_a_run_that_fails_and_one_of_a_server_say_it_too(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.replace("//", "//somebody:secret@"))
    with pytest.raises(ZeroDivisionError), mka.track("fails", log_system_metrics=False) as run:
        raise ZeroDivisionError
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"Run fails: {server}/#/experiments/0/runs/{run.run_id}"


@pytest.mark.parametrize("offline", ["", "1"])
def test_a_relative_store_is_named_in_full_and_an_offline_one_says_for_whom(
    offline: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
    monkeypatch.setenv("MLFLOW_KERAS_ADV_OFFLINE", offline)
    monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(tmp_path / "home"))
    with folder(tmp_path), mka.track("mine", log_system_metrics=False) as run:
        pass
    (line,) = capsys.readouterr().out.splitlines()
    where = tmp_path / "home" / "offline.db" if offline else tmp_path / "mine.db"
    assert f"`mlflow ui --backend-store-uri sqlite:///{where}`, then http" in line
    assert line.endswith(f"/runs/{run.run_id}")
    assert (f"`mlflow-keras-adv sync` delivers it to sqlite:///{tmp_path / 'mine.db'}" in line) == (
        offline == "1"
    )


def test_mlflows_variable_silences_it_and_a_closed_output_does_no_harm(
    experiment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        with mka.track("quiet", log_system_metrics=False):
            pass
    assert capsys.readouterr().out == ""
    with Path(os.devnull).open("w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
    with mka.track("unheard", log_system_metrics=False) as run:
        pass
    assert MlflowClient().get_run(run.run_id).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("https://u:pw@host/base/", "https://host/base/#/x"),
        (
            "postgresql://u:pw@host/db",
            "`mlflow ui --backend-store-uri postgresql://host/db`, then ",
        ),
        ("sqlite:////a b/m.db", "`mlflow ui --backend-store-uri 'sqlite:////a b/m.db'`, then "),
        ("file:///old%20runs", "`mlflow ui --backend-store-uri '/old runs'`, then http"),
        ("databricks", "in the store databricks"),
    ],
)
def test_each_kind_of_store_is_named_as_it_is_opened(uri: str, said: str) -> None:
    assert how_to_open(uri, {"": "/#/x"}).startswith(said)


def test_a_comparison_names_the_file_of_its_page(
    experiment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, loss in {"a": 1.0, "b": 2.0}.items():
        with mka.track(name, log_system_metrics=False) as run:
            run.log_metrics({"final/loss": loss}, step=0)
    capsys.readouterr()
    found = mka.compare(experiments=experiment)
    assert capsys.readouterr().out.splitlines() == [found.where]
    page = re.search(r"^Comparison: page (\S+);.*/runs/(\w+), charts http", found.where)
    assert page
    assert page[2] == found.run_id
    assert Path(page[1]).read_text() == found.html
    with folder(tmp_path):
        found = mka.compare(experiments=experiment, output="page.html", log=False)
    assert f"page {tmp_path / 'page.html'}; " in found.where


def test_autolog_says_once_what_it_records_and_what_not(
    experiment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.zeros((4, 2), "float32")
    mka.autolog()
    try:
        for _ in range(2):
            model.fit(x, x[:, :1], verbose=0)
    finally:
        mka.autolog(disable=True)
    said = capsys.readouterr().out.splitlines()
    assert [each.split(" ")[0] for each in said] == ["autolog", "Run", "Run"]
    assert "every fit in a run of its own, and no model" in said[0]
    assert "`mka.log_model(" in said[0]


def entry(data: str = "digits", lr: float = 0.1, epochs: int = 3, seed: int = 0) -> None:
    """Opens a run.

    Args:
        data: Data.
        lr: Rate.
        epochs: Epochs.
        seed: Seed.
    """
    with mka.technique("entry", dict(locals()), seed=seed) as technique:
        pass
    names.append(technique.run.run_id)


names: list[str] = []


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "entry"),
        (["--seed", "3", "--lr", "0.1"], "entry"),
        (["--lr", "1e-3", "--seed", "3", "--epochs", "5"], "entry lr=0.001 epochs=5"),
        (["--epochs", "5", "--data", "/somewhere/quite/far/away/fresh.npz", "--lr", "1"], "…"),
    ],
)
@pytest.mark.parametrize("given", [None, "mine", "thundering-auk-2170"])
def test_the_run_of_an_entry_point_is_named_after_what_was_changed(
    arguments: list[str],
    name: str,
    given: str | None,
    experiment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = MlflowClient()
    opened = client.create_run(experiment, run_name=given)  # as `mlflow run` does
    monkeypatch.setenv("MLFLOW_RUN_ID", opened.info.run_id)
    entry_point.run(entry, arguments)
    assert names[-1] == opened.info.run_id
    found = client.get_run(opened.info.run_id)
    if given == "mine":
        assert found.info.run_name == "mine"
    elif name == "…":
        assert found.info.run_name == "entry data=…uite/far/away/fresh.npz lr=1"
    else:
        assert found.info.run_name == name
    assert entry_point.run_name("after") == "after"


@contextmanager
def ui(
    *arguments: str, cwd: Path, **variables: str
) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """`mlflow-keras-adv ui`, and the first line that it prints."""
    environment = new_shell(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", **variables)
    environment["PYTHONPATH"] = str(Path(mka.__file__).parent.parent)
    process = subprocess.Popen(
        [sys.executable, "-c", "from mlflow_keras_adv.cli import main; main()", "ui", *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        process.stdout.close()


def test_the_ui_serves_the_store_of_the_folder_on_a_free_port_until_ctrl_c(tmp_path: Path) -> None:
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.create_experiment("mine", (tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with ui("--port", str(port), cwd=tmp_path) as (line, process):
            at = re.fullmatch(
                rf"(http://127.0.0.1:(\d+))/#/experiments/{experiment}/runs\?.*", line
            )
            assert at, line
            assert "compareRunsMode=CHART&workflowType=machine_learning" in line
            assert int(at[2]) != port
            assert MlflowClient(at[1]).get_run(run.info.run_id).info.experiment_id == experiment
            assert process.stdout is not None
            assert str(tmp_path / "mlflow.db") in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert process.stdout.read() == ""
            with pytest.raises(requests.ConnectionError):
                requests.get(at[1], timeout=5)


def test_a_server_is_only_named_and_what_is_not_there_is_said(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*arguments: str) -> tuple[str, int]:
        done = CliRunner().invoke(cli.main, ["ui", *arguments])
        return done.output, done.exit_code

    with folder(tmp_path):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
        line, code = said()
        assert line.startswith(f"Error: There is no store {tmp_path / 'mlflow.db'}: nothing was")
        assert code == 1
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.replace("//", "//u:secret@"))
        line, code = said()
        assert line.startswith(f"{server}/#/experiments/")
        assert (line.count("\n"), code) == (1, 0)
        line, code = said("-e", "nope")
        assert line.startswith("Error: There is no experiment 'nope'. The store has: 'Default'")
        assert code == 1

"""Journals and offline runs that version 0.1 has left behind are delivered by this one."""

import json
import math
import shutil
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from mlflow_keras_adv.tracking.paths import journals_folder, offline_uri
from mlflow_keras_adv.tracking.sync import sync

LEFT = Path(__file__).parent / "left_by_0_1"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(folder))
    return folder


def put_journal(name: str, home: Path, run_id: str) -> None:
    """Puts one where 0.1 would have left it, for a run of the session's store."""
    folder = home / "journals" / f"{run_id}-abcd1234"
    shutil.copytree(LEFT / "journals" / name, folder)
    about = (folder / "about.json").read_text()
    about = about.replace("@RUN@", run_id).replace("@STORE@", mlflow.get_tracking_uri())
    (folder / "about.json").write_text(about.replace("@HOST@", socket.gethostname()))


def put_offline_runs(home: Path, experiment: str) -> None:
    """Puts the rows into a store that the installed MLflow has made, as far as it knows them."""
    MlflowClient(offline_uri()).search_experiments()
    known = {"@HOME@": str(home), "@STORE@": mlflow.get_tracking_uri(), "@EXPERIMENT@": experiment}
    with closing(sqlite3.connect(home / "offline.db")) as database:
        for line in (LEFT / "offline.jsonl").read_text().splitlines():
            for placeholder, text in known.items():
                line = line.replace(placeholder, text)
            row = json.loads(line)
            table = row.pop("table")
            columns = {each[1] for each in database.execute(f"PRAGMA table_info({table})")}
            kept = {column: value for column, value in row.items() if column in columns}
            names, holes = ", ".join(f'"{each}"' for each in kept), ", ".join("?" * len(kept))
            database.execute(f"INSERT INTO {table} ({names}) VALUES ({holes})", (*kept.values(),))
        database.commit()
    shutil.copytree(LEFT / "offline-artifacts", home / "offline-artifacts")
    for path in home.rglob("MLmodel"):
        path.write_text(path.read_text().replace("@HOME@", str(home)))


def read(client: MlflowClient, run_id: str, path: str, folder: Path) -> str:
    return Path(client.download_artifacts(run_id, path, str(folder))).read_text()


def assert_holds_all(client: MlflowClient, run: Run, note: str, folder: Path) -> None:
    """What each of the three has recorded."""
    run_id = run.info.run_id
    assert run.data.params == {"optimizer.name": "adam", "long": "x" * 6000}
    histories = {key: client.get_metric_history(run_id, key) for key in run.data.metrics}
    loss = {m.step: m.value for m in histories["loss"] if 1 <= m.step <= 5}
    assert loss == {step: 1 / step for step in range(1, 6)}
    norm = {m.step: (m.value, m.timestamp) for m in histories["norm"]}
    assert norm == {row: (row * 0.5, 1_700_000_000_000 + row) for row in range(1, 41) if row != 2}
    assert [m.value for m in histories["hit_5"]] == [0.25]
    assert [math.isnan(m.value) for m in histories["nan"]] == [True]
    assert [m.value for m in histories["final/accuracy"]] == [0.9]
    assert all(
        len({(m.step, m.timestamp) for m in each}) == len(each) for each in histories.values()
    )

    tags = run.data.tags
    assert tags["note"] == note
    assert json.loads(tags["names.metrics"]) == {"hit_5": "hit@5"}
    assert json.loads(tags["points.refused_names"]) == {"inf": 1}
    produced, pending = int(tags["points.produced"]), int(tags["points.pending"])
    assert (produced - int(tags["points.delivered"]), pending) == (1, 0)
    assert json.loads(tags["mlflow.loggedArtifacts"]) == [{"path": "classes.json", "type": "table"}]
    assert read(client, run_id, "folder/a.txt", folder) == "hello"
    assert read(client, run_id, "params/long.txt", folder) == "x" * 6001
    table = json.loads(read(client, run_id, "classes.json", folder))
    assert table == {"columns": ["class", "f1"], "data": [["a", 0.5], ["b", 0.75]]}
    assert "gone.txt" not in {file.path for file in client.list_artifacts(run_id)}
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", "d1")
    assert [(tag.key, tag.value) for tag in dataset.tags] == [("mlflow.data.context", "test")]

    (output,) = run.outputs.model_outputs
    assert output.step == 5
    model = client.get_logged_model(output.model_id)
    assert tags["parent_model_id"] == model.model_id
    assert (model.name, str(model.status), model.model_type) == ("net", "READY", "classifier")
    assert model.source_run_id == run_id
    assert model.params["layers"] == "2"
    assert model.tags["kind"] == "small"
    measured = {m.key: (m.value, m.dataset_name) for m in model.metrics or []}
    assert measured["final/accuracy"] == (0.9, "digits")
    assert measured["loss"] == (0.2, None)
    place = mlflow.artifacts.download_artifacts(
        f"models:/{model.model_id}", tracking_uri=client.tracking_uri, dst_path=str(folder / note)
    )
    assert Path(place, "data", "weights.bin").read_bytes() == bytes(range(64))
    assert model.model_id in Path(place, "MLmodel").read_text()
    (version,) = client.search_model_versions(f"name = 'left-by-0.1-{note}'")
    assert version.source == f"models:/{model.model_id}"
    assert version.run_id == run_id


def test_the_journal_of_a_run_that_has_ended(
    home: Path, client: MlflowClient, experiment: str, tmp_path: Path
) -> None:
    run_id = client.create_run(experiment).info.run_id
    put_journal("ended", home, run_id)
    outcome = sync()
    assert (len(outcome.delivered), outcome.pending) == (1, [])
    run = client.get_run(run_id)
    assert_holds_all(client, run, "ended", tmp_path)
    assert (run.info.status, run.info.end_time) == ("FAILED", 1_700_000_009_000)
    assert run.data.tags["points.produced"] == "48"
    assert not list(journals_folder().iterdir())
    assert sync().delivered == []


def test_the_journal_of_a_process_that_was_killed(
    home: Path, client: MlflowClient, experiment: str, tmp_path: Path
) -> None:
    run_id = client.create_run(experiment).info.run_id
    client.log_metric(run_id, "loss", 7.0, 1, 0)  # which it has delivered itself
    put_journal("killed", home, run_id)
    outcome = sync()
    assert (len(outcome.delivered), outcome.pending) == (1, [])
    run = client.get_run(run_id)
    assert_holds_all(client, run, "killed", tmp_path)
    assert run.info.status == "KILLED"
    assert run.data.tags["points.produced"] == "49"
    assert len(client.get_metric_history(run_id, "loss")) == 6
    assert not list(journals_folder().iterdir())


def test_runs_that_were_recorded_offline(
    home: Path, client: MlflowClient, experiment: str, tmp_path: Path
) -> None:
    put_offline_runs(home, experiment)
    outcome = sync()
    assert (len(outcome.delivered), outcome.pending) == (2, [])
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert set(runs) == {"search", "trial"}
    search, trial = runs["search"], runs["trial"]
    assert (search.data.params, search.data.metrics) == ({"trials": "1"}, {"theirs": 5.0})
    assert trial.data.tags["mlflow.parentRunId"] == search.info.run_id
    assert trial.data.tags["mlflow.note.content"] == "**one**"
    assert {search.info.status, trial.info.status} == {"FINISHED"}
    assert_holds_all(client, trial, "offline", tmp_path)
    assert math.isnan(
        next(m for m in client.get_metric_history(trial.info.run_id, "loss") if m.step == 6).value
    )
    registered = client.get_registered_model("left-by-0.1-offline")
    assert {alias: str(number) for alias, number in registered.aliases.items()} == {"champion": "1"}
    assert sync().delivered == []

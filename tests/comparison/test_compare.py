"""compare() on a real store: what is selected, what is logged, what it says of mistakes."""

from pathlib import Path

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image

import mlflow_keras_adv as mka
from mlflow_keras_adv import cli
from mlflow_keras_adv.comparison import histories, logged_tables, pictures
from mlflow_keras_adv.comparison.artifacts import Artifacts
from mlflow_keras_adv.comparison.groups import group_by_seed
from mlflow_keras_adv.comparison.histories import read_curves
from mlflow_keras_adv.comparison.selection import Selection, select_runs
from projects import compare as script
from tests.comparison import made_runs


@pytest.fixture
def parent(client: MlflowClient, experiment: str) -> str:
    """A parent run, with two techniques of two seeds nested in it."""
    run_id = client.create_run(experiment, run_name="all").info.run_id
    client.log_metric(run_id, "final/accuracy", 0.97)
    client.set_terminated(run_id)
    for name in ("scratch", "distilled"):
        for seed in (0, 1):
            made_runs.log_technique(client, experiment, name, seed, run_id)
    return run_id


def name_of(experiment: str) -> str:
    return MlflowClient().get_experiment(experiment).name


@pytest.mark.quick
def test_an_experiment_is_compared_logged_and_found_in_mlflow(
    parent: str, experiment: str, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    found = mka.compare(experiments=[name_of(experiment)])

    assert found.table["variant"].tolist() == ["distilled", "scratch"]
    assert found.table["runs"].tolist() == [2, 2]  # the parent repeats its winner
    values = [made_runs.finals("distilled", seed)["final/accuracy"] for seed in (0, 1)]
    assert found.table["final/accuracy"][0] == pytest.approx(np.mean(values))
    assert found.table["final/accuracy ±"][0] == pytest.approx(np.std(values, ddof=1))
    assert not [each for each in found.table if each.startswith("params.")]  # lr, width are equal

    assert found.run_id is not None
    run = client.get_run(found.run_id)
    assert (run.info.run_name, run.info.status) == ("comparison", "FINISHED")
    assert run.data.tags["mlflow.note.content"].startswith("First of 2 by final/accuracy")
    folder = Path(
        mlflow.artifacts.download_artifacts(run_id=found.run_id, artifact_path="comparison")
    )
    assert (folder / "report.html").read_text() == found.html
    logged = mlflow.load_table("comparison/table.json", run_ids=[found.run_id])
    assert logged["variant"].tolist() == ["distilled", "scratch"]

    (line,) = [each for each in capsys.readouterr().out.splitlines() if "Comparison" in each]
    assert line.endswith(f", charts http://127.0.0.1:5000{found.address}")
    again = mka.compare(experiments=[experiment], log=False)  # by its id; without the comparison
    assert again.table["variant"].tolist() == ["distilled", "scratch"]
    assert again.run_id is None


def test_a_run_with_nested_runs_stands_for_them_and_a_filter_holds_for_these(
    parent: str, client: MlflowClient
) -> None:
    found = mka.compare([parent], log=False)
    assert found.table["run_ids"].str.split().explode().nunique() == 4
    some = mka.compare([parent], filter_string="attributes.run_name = 'scratch'", log=False)
    assert some.table["variant"].tolist() == ["scratch"]
    (one,) = client.search_runs(
        [client.get_run(parent).info.experiment_id],
        "attributes.run_name = 'scratch' AND params.seed = '0'",
    )
    assert mka.compare([one.info.run_id], log=False).table["runs"].tolist() == [1]


def test_inside_a_run_it_is_logged_there_and_leaves_its_description_alone(
    parent: str, client: MlflowClient
) -> None:
    with mka.track("mine", description="mine", log_system_metrics=False) as run:
        found = mka.compare([parent])
    assert found.run_id == run.run_id
    assert client.get_run(run.run_id).data.tags["mlflow.note.content"] == "mine"
    names = [file.path for file in client.list_artifacts(run.run_id, "comparison")]
    assert names == ["comparison/report.html", "comparison/table.json"]


def test_only_the_newest_are_compared_and_that_is_said(parent: str, experiment: str) -> None:
    found = mka.compare(experiments=[experiment], max_runs=2, log=False)
    assert found.table["runs"].sum() == 2
    assert "Of 4 runs the newest 2 are compared." in found.html


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "No run and no experiment is named"),
        ({"runs": ["0" * 32]}, r"does not accept the run '0+': .*not found"),
        ({"runs": ["../../etc/passwd"]}, r"does not accept the run '../../etc/passwd'"),
        ({"experiments": ["no such"]}, r"There is no experiment 'no such'. The store has: "),
        ({"filter_string": "accuracy is high"}, "does not accept the filter 'accuracy is high'"),
        ({"filter_string": "params.lr = 'none'"}, "There is no run to compare"),
        (
            {"monitor": "final/acuracy"},
            r"has the metric 'final/acuracy'. They have: batch/loss, fin",
        ),
        ({"output": "/proc/none/page.html"}, "page cannot be written to /proc/none/page.html"),
    ],
)
def test_mistakes_are_said_in_a_sentence(
    parent: str, experiment: str, arguments: dict[str, object], message: str
) -> None:
    if arguments and not {"runs", "experiments"} & set(arguments):
        arguments = arguments | {"experiments": [experiment]}
    with pytest.raises(mka.UserError, match=message):
        mka.compare(**arguments, log=False)


def test_no_runs_at_all_are_a_mistake_of_the_caller(parent: str) -> None:
    with pytest.raises(ValueError, match="max_runs=0"):
        mka.compare([parent], max_runs=0)


def test_other_data_and_runs_that_failed_are_said(client: MlflowClient, experiment: str) -> None:
    for digest in ("aaaa", "bbbb"):
        with mka.track(f"on {digest}", log_system_metrics=False) as run:
            run.log_dataset(mka.Dataset("digits", digest), context="test")
            run.log_metrics({"final/accuracy": 0.5})
    client.set_terminated(run.run_id, "FAILED")
    html = mka.compare(experiments=[experiment], log=False).html
    assert "Not all runs used the same data: digits #aaaa, digits #bbbb." in html
    assert "1 run has failed or not ended" in html


def test_the_command_prints_a_table_that_can_do_no_harm(
    client: MlflowClient, experiment: str, tmp_path: Path
) -> None:
    run_id = client.create_run(experiment, run_name="evil \x1b[2J\nname").info.run_id
    client.log_metric(run_id, "final/accuracy", 0.5)
    page = tmp_path / "new" / "page.html"
    said = CliRunner().invoke(
        cli.main, ["compare", "-e", experiment, "--no-log", "--output", str(page)]
    )
    assert said.exit_code == 0, said.output
    *table, line = said.output.splitlines()
    assert table == [
        "variant        runs  final/accuracy",
        "evil [2J name  1     0.5",
    ]
    assert line.startswith(f"Comparison: page {page}; `mlflow ui --backend-store-uri sqlite:////")
    assert page.read_text().startswith("<!doctype html>")
    wrong = CliRunner().invoke(cli.main, ["compare", "nowhere"])
    assert wrong.exit_code == 1
    assert wrong.output.count("\n") == 1


def test_the_entry_point_compares_the_experiment_that_it_is_run_in(
    parent: str, experiment: str, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main(by="name")
    (run,) = client.search_runs([experiment], "tags.technique = 'comparison'")
    assert run.data.tags["mlflow.note.content"].startswith("First of 2")
    assert "comparison" in [file.path for file in client.list_artifacts(run.info.run_id)]
    assert "distilled" in capsys.readouterr().out
    script.main(runs=f"{parent}, ", filter="params.seed = '1'")
    assert "scratch" in capsys.readouterr().out


def test_curves_are_those_of_the_store(parent: str, client: MlflowClient, experiment: str) -> None:
    ids = [run.info.run_id for run in client.search_runs([experiment])]
    curves = read_curves(ids, ["val/loss", "final/accuracy", "absent"])
    assert set(curves["val/loss"]) == set(ids) - {parent}
    for run_id, series in curves["val/loss"].items():
        assert series.equals(mka.curve("val/loss", run=run_id).rename(None))
    assert curves["final/accuracy"] == curves["absent"] == {}  # one point is no curve


def test_of_a_long_curve_evenly_picked_points_are_read(
    client: MlflowClient, experiment: str
) -> None:
    run_id = client.create_run(experiment).info.run_id
    client.log_batch(
        run_id, [mlflow.entities.Metric("loss", 1 / step, step, step) for step in range(1, 1001)]
    )
    series = read_curves([run_id], ["loss"])["loss"][run_id]
    assert len(series) == histories.POINTS
    assert (series.index[0], series.index[-1]) == (1, 1000)


def test_pictures_stand_side_by_side_and_what_is_none_is_left_out(
    client: MlflowClient, experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [client.create_run(experiment, run_name=name).info.run_id for name in ("a", "b")]
    wide = tmp_path / "layers.png"
    Image.new("RGB", (2000, 500), "red").save(wide)
    for run_id in ids:
        client.log_artifact(run_id, wide, "gradients")
        for step in (5, 40):
            client.log_image(
                run_id, np.full((9, 9, 3), step, np.uint8), key="val/digits", step=step
            )
    fake = tmp_path / "fake.png"
    fake.write_text("<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>")
    client.log_artifact(ids[0], fake)
    client.log_artifact(ids[0], wide, "models/inside")
    groups = group_by_seed(Selection([client.get_run(run_id) for run_id in ids]))

    found, notes = pictures.read_pictures(Artifacts(groups))

    assert {each.name: len(each.sources) for each in found} == {
        "gradients/layers.png": 2,
        "images/val/digits": 2,
    }
    assert notes == []
    for each in found:
        assert all(s.startswith("data:image/webp;base64,") for s in each.sources.values())
    monkeypatch.setattr(pictures, "MAX_PICTURES", 1)
    some, notes = pictures.read_pictures(Artifacts(groups))
    assert [each.name for each in some] == ["gradients/layers.png"]
    assert notes == ["Of 3 pictures the 1 that most variants have."]


@pytest.mark.parametrize("path", ["../x.png", "a/../../x.png", "/etc/x.png", "a\\..\\x.png"])
def test_a_path_that_leaves_its_run_is_never_asked_for(
    path: str, client: MlflowClient, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lists(self: MlflowClient, run_id: str, folder: str | None = None) -> list[object]:
        return [mlflow.entities.FileInfo(path, False, 10)]

    def downloads(*arguments: object) -> str:
        raise AssertionError(arguments)

    monkeypatch.setattr(MlflowClient, "list_artifacts", lists)
    monkeypatch.setattr(MlflowClient, "download_artifacts", downloads)
    run = client.create_run(experiment)
    assert pictures.read_pictures(Artifacts(group_by_seed(Selection([run])))) == ([], [])


def test_tables_of_one_name_stand_side_by_side_and_are_cut(
    client: MlflowClient, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [client.create_run(experiment, run_name=name).info.run_id for name in ("a", "b")]
    for factor, run_id in enumerate(ids, start=1):
        rows = {"layer": [f"dense_{i}" for i in range(20)], "sparsity": [factor / 3] * 20}
        client.log_table(run_id, rows | {f"c{i}": [None] * 20 for i in range(9)}, "layers.json")
        client.log_dict(run_id, {"columns": ["a", "b"], "data": [[1]]}, "torn.json")
        client.log_dict(run_id, {"lr": 0.1}, "config.json")
        client.log_text(run_id, "{", "broken.json")
    client.log_dict(ids[1], {"columns": ["size_bytes"], "data": [[10**400], [2048]]}, "one.json")
    groups = group_by_seed(Selection([client.get_run(run_id) for run_id in ids]))

    found, notes = logged_tables.read_tables(Artifacts(groups))

    assert notes == []
    assert [(each.name, list(each.tables)) for each in found] == [
        ("layers.json", [0, 1]),
        ("one.json", [1]),
    ]
    first, second = found[0].tables.values()
    assert first.shape == second.shape == (20, 11)
    assert first.is_cut
    assert first.columns == ["layer", "sparsity", *(f"c{i}" for i in range(8))]
    assert len(first.rows) == logged_tables.MAX_ROWS
    assert first.rows[0][:3] == ["dense_0", "0.3333", "-"]
    assert second.rows[15][1] == "0.6667"
    assert found[1].tables[1].rows == [["1" + 400 * "0"], ["2.05 kB"]]

    monkeypatch.setattr(logged_tables, "MAX_TABLES", 1)
    some, notes = logged_tables.read_tables(Artifacts(groups))
    assert [each.name for each in some] == ["layers.json"]
    assert notes == ["Of 2 tables the 1 that most variants have."]


def test_artifacts_that_cannot_be_read_are_no_reason_to_fail(
    parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> None:
        raise MlflowException("no rights")

    monkeypatch.setattr(MlflowClient, "list_artifacts", fails)
    assert len(mka.compare([parent], log=False).table) == 2


def test_a_selection_of_many_runs_takes_few_calls(
    parent: str, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    searches = MlflowClient.search_runs

    def counted(self: MlflowClient, *arguments: object, **options: object) -> object:
        calls.append(arguments)
        return searches(self, *arguments, **options)

    def get_run(self: MlflowClient, run_id: str) -> None:
        raise AssertionError(run_id)

    monkeypatch.setattr(MlflowClient, "search_runs", counted)
    monkeypatch.setattr(MlflowClient, "get_run", get_run)
    selection = select_runs([], [experiment], "", 500)
    assert len(selection.runs) == 4
    assert len(calls) == 1

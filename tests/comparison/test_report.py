"""Comparison of runs: table, figure, winner."""

import mlflow
import pytest

import mlflow_keras_adv as mka
from mlflow_keras_adv.comparison.report import comparison_table, learning_curves


def variant(run: mka.Run, name: str, validation: float, test: float, size: float) -> mka.Run:
    with run.child(name) as child:
        for epoch in (1, 2):
            child.log_metrics({"train/loss": 1 / epoch}, step=10 * epoch)
            child.log_metrics({"val/accuracy": validation * epoch / 2}, step=10 * epoch)
        child.log_metrics({"final/accuracy": test, "final/gzip_bytes": size})
    return child


@pytest.fixture
def compared(experiment: str) -> tuple[mka.Run, dict[str, mka.Run], str]:
    with mka.track("parent", log_system_metrics=False) as run:
        variants = {
            "large": variant(run, "large", 0.9, 0.7, 500),
            "small": variant(run, "small", 0.9, 0.6, 50),
            "worse": variant(run, "worse", 0.8, 0.95, 5),
        }
        winner = mka.log_comparison(variants)
    return run, variants, winner


def test_validation_decides_then_the_smaller_model_and_never_the_test_split(
    compared: tuple[mka.Run, dict[str, mka.Run], str], client: mlflow.MlflowClient
) -> None:
    run, _, winner = compared
    data = client.get_run(run.run_id).data
    assert winner == data.tags["winner"] == "small"
    assert data.metrics["final/accuracy"] == 0.6
    assert data.metrics["final/gzip_bytes"] == 50
    (point,) = client.get_metric_history(run.run_id, "final/accuracy")
    assert point.step == 0


def test_what_an_open_run_was_handed_is_waited_for(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    with mka.track("parent", log_system_metrics=False) as run, run.child("open") as child:
        for step in range(1, 200):
            child.log_metrics({"val/accuracy": step / 200, "final/accuracy": step / 200}, step=step)
        assert mka.log_comparison({"open": child.run_id}, run=run) == "open"

    assert client.get_run(run.run_id).data.metrics["final/accuracy"] == 199 / 200


def test_table_and_figure_are_on_the_parent(
    compared: tuple[mka.Run, dict[str, mka.Run], str], client: mlflow.MlflowClient
) -> None:
    run, variants, _ = compared
    files = {file.path for file in client.list_artifacts(run.run_id)}
    assert {"comparison.json", "learning_curves.png"} <= files
    table = mlflow.load_table("comparison.json", run_ids=[run.run_id])
    assert table["variant"].tolist() == ["large", "small", "worse"]
    assert table["final/accuracy"].tolist() == pytest.approx([0.7, 0.6, 0.95])  # through JSON

    figure = learning_curves({n: v.run_id for n, v in variants.items()}, ["train/loss", "absent"])
    drawn, empty = figure.axes
    assert [list(line.get_xdata()) for line in drawn.lines] == [[10, 20]] * 3
    assert list(drawn.lines[0].get_ydata()) == [1, 0.5]
    assert not empty.lines


def test_a_run_has_one_line_in_every_panel_and_the_legend_names_all(experiment: str) -> None:
    runs = {}
    with mka.track("parent", log_system_metrics=False) as parent:
        for number in range(12):
            with parent.child(f"variant-{number}") as child:
                child.log_metrics({"train/loss": 1.0}, step=1)
                if number == 11:
                    child.log_metrics({"optimizer/loss_scale": 2.0}, step=1)
            runs[child.name] = child.run_id

    figure = learning_curves(runs, ["optimizer/loss_scale", "train/loss"])

    scale, loss = figure.axes
    looks = [(line.get_color(), line.get_linestyle()) for line in loss.lines]
    assert len(set(looks)) == 12
    assert [(line.get_color(), line.get_linestyle()) for line in scale.lines] == looks[11:]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(runs)
    figure.draw_without_rendering()
    assert legend.get_window_extent().width < figure.bbox.width


def test_a_run_without_finals_is_a_row_of_nothing(experiment: str) -> None:
    with mka.track("bare", log_system_metrics=False) as bare:
        bare.log_metrics({"final/accuracy": 0.5})
    with mka.track("none", log_system_metrics=False) as none:
        pass
    table = comparison_table({"bare": bare.run_id, "none": none.run_id})
    assert table["final/accuracy"].isna().tolist() == [False, True]


def test_without_the_deciding_metric_it_says_what_to_do(experiment: str) -> None:
    with mka.track("parent", log_system_metrics=False) as run:
        with run.child("empty") as child:
            pass
        with pytest.raises(ValueError, match=r"'val/accuracy', which chooses the winner"):
            mka.log_comparison({"empty": child})


def test_a_curve_is_read_by_run_or_id_in_the_order_of_its_steps(experiment: str) -> None:
    with mka.track("curve", log_system_metrics=False) as run:
        for step in (30, 10, 20):
            run.log_metrics({"train/loss": 1 / step}, step=step)

    found = mka.curve("train/loss", run=run)
    assert dict(found) == {10: 1 / 10, 20: 1 / 20, 30: 1 / 30}
    assert list(found.index) == [10, 20, 30]
    assert found.equals(mka.curve("train/loss", run=run.run_id))
    assert len(mka.curve("absent", run=run)) == 0

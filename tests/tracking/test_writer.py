import json
import logging
import math
import tempfile
import threading
import time
import tracemalloc
from decimal import Decimal
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import mlflow
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from mlflow import MlflowClient

from mlflow_keras_adv.tracking.values import Dataset
from mlflow_keras_adv.tracking.writer import RunWriter


@pytest.fixture
def run_id(client: MlflowClient, experiment: str) -> str:
    return client.create_run(experiment).info.run_id


@pytest.fixture
def writer(client: MlflowClient, run_id: str) -> RunWriter:
    return RunWriter(run_id, client)


def history(client: MlflowClient, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client.get_metric_history(run_id, key))


def artifact(client: MlflowClient, run_id: str, path: str) -> Path:
    return Path(client.download_artifacts(run_id, path))


def test_metrics_land_with_step_time_model_and_dataset(
    client: MlflowClient, writer: RunWriter, experiment: str
) -> None:
    model = client.create_logged_model(experiment, name="m", source_run_id=writer.run_id)
    before = time.time_ns() // 1_000_000
    writer.log_metrics(
        {"final/accuracy": 0.5}, step=7, model_id=model.model_id, dataset=Dataset("digits", "abc")
    )
    after = time.time_ns() // 1_000_000
    assert writer.flush(30)

    (metric,) = client.get_metric_history(writer.run_id, "final/accuracy")
    assert (metric.value, metric.step) == (0.5, 7)
    assert before <= metric.timestamp <= after
    (linked,) = client.get_logged_model(model.model_id).metrics
    assert (linked.key, linked.value) == ("final/accuracy", 0.5)
    assert (linked.dataset_name, linked.dataset_digest) == ("digits", "abc")


def test_a_series_lands_value_for_value_and_masked_entries_are_absent(
    client: MlflowClient, writer: RunWriter
) -> None:
    rows = 2345  # neither a multiple of the rows nor of the metrics that are sent at once
    loss = np.linspace(0, 1, rows, dtype=np.float32)
    norm = np.ma.masked_array(np.arange(rows, dtype=np.float64), mask=np.arange(rows) % 4 != 0)
    steps = np.arange(1, rows + 1)
    times = 1_700_000_000_000 + np.arange(rows)

    writer.log_series({"loss": loss, "norm": norm}, steps=steps, timestamps_ms=times)
    loss[:], steps[:] = -1, -1  # what was handed in is a copy
    assert writer.flush(60)

    expected = np.linspace(0, 1, rows, dtype=np.float32).tolist()
    assert history(client, writer.run_id, "loss") == list(enumerate(expected, start=1))
    assert history(client, writer.run_id, "norm") == [(i + 1, i) for i in range(0, rows, 4)]
    stored = client.get_metric_history(writer.run_id, "loss")
    assert sorted(metric.timestamp for metric in stored) == times.tolist()


def test_many_values_go_to_the_store_in_few_calls_and_in_order(
    client: MlflowClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[float]] = []
    first_call, go_on = threading.Event(), threading.Event()

    def log_batch(run_id: str, metrics: list[mlflow.entities.Metric], **_: object) -> None:
        batches.append([metric.value for metric in metrics])
        first_call.set()
        assert go_on.wait(30)

    monkeypatch.setattr(client, "log_batch", log_batch)
    writer = RunWriter(run_id, client)
    writer.log_metrics({"m": 0.0})
    assert first_call.wait(30)
    for value in range(1, 2501):  # returns, although the store does not
        writer.log_metrics({"m": value})
    go_on.set()
    assert writer.flush(30)

    assert [len(batch) for batch in batches] == [1, 1000, 1000, 500]
    assert [value for batch in batches for value in batch] == list(range(2501))


def test_a_series_waits_as_arrays_while_the_store_does_not_answer(
    client: MlflowClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 200_000
    first_call, go_on = threading.Event(), threading.Event()

    def log_batch(*_: object, **__: object) -> None:
        first_call.set()
        assert go_on.wait(30)

    monkeypatch.setattr(client, "log_batch", log_batch)
    writer = RunWriter(run_id, client)
    writer.log_metrics({"first": 0.0})
    assert first_call.wait(30)
    tracemalloc.start()
    writer.log_series({"m": np.zeros(rows)}, steps=np.zeros(rows), timestamps_ms=np.zeros(rows))
    while writer.receipt.pending <= rows:  # until it stands in the journal
        time.sleep(0.01)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    go_on.set()
    assert writer.flush(60)

    # Three arrays of 8 bytes a row and a mask of 1; a Python object takes 16 bytes at the least.
    assert held < (3 * 8 + 1) * rows + 100_000


@pytest.mark.parametrize(
    ("value", "recorded"),
    [(math.nan, True), (math.inf, False), (-math.inf, False), (None, False), ("text", False)],
)
def test_what_cannot_be_recorded_is_refused_by_name_and_the_rest_lands(
    client: MlflowClient,
    writer: RunWriter,
    caplog: pytest.LogCaptureFixture,
    value: float,
    recorded: bool,
) -> None:
    for step in range(3):
        writer.log_metrics({"odd": value, "good": 1.0}, step=step)
    assert writer.flush(30)

    assert len(client.get_metric_history(writer.run_id, "good")) == 3
    assert len(client.get_metric_history(writer.run_id, "odd")) == (3 if recorded else 0)
    assert writer.refused == ({} if recorded else {"odd": 3})
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == (0 if recorded else 1)
    assert all("odd" in warning for warning in warnings)


def test_infinities_of_a_series_are_counted_and_its_nan_recorded(
    client: MlflowClient, writer: RunWriter
) -> None:
    values = np.array([1, np.inf, np.nan, -np.inf, 5], np.float32)
    text = np.array(["a"] * 5)
    writer.log_series(
        {"m": values, "t": text}, steps=np.arange(5), timestamps_ms=np.arange(5, dtype=np.int64)
    )
    assert writer.flush(30)

    stored = dict(history(client, writer.run_id, "m"))
    assert sorted(stored) == [0, 2, 4]
    assert math.isnan(stored[2])
    assert writer.refused == {"m": 2, "t": 5}


@pytest.mark.parametrize("shape", [(4,), (5, 1), ()])
def test_arrays_of_unequal_shape_are_an_error(writer: RunWriter, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"steps of shape \(5,\) and 'm'"):
        writer.log_series({"m": np.zeros(shape)}, steps=np.arange(5), timestamps_ms=np.arange(5))


def test_names_that_mlflow_refuses_are_made_fit(client: MlflowClient, writer: RunWriter) -> None:
    writer.log_metrics({"top_k(5)": 1.0})
    writer.log_params({"a[0]": 1})
    writer.set_tags({"b@c": "d"})
    assert writer.flush(30)

    data = client.get_run(writer.run_id).data
    assert (data.metrics, data.params["a_0_"], data.tags["b_c"]) == ({"top_k_5_": 1.0}, "1", "d")
    assert not writer.refused


def test_names_that_mlflow_would_make_one_have_a_key_each_and_it_is_said_once(
    client: MlflowClient, writer: RunWriter, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        writer.log_metrics({"hit@5": step}, step=step)
        writer.log_metrics({"hit#5": 10 * step, "a/b": 1.0, "a//b": 2.0}, step=step)
        columns = {"hit#5": np.array([30.0]), "hit%5": np.array([7.0])}
        writer.log_series(columns, steps=[10 + step], timestamps_ms=[step])
        writer.log_params({"p@": 1, "p": {"#": 2}, "p#": 3})
        writer.set_tags({"t@": 1, "t#": 2})
    assert writer.flush(30)

    assert history(client, writer.run_id, "hit_5") == [(1, 1), (2, 2)]
    assert history(client, writer.run_id, "hit_5.2") == [(1, 10), (2, 20), (11, 30), (12, 30)]
    assert history(client, writer.run_id, "hit_5.3") == [(11, 7), (12, 7)]
    data = client.get_run(writer.run_id).data
    assert (data.metrics["a/b"], data.metrics["a/b.2"]) == (1.0, 2.0)
    assert data.params == {"p_": "1", "p._": "2", "p_.2": "3"}
    assert (data.tags["t_"], data.tags["t_.2"]) == ("1", "2")
    assert json.loads(data.tags["names.metrics"]) == {
        "hit_5": "hit@5",
        "hit_5.2": "hit#5",
        "hit_5.3": "hit%5",
        "a/b.2": "a//b",
    }
    assert not writer.refused
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(said) == 5
    assert "'hit@5' and 'hit#5'" in said[0]


@pytest.mark.parametrize(
    "value",
    [
        [0.25, 0.5, np.nan],
        (1, 2, 3),
        np.array([0.25, 0.5, 0.75], np.float32),
        np.array([True, False, True]),
        tf.constant([0.25, 0.5, 0.75]),
        tf.constant([0.25, 0.5, 0.75], tf.bfloat16),
    ],
    ids=str,
)
def test_several_numbers_in_one_value_are_a_curve_each(
    client: MlflowClient, writer: RunWriter, value: Any
) -> None:
    for step in (1, 2):
        writer.log_metrics({"val/f1": value, "val/loss": 1.0}, step=step)
    assert writer.flush(30)

    for index in range(3):
        found = history(client, writer.run_id, f"val/f1/{index}")
        np.testing.assert_array_equal(found, [(1, float(value[index])), (2, float(value[index]))])
    assert history(client, writer.run_id, "val/loss") == [(1, 1.0), (2, 1.0)]
    assert not writer.refused


def test_what_a_value_with_several_numbers_may_be(
    client: MlflowClient, writer: RunWriter, caplog: pytest.LogCaptureFixture
) -> None:
    odd = {
        "many": np.zeros(65),
        "none": [],
        "texts": ["a", "b"],
        "ragged": [[1], [2, 3]],
        "complex": 1j,
        "mapping": {"a": 1},
        "object": object(),
    }
    fine = {"matrix": [[1, 2], [3, 4]], "one": np.array([[5.0]]), "most": np.zeros(64)}
    more = {"f1": [1.0, math.inf], "f1/0": 9.0, "decimal": Decimal("0.5")}
    for _ in range(2):
        writer.log_metrics({**odd, **fine, **more})
    assert writer.flush(30)

    metrics = client.get_run(writer.run_id).data.metrics
    assert {key: value for key, value in metrics.items() if not key.startswith("most")} == {
        "matrix/0/0": 1,
        "matrix/0/1": 2,
        "matrix/1/0": 3,
        "matrix/1/1": 4,
        "one": 5,
        "f1/0": 9,
        "f1/0.2": 1,
        "decimal": 0.5,
    }
    assert len([key for key in metrics if key.startswith("most/")]) == 64
    assert writer.refused == dict.fromkeys([*odd, "f1/1"], 2)
    assert len([r for r in caplog.records if "is not recorded" in r.getMessage()]) == 8


def test_an_equal_param_is_skipped_and_a_different_one_becomes_a_tag(
    client: MlflowClient, writer: RunWriter
) -> None:
    client.log_param(writer.run_id, "learning_rate", "'1e-3'")
    client.log_param(writer.run_id, "epochs", "5")
    writer.log_params({"learning_rate": 0.001, "epochs": 6, "optimizer": {"name": "adam"}})
    writer.log_params({"optimizer.name": "sgd"})
    assert writer.flush(30)

    data = client.get_run(writer.run_id).data
    assert data.params == {"learning_rate": "'1e-3'", "epochs": "5", "optimizer.name": "adam"}
    changed = {key: value for key, value in data.tags.items() if key.startswith("param.")}
    assert changed == {"param.epochs.changed": "6", "param.optimizer.name.changed": "sgd"}
    assert not writer.refused


def test_long_values_keep_their_head_and_go_whole_to_an_artifact(
    client: MlflowClient, writer: RunWriter
) -> None:
    long = "".join(f"{number}," for number in range(5000))
    writer.log_params({"layers": long})
    writer.log_params({"layers": long})
    writer.set_tags({"note": long})
    assert writer.flush(30)

    data = client.get_run(writer.run_id).data
    assert data.params == {"layers": long[:6000]}
    assert data.tags["note"] == long[:8000]
    assert "param.layers.changed" not in data.tags
    assert artifact(client, writer.run_id, "params/layers.txt").read_text() == long
    assert artifact(client, writer.run_id, "tags/note.txt").read_text() == long


def test_more_than_a_hundred_params_and_tags_land(client: MlflowClient, writer: RunWriter) -> None:
    writer.log_params({f"p{number}": number for number in range(250)})
    writer.set_tags({f"t{number}": number for number in range(250)})
    assert writer.flush(30)

    data = client.get_run(writer.run_id).data
    assert data.params == {f"p{number}": str(number) for number in range(250)}
    assert {f"t{number}" for number in range(250)} <= data.tags.keys()


def test_files_and_folders_are_copied_when_they_are_handed_in(
    client: MlflowClient, writer: RunWriter, tmp_path: Path
) -> None:
    file, folder = tmp_path / "a.txt", tmp_path / "folder"
    file.write_text("one")
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "b.txt").write_text("two")
    writer.log_artifact(file, "texts")
    writer.log_artifact(folder)
    file.write_text("changed")
    (folder / "inner" / "b.txt").unlink()
    assert writer.flush(30)

    assert artifact(client, writer.run_id, "texts/a.txt").read_text() == "one"
    assert artifact(client, writer.run_id, "folder/inner/b.txt").read_text() == "two"


def test_a_missing_file_is_an_error_at_once(writer: RunWriter, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt"):
        writer.log_artifact(tmp_path / "nothing.txt")


def test_copies_do_not_stay_behind(
    writer: RunWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    writer.log_text("hello", "a.txt")
    assert writer.flush(30)
    writer.log_artifact(__file__)
    assert writer.flush(30)
    assert list((tmp_path / "temporary").iterdir()) == []


# MLflow 3.17 selects columns of text in a way that pandas 3 deprecates.
@pytest.mark.quick
@pytest.mark.filterwarnings("ignore:For backward compatibility, 'str' dtypes are included")
def test_figure_text_dict_and_table_land_as_mlflow_writes_them(
    client: MlflowClient, writer: RunWriter
) -> None:
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    rows = {"name": ["a"], "value": [1.5]}
    writer.log_figure(figure, "figures/curve.png")
    plt.close(figure)
    writer.log_text("größe", "texts/a.txt")
    writer.log_dict({"b": 1}, "c.json")
    writer.log_table(rows, "comparison.json")
    rows["value"][0] = 9.0  # what was handed in is a copy
    writer.log_table(pd.DataFrame({"name": ["z"], "value": [2.5]}), "more.json")
    writer.log_table({"name": "a whole", "value": 1}, "replaced.json")
    writer.log_table({"name": "another", "value": np.float32(2)}, "replaced.json")
    assert writer.flush(30)

    assert not writer.refused
    assert artifact(client, writer.run_id, "figures/curve.png").read_bytes()[:4] == b"\x89PNG"
    assert artifact(client, writer.run_id, "texts/a.txt").read_text("utf-8") == "größe"
    table = mlflow.load_table("comparison.json", run_ids=[writer.run_id])
    assert table.values.tolist() == [["a", 1.5]]
    table = mlflow.load_table("more.json", run_ids=[writer.run_id])
    assert table.values.tolist() == [["z", 2.5]]
    table = mlflow.load_table("replaced.json", run_ids=[writer.run_id])
    assert table.values.tolist() == [["another", 2.0]]
    tags = client.get_run(writer.run_id).data.tags
    listed = [each["path"] for each in json.loads(tags["mlflow.loggedArtifacts"])]
    assert listed == ["comparison.json", "more.json", "replaced.json"]


def test_closing_delivers_what_is_left_and_then_the_status(
    client: MlflowClient, writer: RunWriter, caplog: pytest.LogCaptureFixture
) -> None:
    writer.log_metrics({"m": 1.0})
    writer.log_status("KILLED")
    assert writer.close(30)
    writer.log_metrics({"late": 1.0})
    writer.log_metrics({"late": 2.0})

    run = client.get_run(writer.run_id)
    assert (run.info.status, run.data.metrics) == ("KILLED", {"m": 1.0})
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        f"Run {writer.run_id} has ended here and takes no more values."
    ]
    assert writer.flush(None)


def test_many_threads_hand_in_at_once(client: MlflowClient, writer: RunWriter) -> None:
    def hand_in(number: int) -> None:
        for step in range(100):
            writer.log_metrics({f"m{number}": step}, step=step)

    threads = [threading.Thread(target=hand_in, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.flush(60)

    for number in range(8):
        assert history(client, writer.run_id, f"m{number}") == [(i, i) for i in range(100)]

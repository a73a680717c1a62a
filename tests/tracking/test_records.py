"""What a run is told, and its way through a journal."""

import math
from pathlib import Path

import numpy as np
import pytest
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

from mlflow_keras_adv.tracking.records import (
    ROWS_AT_ONCE,
    Artifact,
    Deletion,
    End,
    Input,
    Model,
    Params,
    Points,
    Record,
    Refusal,
    Series,
    Table,
    Tags,
    decode,
    encode,
)


@pytest.mark.parametrize("rows", [0, 1, ROWS_AT_ONCE, ROWS_AT_ONCE + 1])
def test_a_series_is_its_values_row_by_row(rows: int) -> None:
    column = np.ma.masked_array(np.arange(rows, dtype=np.float64), mask=np.arange(rows) % 2 == 1)
    series = Series(
        {"a(b)": np.ma.array(np.arange(rows)), "c": column}, np.arange(rows), np.arange(rows) + 5
    )

    values = [(m.key, m.value, m.timestamp, m.step) for m in series]
    expected = [
        (key, row, row + 5, row) for row in range(rows) for key in ("a_b_", "c")[: 2 - row % 2]
    ]
    assert values == expected
    assert len(series) == series.points == len(expected)


@pytest.mark.parametrize(
    "item",
    [
        Params({"a": 1, "b": 0.1, "c": None, "d": "ü\nx", "e": True, "big": 2**80}),
        Tags({"t": "lone \ud800 surrogate"}),
        Table('{"columns": []}', "t.json"),
        Deletion("x/y"),
        Refusal("m", "an infinity", 3),
        End("KILLED", 1_700_000_000_000),
    ],
)
def test_a_plain_item_comes_back_as_it_was(item: Record, tmp_path: Path) -> None:
    assert decode(encode(item, tmp_path), tmp_path) == item


def test_points_come_back_with_model_dataset_and_nan(tmp_path: Path) -> None:
    item = Points([Metric("a", 1 / 3, 7, 2), Metric("b", math.nan, 8, -1, "m-1", "data", "digest")])
    back = decode(encode(item, tmp_path), tmp_path)
    assert isinstance(back, Points)
    assert [dict(metric) for metric in back.metrics[:1]] == [dict(item.metrics[0])]
    second = back.metrics[1]
    assert math.isnan(second.value)
    assert (second.step, second.model_id) == (-1, "m-1")
    assert (second.dataset_name, second.dataset_digest) == ("data", "digest")


def test_a_series_comes_back_with_types_masks_and_nan(tmp_path: Path) -> None:
    columns = {
        "f": np.ma.masked_array(np.array([1.5, np.nan, 3], np.float32), [False, False, True]),
        "i": np.ma.array(np.array([1, 2, 3], np.int8)),
    }
    item = Series(columns, np.arange(3), np.arange(3) + 10)
    back = decode(encode(item, tmp_path), tmp_path)
    assert isinstance(back, Series)
    assert [str(metric) for metric in back] == [str(metric) for metric in item]
    assert {name: column.dtype for name, column in back.columns.items()} == {
        "f": np.float32,
        "i": np.int8,
    }


def test_a_dataset_comes_back(tmp_path: Path) -> None:
    entity = Dataset("digits", "abc", "external", "{}", None, None)
    item = Input(DatasetInput(entity, [InputTag("mlflow.data.context", "test")]))
    back = decode(encode(item, tmp_path), tmp_path)
    assert isinstance(back, Input)
    assert dict(back.dataset.dataset) == dict(entity)
    assert [(tag.key, tag.value) for tag in back.dataset.tags] == [("mlflow.data.context", "test")]


def test_copies_of_files_are_found_where_the_journal_lies_now(tmp_path: Path) -> None:
    before, now = tmp_path / "before", tmp_path / "now"
    inside = Artifact(before / "x" / "file.txt", "folder")
    model = Model("pending-1", before / "y" / "m", "net", {"a": "1"}, {}, None, 3, None)
    assert decode(encode(inside, before), now) == Artifact(now / "x" / "file.txt", "folder")
    back = decode(encode(model, before), now)
    assert isinstance(back, Model)
    assert back.path == now / "y" / "m"
    elsewhere = Artifact(tmp_path / "z" / "file.txt", None)
    assert decode(encode(elsewhere, before), now) == elsewhere


def test_a_record_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'Novelty', which this version does not know"):
        decode(b'{"kind":"Novelty"}\n', tmp_path)


def test_everything_has_names() -> None:
    assert Points([Metric("a", 1, 0, 0), Metric("a", 2, 0, 1)]).names == {"a": 2}
    assert Refusal("inf", "", 3).names == {"inf": 3}
    assert Params({"p": 1}).names == {"p": 1}
    assert End("FINISHED", 0).names == {"status FINISHED": 1}

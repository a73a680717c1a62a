"""Real .csv and .parquet files, each broken in one way, beside what pandas reads of them."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlflow_keras_adv.errors import UserError
from projects import data, tables

COLUMNS = {"kinds": ("columns",), "goals": ("classes", "numbers")}
SPLITS = ("train", "validation", "test")


def frame(**changes: Any) -> pd.DataFrame:
    """60 houses: two numbers, a text, and both kinds of target; None removes a column."""
    rows = np.arange(60)
    good: dict[str, Any] = {
        "area": 50 + rows / 2,
        "rooms": 1 + rows % 5,
        "street": np.array(["elm", "oak", "ash"])[rows % 3],
        "price": 1000.5 + rows * 10,
        "kind": np.array(["flat", "house"])[rows % 2],
    }
    return pd.DataFrame({k: v for k, v in {**good, **changes}.items() if v is not None})


def write(folder: Path, end: str = "csv", **changes: Any) -> str:
    path = folder / f"houses.{end}"
    made = frame(**changes)
    if end == "csv":
        made.to_csv(path, index=False)
    else:
        made.to_parquet(path, index=False)
    return str(path)


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_each_row_is_in_one_split_with_its_target(end: str, tmp_path: Path) -> None:
    loaded = data.load(write(tmp_path, end), target="price", **COLUMNS)

    assert (loaded.name, loaded.kind, loaded.classes) == (f"houses.{end}", "columns", 0)
    assert [len(getattr(loaded, f"y_{split}")) for split in SPLITS] == [38, 7, 15]
    read = {
        float(y): [loaded_x[name][row, 0] for name in ("area", "rooms", "street", "kind")]
        for split in SPLITS
        for loaded_x, labels in [getattr(loaded, split)]
        for row, y in enumerate(labels)
    }
    expected = frame().astype({"price": np.float32}).set_index("price").to_dict("index")
    assert read == {float(price): list(row.values()) for price, row in expected.items()}
    dtypes = {name: values.dtype for name, values in loaded.x_train.items()}
    numbers, texts = np.dtype(np.float32), np.dtype(object)
    assert dtypes == {"area": numbers, "rooms": numbers, "street": texts, "kind": texts}


def test_texts_and_integers_are_classes_in_their_order(tmp_path: Path) -> None:
    path = write(tmp_path)
    kinds = data.load(path, target="kind", **COLUMNS)
    rooms = data.load(path, target="rooms", **COLUMNS)

    assert (kinds.classes, kinds.class_names) == (2, ("flat", "house"))
    np.testing.assert_array_equal((kinds.x_test["area"][:, 0] - 50) * 2 % 2, kinds.y_test)
    assert (rooms.classes, rooms.class_names) == (5, ("1", "2", "3", "4", "5"))
    numbers = data.load(path, target="rooms", kinds=("columns",), goals=("numbers",))
    assert sorted(set(numbers.y_train)) == [1, 2, 3, 4, 5]


def test_columns_of_numbers_are_features_for_who_takes_these(tmp_path: Path) -> None:
    path = write(tmp_path, street=None)
    loaded = data.load(path, target="kind", kinds=("images", "features"))

    assert (loaded.kind, loaded.input_shape) == ("features", (3,))
    assert loaded.x_test[0] in frame()[["area", "rooms", "price"]].to_numpy(np.float32)


def test_truth_values_and_categories_are_what_they_stand_for(tmp_path: Path) -> None:
    street = pd.Categorical(frame()["street"])
    path = write(tmp_path, "parquet", new=np.arange(60) % 2 == 0, street=street)
    loaded = data.load(path, target="kind", **COLUMNS)

    np.testing.assert_array_equal(loaded.x_test["new"][:, 0], 1 - loaded.y_test)
    assert set(loaded.x_test["street"].flat) == {"elm", "oak", "ash"}


def test_the_test_rows_are_the_same_for_every_seed_and_so_is_the_digest(tmp_path: Path) -> None:
    path = write(tmp_path)
    first, other = (data.load(path, target="kind", seed=seed, **COLUMNS) for seed in (0, 1))
    changed = data.load(
        write(tmp_path, street=["beech", *frame()["street"][1:]]), target="kind", **COLUMNS
    )

    np.testing.assert_array_equal(first.x_test["area"], other.x_test["area"])
    assert not np.array_equal(first.x_validation["area"], other.x_validation["area"])
    assert first.digest == other.digest != changed.digest


@pytest.mark.parametrize("name", tables.TABLES)
def test_the_tables_of_scikit_learn_need_no_file(name: str) -> None:
    loaded = data.load(name, **COLUMNS)

    assert loaded.classes == {"diabetes": 0, "breast_cancer": 2, "wine": 3}[name]
    texts = [column for column, values in loaded.x_train.items() if values.dtype == object]
    assert texts == (["color"] if name == "wine" else [])
    assert not [column for column in loaded.x_train if "/" in column]


PRICE = {"target": "price"}
BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {}, "target: houses.csv has the columns area, .*; give the one .* --target kind"),
    ({}, {"target": "prize"}, "target: got 'prize', but houses.csv has the columns area, rooms"),
    (
        {"area": [np.nan, 1, np.nan, *range(57)], "kind": [None] + ["flat"] * 59},
        PRICE,
        r"2 of 60 rows have empty cells .*'area' \(2\), 'kind' \(1\), first in row 1; fill",
    ),
    ({"price": [np.nan] * 60}, PRICE, "60 of 60 rows have empty cells"),
    ({"rooms": ["?", *range(59)]}, PRICE, r"'rooms' mixes .* '0' and '\?' \(59 numbers in 60"),
    ({"price": ["cheap", *range(59)]}, PRICE, "'price' mixes numbers and texts"),
    ({"rooms": [1e39] * 60}, PRICE, "'rooms' holds numbers that are infinite, or beyond"),
    ({"street": [f"no {n}" for n in range(60)]}, PRICE, "'street' has another text in each of"),
    ({"price": range(60)}, PRICE, "price has 60 different values in 60 rows, which are taken for"),
    ({"kind": "flat"}, {"target": "kind"}, "one class only, 'flat'"),
    ({"kind": ["barn", *["flat"] * 59]}, {"target": "kind"}, "has 1 of the class 'barn' examples"),
    ({"price": 1.5}, PRICE, "every number to predict is 1.5; nothing to learn"),
    ({"a/b": range(60)}, PRICE, "column 'a/b': .*Keras takes no '/' in a name; rename it"),
    (
        dict.fromkeys(("area", "rooms", "street", "kind")),
        PRICE,
        "has no column but 'price': nothing to predict it from",
    ),
    ({}, {**PRICE, "kinds": ("images",)}, "holds columns of a table, .*takes images .*`tabular`"),
    (
        {},
        {**PRICE, "kinds": ("features",), "goals": ("numbers",)},
        "holds texts in 2 columns, but this script takes features .*`tabular`: street, kind",
    ),
    ({}, {**PRICE, "goals": ("classes",)}, "price has the dtype float64, .*`regression`"),
    (
        {},
        {"target": "kind", "goals": ("numbers",)},
        "holds texts such as 'flat' in the column to predict, .*takes numbers to predict",
    ),
]


@pytest.mark.parametrize(("changes", "arguments", "complaint"), BAD)
def test_a_bad_table_is_named(
    changes: dict[str, Any], arguments: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    path = write(tmp_path, **changes)

    with pytest.raises(UserError, match=f"houses.csv.*{complaint}|{complaint}"):
        data.load(path, **{**COLUMNS, **arguments})


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([datetime.date(2020, 1, 1)] * 60, "date"),
        ([pd.Timestamp("2020-01-01")] * 60, "Timestamp"),
        ([b"a"] * 60, "bytes"),
        ([[1, 2]] * 60, "ndarray"),
    ],
)
def test_a_column_of_another_kind_is_refused(values: Any, found: str, tmp_path: Path) -> None:
    path = write(tmp_path, "parquet", rooms=values)

    with pytest.raises(UserError, match=f"column 'rooms' holds {found}, expected numbers alone"):
        data.load(path, target="price", **COLUMNS)


def test_row_numbers_that_pandas_wrote_are_no_column(tmp_path: Path) -> None:
    path = tmp_path / "houses.csv"
    frame().to_csv(path)

    with pytest.raises(UserError, match="first column has no name, .*index=False"):
        data.load(str(path), target="price", **COLUMNS)


FILES = {
    "nothing": (b"", "cannot be read"),
    "no rows": (b"a,b\n", "has no rows"),
    "semicolons": (b"a;b\n1;2\n", "the columns a;b; .*separated by commas"),
    "another encoding": ("a,b\nä,1\n".encode("utf-16"), "cannot be read"),
    "one more cell": (b"a,b\n1,2\n1,2,3\n", "cannot be read .*fields"),
}


@pytest.mark.parametrize(("content", "complaint"), FILES.values(), ids=FILES)
def test_a_file_of_another_kind_is_a_user_error(
    content: bytes, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)

    with pytest.raises(UserError, match=f"a.csv.*{complaint}"):
        data.load(str(path), target="b", **COLUMNS)


def test_damaged_parquet_is_a_user_error(tmp_path: Path) -> None:
    path = Path(write(tmp_path, "parquet"))
    whole = path.read_bytes()
    for kept in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match="cannot be read"):
            data.load(str(path), target="price", **COLUMNS)


def test_an_address_is_not_fetched() -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        data.load("https://127.0.0.1/a.csv", target="b", **COLUMNS)

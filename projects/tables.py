"""Tables for the scripts: scikit-learn's own, .csv and .parquet files; columns of numbers or texts.

Read by pandas, from this machine only, and never unpickled.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api import types
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

from mlflow_keras_adv.errors import UserError

TABLES = ("diabetes", "breast_cancer", "wine")
FILES = (".csv", ".parquet")
WORDS = ("pale", "light", "medium", "deep", "dark")  # of the wines, by their colour intensity

Columns = Mapping[str, NDArray[np.generic]]


def builtin(name: str) -> tuple[Columns, NDArray[np.generic]]:
    """One of `TABLES`: columns in their own units, and the target.

    `diabetes` has a number to predict, the others have classes. The wines' colour is a word.
    """
    if name == "diabetes":
        bunch = load_diabetes(as_frame=True, scaled=False)
    else:
        bunch = {"breast_cancer": load_breast_cancer, "wine": load_wine}[name](as_frame=True)
    frame = bunch.data.rename(columns=lambda column: column.replace(" ", "_").replace("/", "_"))
    if name == "wine":
        # Cut where a fifth of the wines lies between two words; the number itself is left out.
        words = pd.qcut(frame.pop("color_intensity"), len(WORDS), labels=list(WORDS))
        frame["color"] = words.astype(str)
    return _columns(frame, name), bunch.target.to_numpy()


def read(path: Path, target: str) -> tuple[Columns, NDArray[np.generic]]:
    """The columns of a file, and the one that is to be predicted.

    Args:
        path: Ends in .csv (commas, UTF-8, a line of names first) or .parquet.
        target: Name of the column to predict.

    Returns:
        The other columns by name, shape [n, 1]: float32, or texts of dtype object. And the target,
        shape [n]: texts, integers or floats.

    Raises:
        UserError: It cannot be read, has no such column, or a column with empty cells, or one that
            is neither of numbers nor of texts.
    """
    frame = _frame(path)
    frame.columns = [str(name) for name in frame.columns]
    known = ", ".join(frame.columns)
    if not target:
        raise UserError(
            f"target: {path.name} has the columns {known}; give the one to predict, for example "
            f"--target {frame.columns[-1] if len(frame.columns) else 'COLUMN'}"
        )
    if target not in frame.columns:
        hint = "; columns are separated by commas" if len(frame.columns) == 1 else ""
        raise UserError(
            f"target: got {target!r}, but {path.name} has the columns {known}; give one of "
            f"these{hint}"
        )
    if len(frame) == 0:
        raise UserError(f"{path.name} has no rows; each is an example to learn from or to test on")
    if len(frame.columns) == 1:
        raise UserError(f"{path.name} has no column but {target!r}: nothing to predict it from")
    _check_names(frame, path.name)
    _check_cells(frame, path.name)
    y = _column(frame.pop(target), path.name)
    return _columns(frame, path.name), y


def _frame(path: Path) -> pd.DataFrame:
    try:
        with path.open("rb") as file:  # pandas would take an address of the internet too
            if path.suffix.lower() == ".csv":
                return pd.read_csv(file, low_memory=False)
            return pd.read_parquet(file)
    except OSError as error:
        raise UserError(
            f"{path.absolute()} cannot be read: {error.strerror or error}; "
            "give the path of a .csv or .parquet file"
        ) from error
    except UserError:
        raise
    except Exception as error:  # what damaged bytes raise in pandas and pyarrow has no end
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be read ({reason}); write it with "
            f"DataFrame.to_{path.suffix.lower().lstrip('.')}(path, index=False)"
        ) from error


def _check_names(frame: pd.DataFrame, file: str) -> None:
    names = list(frame.columns)
    if names[0] == "" or names[0].startswith("Unnamed: "):
        raise UserError(
            f"{file}: the first column has no name, as when DataFrame.to_csv writes the row "
            "numbers, which are no property of an example; write it with index=False"
        )
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise UserError(f"{file} has two columns {double[0]!r}; give each a name of its own")
    barred = [name for name in names if "/" in name]
    if barred:
        raise UserError(
            f"{file}: column {barred[0]!r}: the model's inputs are called as the columns are, and "
            "Keras takes no '/' in a name; rename it"
        )


def _check_cells(frame: pd.DataFrame, file: str) -> None:
    empty = frame.isna()
    rows = empty.any(axis=1)
    if rows.any():
        counts = empty.sum()
        worst = ", ".join(f"{name!r} ({count})" for name, count in counts[counts > 0].items())
        raise UserError(
            f"{file}: {int(rows.sum())} of {len(frame)} rows have empty cells (NaN, NA, None), in "
            f"the columns {worst}, first in row {int(rows.argmax()) + 1}; fill them or drop the "
            "rows (DataFrame.fillna, .dropna)"
        )


def _columns(frame: pd.DataFrame, file: str) -> Columns:
    found: dict[str, NDArray[np.generic]] = {}
    for name in frame.columns:
        array = _column(frame[name], file)
        if array.dtype == object:
            if len(array) > 1 and len(set(array)) == len(array):
                raise UserError(
                    f"{file}: column {name!r} has another text in each of the {len(array)} rows: "
                    "it names the rows and says nothing of the next one; drop it"
                )
        else:
            with np.errstate(over="ignore"):
                array = array.astype(np.float32)
            if not np.isfinite(array).all():
                raise UserError(
                    f"{file}: column {name!r} holds numbers that are infinite, or beyond float32; "
                    "scale them, or drop the rows"
                )
        found[name] = array[:, np.newaxis]
    return found


def _column(column: "pd.Series[object]", file: str) -> NDArray[np.generic]:
    """Shape [n]: numbers in a dtype of NumPy, texts as objects; truth values are 0 and 1."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    if types.is_unsigned_integer_dtype(column.dtype):
        return column.to_numpy(dtype=np.uint64)
    if types.is_integer_dtype(column.dtype) or types.is_bool_dtype(column.dtype):
        return column.to_numpy(dtype=np.int64)
    if types.is_float_dtype(column.dtype):
        return column.to_numpy(dtype=np.float64)
    values = column.to_numpy(dtype=object)
    kinds = sorted({type(value).__name__ for value in values})
    if kinds != ["str"]:
        raise UserError(
            f"{file}: column {column.name!r} holds {' and '.join(kinds)}, expected numbers alone "
            "or texts alone; convert or drop it"
        )
    numeric = pd.to_numeric(column, errors="coerce").notna()
    if numeric.any() and not numeric.all():
        examples = values[numeric.argmax()], values[(~numeric).argmax()]
        raise UserError(
            f"{file}: column {column.name!r} mixes numbers and texts, such as {examples[0]!r} and "
            f"{examples[1]!r} ({int(numeric.sum())} numbers in {len(values)} rows); make it one of "
            "the two: replace the texts, or put a letter before the numbers"
        )
    return values

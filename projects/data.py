"""Examples for the scripts: images, features or columns, with classes or with numbers to predict.

`load` reads datasets of scikit-learn and Keras, .npz, .csv and .parquet files, and folders of
images. A script says what it can train on; other data are rejected with a sentence.
"""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from mlflow_keras_adv import Dataset
from mlflow_keras_adv.errors import UserError
from projects import image_folders, tables

KERAS_DATASETS = ("keras:mnist", "keras:fashion_mnist", "keras:cifar10", "keras:cifar100")
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
TEST_FRACTION = 0.25  # of data that come in one piece
VALIDATION_FRACTION = 0.15
LARGEST_SEED = 2**32 - 1  # of NumPy's global generator, which scikit-learn and Keras seed

Kind = Literal["images", "features", "columns"]
Goal = Literal["classes", "numbers"]
SAID: Mapping[str, str] = {
    "images": "images [n, height, width] or [n, height, width, channels]",
    "features": "features [n, k], a row of numbers for each example",
    "columns": "columns of a table, numbers or texts",
    "classes": "classes to tell apart",
    "numbers": "numbers to predict",
}


@dataclass(frozen=True, eq=False)
class Data:
    """A dataset in three splits.

    Attributes:
        name: `digits`, `keras:mnist` or the name of the file.
        x_train: Images [n, height, width, channels], float32 from 0 to 1; or features [n, k],
            float32 in their own units; or columns, a dict of arrays [n, 1] by name, float32 or
            texts. So are the other two.
        y_train: Labels [n], int32 from 0 to `classes - 1`, or float32 [n] to predict; so are the
            other two.
        x_validation: Held out of the training examples, differently for each seed.
        y_validation: Their labels.
        x_test: The same for every seed, so that runs with different seeds can be compared.
        y_test: Their labels.
        classes: Number of classes; 0 if numbers are to be predicted.
        digest: 32 hexadecimal digits that identify examples and labels; the same for every seed.
        class_names: Names in the table or the folder; "0", "1", … for arrays.
    """

    name: str
    x_train: Any
    y_train: NDArray[Any]
    x_validation: Any
    y_validation: NDArray[Any]
    x_test: Any
    y_test: NDArray[Any]
    classes: int
    digest: str
    class_names: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """The kind of the examples."""
        return _kind(self.x_train)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Height, width and channels of an image, or the number of features; not of columns."""
        return tuple(self.x_train.shape[1:])

    @property
    def train(self) -> tuple[Any, NDArray[Any]]:
        """Examples and labels to train on."""
        return self.x_train, self.y_train

    @property
    def validation(self) -> tuple[Any, NDArray[Any]]:
        """Examples and labels to validate on."""
        return self.x_validation, self.y_validation

    @property
    def test(self) -> tuple[Any, NDArray[Any]]:
        """Examples and labels to test the finished model on."""
        return self.x_test, self.y_test

    @property
    def dataset(self) -> Dataset:
        """Name and digest, as they are recorded."""
        return Dataset(self.name, self.digest)

    def batches(self, batch_size: int) -> Any:
        """A `tf.data.Dataset` of the training examples, in another order in each epoch."""
        import tensorflow as tf  # takes seconds, and only loops of one's own ask for this

        examples = tf.data.Dataset.from_tensor_slices(self.train)
        return examples.shuffle(len(self.y_train)).batch(batch_size)

    def entrance(self, dtype: Any = None) -> list[Any]:
        """Makes the first layers of a dense net: they flatten images, or standardize features.

        Mean and variance of the training features are part of the model, so that it takes features
        in their own units.

        Args:
            dtype: Policy of the layer that flattens images. Features are standardized in float32,
                because their values may exceed the range of 16 bits.

        Returns:
            The layers.
        """
        import keras  # takes seconds, too

        if self.kind == "images":
            return [keras.Input(self.input_shape), keras.layers.Flatten(dtype=dtype)]
        scores = keras.layers.Normalization()
        scores.adapt(self.x_train)
        return [keras.Input(self.input_shape), scores]


@dataclass(frozen=True, eq=False)
class _Found:
    """What a source holds, in the two splits that it came with or was parted in."""

    name: str
    x_train: Any
    y_train: NDArray[Any]
    x_test: Any
    y_test: NDArray[Any]
    class_names: tuple[str, ...] = ()


def load(
    data: str = "digits",
    *,
    target: str = "",
    seed: int = 0,
    kinds: Sequence[Kind] = ("images",),
    goals: Sequence[Goal] = ("classes",),
) -> Data:
    """Loads a dataset and holds 15 % of its training examples out for validation.

    Args:
        data: One of these, of which nothing is ever unpickled:

            - `digits` (1797 images of 8x8x1, nothing to download), or one of `KERAS_DATASETS`
              (downloaded once);
            - `diabetes`, `breast_cancer` or `wine`, tables of scikit-learn's;
            - the path of an `.npz` file with the arrays x_train, y_train, x_test and y_test:
              images [n, height, width] or [n, height, width, channels], as uint8 from 0 to 255 or
              as floats from 0 to 1, or features [n, k]; labels [n] or [n, 1], integers from 0 for
              classes and floats to predict;
            - the path of a `.csv` or `.parquet` file, with `target`;
            - a folder with a subfolder of images for each class.

            A quarter of the latter two, and of the embedded ones, is the test split.
        target: Column of a table that is to be predicted: texts and integers are classes, floats
            are numbers to predict. Where only numbers are taken, integers are such.
        seed: Chooses the validation examples, in the same proportions of classes as the rest.
        kinds: The kinds of examples that the caller can train on. If that includes features, a
            table of numbers is read as features.
        goals: The kinds of labels that it can learn.

    Raises:
        UserError: There is no such dataset, it cannot be read or downloaded, it is not as described
            above, or the caller cannot train on it.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"seed: got {seed}, expected 0 to {LARGEST_SEED}; choose another")
    table = data in tables.TABLES or data.lower().endswith(tables.FILES)
    if target and (not table or data in tables.TABLES):
        raise UserError(
            f"target: got {target!r}, but {data} has no column to choose; leave it out, or give a "
            ".csv or .parquet file"
        )
    if data == "digits":
        found = _of_arrays(data, _digits(), kinds, goals)
    elif data in KERAS_DATASETS:
        found = _of_arrays(data, _download(data), kinds, goals)
    elif table:
        builtin = data in tables.TABLES
        x, y = tables.builtin(data) if builtin else tables.read(Path(data), target)
        found = _of_table(data if builtin else Path(data).name, x, y, target, kinds, goals)
    elif data.lower().endswith(".npz"):
        found = _of_arrays(Path(data).name, _read(Path(data)), kinds, goals)
    elif data and _is_folder(data):
        found = _of_folder(Path(data), kinds, goals)
    else:
        known = ", ".join(("digits", *KERAS_DATASETS, *tables.TABLES))
        raise UserError(
            f"data: got {data!r}, which is neither a known dataset nor a file or folder of "
            f"examples; give one of {known}, or the path of a folder of images or of a file that "
            "ends in .npz, .csv or .parquet"
        )

    classes = _check_together(found)
    y = found.y_train
    kept, held_out = train_test_split(
        np.arange(len(y)),
        test_size=VALIDATION_FRACTION,
        stratify=y if classes else None,
        random_state=seed,
    )
    return Data(
        name=found.name,
        x_train=_rows(found.x_train, kept),
        y_train=y[kept],
        x_validation=_rows(found.x_train, held_out),
        y_validation=y[held_out],
        x_test=found.x_test,
        y_test=found.y_test,
        classes=classes,
        digest=_digest(found.x_train, found.y_train, found.x_test, found.y_test),
        class_names=found.class_names or tuple(str(number) for number in range(classes)),
    )


def _is_folder(data: str) -> bool:
    try:
        return Path(data).is_dir()
    except OSError:  # a name that is too long
        return False


def _kind(x: Any) -> Kind:
    if isinstance(x, Mapping):
        return "columns"
    return "features" if x.ndim == 2 else "images"


def _rows(x: Any, chosen: NDArray[np.generic]) -> Any:
    if isinstance(x, Mapping):
        return {name: column[chosen] for name, column in x.items()}
    return x[chosen]


def _refuse(name: str, got: str, taken: Sequence[str], how: str) -> UserError:
    expected = " or ".join(SAID[each] for each in taken)
    return UserError(f"{name} holds {got}, but this script takes {expected}; {how}")


def _of_arrays(
    name: str,
    arrays: Mapping[str, NDArray[np.generic]],
    kinds: Sequence[Kind],
    goals: Sequence[Goal],
) -> _Found:
    x_train, x_test = (
        _examples(arrays[key], f"{name}: {key}", kinds) for key in ("x_train", "x_test")
    )
    y_train, y_test = (
        _labels(arrays[key], f"{name}: {key}", goals) for key in ("y_train", "y_test")
    )
    return _Found(name, x_train, y_train, x_test, y_test)


def _of_table(
    name: str,
    columns: tables.Columns,
    y: NDArray[np.generic],
    target: str,
    kinds: Sequence[Kind],
    goals: Sequence[Goal],
) -> _Found:
    """Columns, or the features that columns of numbers are, parted in two."""
    texts = [column for column, values in columns.items() if values.dtype == object]
    x: Any = columns
    if "columns" not in kinds or ("features" in kinds and not texts):
        if "features" not in kinds:
            how = "`tabular` and `regression` take tables"
            raise _refuse(name, SAID["columns"], kinds, how)
        if texts:
            how = f"leave it out, or use `tabular`: {', '.join(texts)}"
            raise _refuse(name, f"texts in {len(texts)} columns", kinds, how)
        x = np.concatenate(list(columns.values()), axis=1)
    what = f"{name}: {target or 'the target'}"
    if y.dtype == object or (y.dtype.kind in "iu" and "classes" in goals):
        if "classes" not in goals:
            example = f"texts such as {y[0]!r} in the column to predict"
            raise _refuse(name, example, goals, "`tabular` tells classes apart")
        names, y = np.unique(y, return_inverse=True)
        if y.size and len(names) > len(y) / 2 and len(names) > 2:
            raise UserError(
                f"{what} has {len(names)} different values in {len(y)} rows, which are taken for "
                "classes; write numbers to predict as floats, 3.0 instead of 3"
            )
        return _parted(name, x, y.astype(np.int32), tuple(str(each) for each in names))
    return _parted(name, x, _labels(y.astype(float), what, goals), ())


def _of_folder(folder: Path, kinds: Sequence[Kind], goals: Sequence[Goal]) -> _Found:
    for given, taken in (("images", kinds), ("classes", goals)):
        if given not in taken:
            raise _refuse(str(folder), SAID[given], taken, "a folder is for scripts about images")
    images, labels = image_folders.read(folder)
    names, y = np.unique(labels, return_inverse=True)
    x = np.divide(images, 255, dtype=np.float32)
    return _parted(folder.resolve().name, x, y.astype(np.int32), tuple(map(str, names)))


def _parted(name: str, x: Any, y: NDArray[np.generic], class_names: tuple[str, ...]) -> _Found:
    """A quarter is the test split, in the proportions of classes."""
    counts = np.bincount(y) if class_names else np.array([len(y)])
    if len(class_names) == 1:
        raise UserError(f"{name} holds one class only, {class_names[0]!r}; at least two are needed")
    fewest = counts.argmin()
    if counts[fewest] < 4:
        of_class = f"{counts[fewest]} of the class {class_names[fewest]!r}" if class_names else ""
        raise UserError(
            f"{name} has {of_class or len(y)} examples; at least 4 are needed, "
            "to train on and to hold out for validation and for the test"
        )
    train, test = train_test_split(
        np.arange(len(y)),
        test_size=TEST_FRACTION,
        stratify=y if class_names else None,
        random_state=0,  # never the run's seed: the test examples stay where they are
    )
    return _Found(name, _rows(x, train), y[train], _rows(x, test), y[test], class_names)


def _digits() -> Mapping[str, NDArray[np.generic]]:
    digits = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(
        digits.images / 16,  # grey levels 0 to 16
        digits.target,
        test_size=TEST_FRACTION,
        stratify=digits.target,
        random_state=0,  # never the run's seed: the test images stay where they are
    )
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def _download(data: str) -> Mapping[str, NDArray[np.generic]]:
    import keras  # takes seconds, and only these datasets need it

    dataset = getattr(keras.datasets, data.removeprefix("keras:"))
    try:
        (x_train, y_train), (x_test, y_test) = dataset.load_data()
    except Exception as error:  # Keras raises a bare Exception when a download fails
        raise UserError(
            f"data: {data} could not be downloaded ({error}); connect to the internet and run "
            "again, or go on without: digits needs no download, nor does an .npz file of your own"
        ) from error
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def _read(path: Path) -> Mapping[str, NDArray[np.generic]]:
    how = "write it with numpy.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)"
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise UserError(f"{path} is not an .npz file, or the end of it is missing; {how}")
            file.seek(0)
            archive = np.load(file, allow_pickle=False)
            absent = [name for name in ARRAYS if name not in archive.files]
            if absent:
                raise UserError(
                    f"{path} holds {', '.join(archive.files) or 'no arrays'}, "
                    f"but not {', '.join(absent)}; {how}"
                )
            return {name: archive[name] for name in ARRAYS}
    except OSError as error:
        raise UserError(
            f"{path.absolute()} cannot be read: {error.strerror or error}; "
            "give the path of an .npz file"
        ) from error
    except UserError:
        raise
    except Exception as error:  # what damaged bytes raise in zipfile, zlib and numpy has no end
        if "Object arrays" in str(error):
            raise UserError(
                f"{path} holds Python objects, which are not loaded because unpickling them can "
                "run code; save arrays of numbers, for example numpy.stack(images)"
            ) from error
        raise UserError(f"{path} cannot be read ({error}); {how}") from error


def _examples(array: NDArray[np.generic], what: str, kinds: Sequence[Kind]) -> NDArray[np.float32]:
    """Checked: images scaled to 0..1 with a channel axis, or features; float32."""
    _check_array(array, what)
    if array.ndim not in (2, 3, 4):
        expected = " or ".join(SAID[kind] for kind in kinds if kind != "columns") or "a table"
        raise UserError(f"{what} has the shape {array.shape}, expected {expected}; reshape it")
    if (kind := "features" if array.ndim == 2 else "images") not in kinds:
        expected = " or ".join(SAID[each] for each in kinds)
        lay_flat = kind == "images" and "features" in kinds
        how = "images become features with x.reshape(len(x), -1)" if lay_flat else "reshape it"
        raise UserError(
            f"{what} has the shape {array.shape}, expected {expected}, which is what this script "
            f"trains on; {how}, or choose a script for {kind}"
        )
    return _features(array, what) if kind == "features" else _images(array, what)


def _images(array: NDArray[np.generic], what: str) -> NDArray[np.float32]:
    if array.ndim == 3:
        array = array[..., np.newaxis]
    if array.dtype == np.uint8:
        return np.divide(array, 255, dtype=np.float32)
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(
            f"{what} has the dtype {array.dtype}, expected uint8 from 0 to 255 or floats from "
            "0 to 1; convert it with astype"
        )
    low, high = array.min(), array.max()  # NaN if one of them is
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"{what} holds floats from {low} to {high}, expected 0 to 1 without NaN; "
            "scale the images, or save them as uint8 from 0 to 255"
        )
    return array.astype(np.float32)


def _features(array: NDArray[np.generic], what: str) -> NDArray[np.float32]:
    if array.dtype.kind not in "biuf":
        raise UserError(
            f"{what} has the dtype {array.dtype}, expected numbers; convert it with astype, or "
            "give the columns as a .csv file"
        )
    return _finite(array, what)


def _finite(array: NDArray[np.generic], what: str) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32)
    bad = ~np.isfinite(numbers)
    if bad.any():
        rows = bad.reshape(len(bad), -1).any(axis=1)
        raise UserError(
            f"{what} holds NaN, infinities or numbers beyond float32 in {int(rows.sum())} of "
            f"{len(rows)} rows, first in row {int(rows.argmax())} (from 0); drop or scale them"
        )
    return numbers


def _labels(array: NDArray[np.generic], what: str, goals: Sequence[Goal]) -> NDArray[Any]:
    """Checked: int32 [n] for classes, float32 [n] for numbers."""
    _check_array(array, what)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        one_hot = "one-hot labels become numbers with argmax(axis=1)"
        raise UserError(
            f"{what} has the shape {array.shape}, expected one label an example, [n] or [n, 1]; "
            f"{one_hot if 'classes' in goals else 'choose one of the numbers'}"
        )
    if "numbers" in goals and array.dtype.kind in ("f" if "classes" in goals else "iuf"):
        return _finite(array, what)
    if "classes" not in goals:
        raise UserError(f"{what} has the dtype {array.dtype}, expected {SAID['numbers']}")
    if not np.issubdtype(array.dtype, np.integer):
        raise UserError(
            f"{what} has the dtype {array.dtype}, expected integers that number the classes "
            "from 0; convert it with astype, or predict numbers with `regression`"
        )
    if array.min() < 0 or array.max() > np.iinfo(np.int32).max:
        raise UserError(
            f"{what} holds labels from {array.min()} to {array.max()}, expected integers from 0; "
            "number the classes from 0"
        )
    return array.astype(np.int32)


def _check_array(array: object, what: str) -> None:
    if not isinstance(array, np.ndarray):
        raise UserError(f"{what} is not an array; write the file with numpy.savez")
    if array.size == 0:
        raise UserError(f"{what} is empty, with the shape {array.shape}; it needs samples")


def _check_together(found: _Found) -> int:
    """What no array shows alone; returns the number of classes, 0 of numbers to predict."""
    name, y_train = found.name, found.y_train
    for split, x, y in (("train", found.x_train, y_train), ("test", found.x_test, found.y_test)):
        count = len(next(iter(x.values())) if isinstance(x, Mapping) else x)
        if count != len(y):
            raise UserError(
                f"{name}: x_{split} has {count} examples but y_{split} has {len(y)} labels; "
                "each example needs one label"
            )
    kind = _kind(found.x_train)
    if kind != "columns":
        shapes = found.x_train.shape[1:], found.x_test.shape[1:]
        if shapes[0] != shapes[1]:
            axes = " (height, width, channels)" if kind == "images" else ""
            raise UserError(
                f"{name}: {kind} of x_train are {shapes[0]} but those of x_test are "
                f"{shapes[1]}{axes}; make them the same size"
            )
    if y_train.dtype.kind == "f":
        if y_train.min() == y_train.max():
            raise UserError(f"{name}: every number to predict is {y_train[0]}; nothing to learn")
        if len(y_train) < 2:
            raise UserError(f"{name}: x_train has one example; at least two are needed")
        return 0

    present, counts = np.unique(y_train, return_counts=True)
    classes = len(present)
    if classes < 2:
        raise UserError(
            f"{name}: y_train holds one class only, label {present[0]}; at least two are needed"
        )
    if present[-1] != classes - 1:
        raise UserError(
            f"{name}: y_train holds labels up to {present[-1]} but {classes} different ones, "
            f"expected 0 to {classes - 1}; number the classes from 0 without gaps"
        )
    unseen = np.setdiff1d(found.y_test, present)
    if unseen.size:
        raise UserError(
            f"{name}: y_test holds label {unseen[0]}, which y_train does not; the labels of both "
            f"are 0 to {classes - 1}"
        )
    if counts.min() < 2:
        raise UserError(
            f"{name}: y_train holds label {present[counts.argmin()]} once; each class needs two "
            "examples, one to train on and one to hold out for validation"
        )
    needed = np.ceil(classes / VALIDATION_FRACTION)
    if len(y_train) < needed:
        raise UserError(
            f"{name}: x_train has {len(y_train)} examples of {classes} classes; at least "
            f"{needed:.0f} are needed to hold {VALIDATION_FRACTION:.0%} out for validation"
        )
    return classes


def _digest(*parts: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        for name, array in part.items() if isinstance(part, Mapping) else [("", part)]:
            content = array.astype(str) if array.dtype == object else array
            digest.update(f"{name}{content.dtype.str}{content.shape}".encode())
            digest.update(np.ascontiguousarray(content).data)
    return digest.hexdigest()

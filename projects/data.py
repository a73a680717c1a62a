"""Labelled images for the scripts: scikit-learn's digits, an .npz file or a Keras dataset."""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from mlflow_keras_adv import Dataset
from mlflow_keras_adv.errors import UserError

KERAS_DATASETS = ("keras:mnist", "keras:fashion_mnist", "keras:cifar10", "keras:cifar100")
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
DIGITS_TEST_FRACTION = 0.25
VALIDATION_FRACTION = 0.15
LARGEST_SEED = 2**32 - 1  # of NumPy's global generator, which scikit-learn and Keras seed

Images = NDArray[np.float32]
Labels = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Data:
    """A dataset in three splits.

    Attributes:
        name: `digits`, `keras:mnist` or the name of the file.
        x_train: Images [n, height, width, channels], float32 from 0 to 1; so are the other two.
        y_train: Labels [n], int32 from 0 to `classes - 1`; so are the other two.
        x_validation: Held out of the training images, differently for each seed.
        y_validation: Their labels.
        x_test: The same for every seed, so that runs with different seeds can be compared.
        y_test: Their labels.
        classes: How many there are.
        digest: 32 hexadecimal digits that identify images and labels; the same for every seed.
    """

    name: str
    x_train: Images
    y_train: Labels
    x_validation: Images
    y_validation: Labels
    x_test: Images
    y_test: Labels
    classes: int
    digest: str

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        _, height, width, channels = self.x_train.shape
        return height, width, channels

    @property
    def train(self) -> tuple[Images, Labels]:
        """Images and labels to train on."""
        return self.x_train, self.y_train

    @property
    def validation(self) -> tuple[Images, Labels]:
        """Images and labels to choose by."""
        return self.x_validation, self.y_validation

    @property
    def test(self) -> tuple[Images, Labels]:
        """Images and labels to judge the finished model on."""
        return self.x_test, self.y_test

    @property
    def dataset(self) -> Dataset:
        """What the record calls it."""
        return Dataset(self.name, self.digest)

    def batches(self, batch_size: int) -> Any:
        """A `tf.data.Dataset` of the training examples, in another order in each epoch."""
        import tensorflow as tf  # takes seconds, and only loops of one's own ask for this

        examples = tf.data.Dataset.from_tensor_slices(self.train)
        return examples.shuffle(len(self.x_train)).batch(batch_size)


def load(data: str = "digits", *, seed: int = 0) -> Data:
    """Loads a dataset and holds 15 % of its training images out for validation.

    Args:
        data: `digits` (1797 images of 8x8x1, nothing to download), one of `KERAS_DATASETS`
            (downloaded once), or the path of an `.npz` file with the arrays x_train, y_train,
            x_test and y_test: images [n, height, width] or [n, height, width, channels], as uint8
            from 0 to 255 or as floats from 0 to 1; labels [n] or [n, 1], integers from 0.
        seed: Chooses the validation images, in the same proportions of classes as the rest.

    Raises:
        UserError: There is no such dataset, it cannot be read or downloaded, or what it holds is
            not as described above.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"seed: got {seed}, expected 0 to {LARGEST_SEED}; choose another")
    if data == "digits":
        name, arrays = data, _digits()
    elif data in KERAS_DATASETS:
        name, arrays = data, _download(data)
    elif data.lower().endswith(".npz"):
        name, arrays = Path(data).name, _read(Path(data))
    else:
        known = ", ".join(("digits", *KERAS_DATASETS))
        raise UserError(
            f"data: got {data!r}, which is neither a known dataset nor an .npz file; "
            f"give one of {known}, or the path of a file that ends in .npz"
        )

    x_train, x_test = (_images(arrays[key], f"{name}: {key}") for key in ("x_train", "x_test"))
    y_train, y_test = (_labels(arrays[key], f"{name}: {key}") for key in ("y_train", "y_test"))
    classes = _check_together(x_train, y_train, x_test, y_test, name)
    kept, held_out = train_test_split(
        np.arange(len(y_train)), test_size=VALIDATION_FRACTION, stratify=y_train, random_state=seed
    )
    return Data(
        name=name,
        x_train=x_train[kept],
        y_train=y_train[kept],
        x_validation=x_train[held_out],
        y_validation=y_train[held_out],
        x_test=x_test,
        y_test=y_test,
        classes=classes,
        digest=_digest(x_train, y_train, x_test, y_test),
    )


def _digits() -> Mapping[str, NDArray[np.generic]]:
    digits = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(
        digits.images / 16,  # grey levels 0 to 16
        digits.target,
        test_size=DIGITS_TEST_FRACTION,
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


def _images(array: NDArray[np.generic], what: str) -> Images:
    """Checked, scaled to 0..1 as float32, with a channel axis."""
    _check_array(array, what)
    if array.ndim == 3:
        array = array[..., np.newaxis]
    if array.ndim != 4:
        raise UserError(
            f"{what} has the shape {array.shape}, expected [n, height, width] or "
            "[n, height, width, channels]; reshape it"
        )
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


def _labels(array: NDArray[np.generic], what: str) -> Labels:
    """Checked, as int32 [n]."""
    _check_array(array, what)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise UserError(
            f"{what} has the shape {array.shape}, expected one label an image, [n] or [n, 1]; "
            "one-hot labels become numbers with argmax(axis=1)"
        )
    if not np.issubdtype(array.dtype, np.integer):
        raise UserError(
            f"{what} has the dtype {array.dtype}, expected integers that number the classes "
            "from 0; convert it with astype"
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


def _check_together(
    x_train: Images, y_train: Labels, x_test: Images, y_test: Labels, name: str
) -> int:
    """What no array shows alone; returns the number of classes."""
    for split, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        if len(x) != len(y):
            raise UserError(
                f"{name}: x_{split} has {len(x)} images but y_{split} has {len(y)} labels; "
                "each image needs one label"
            )
    if x_train.shape[1:] != x_test.shape[1:]:
        raise UserError(
            f"{name}: images of x_train are {x_train.shape[1:]} but those of x_test are "
            f"{x_test.shape[1:]} (height, width, channels); make them the same size"
        )

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
    unseen = np.setdiff1d(y_test, present)
    if unseen.size:
        raise UserError(
            f"{name}: y_test holds label {unseen[0]}, which y_train does not; the labels of both "
            f"are 0 to {classes - 1}"
        )
    if counts.min() < 2:
        raise UserError(
            f"{name}: y_train holds label {present[counts.argmin()]} once; each class needs two "
            "images, one to train on and one to hold out for validation"
        )
    needed = np.ceil(classes / VALIDATION_FRACTION)
    if len(y_train) < needed:
        raise UserError(
            f"{name}: x_train has {len(y_train)} images of {classes} classes; at least "
            f"{needed:.0f} are needed to hold {VALIDATION_FRACTION:.0%} out for validation"
        )
    return classes


def _digest(*arrays: NDArray[np.generic]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()

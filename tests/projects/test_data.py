"""Real .npz files, each broken in one way; only the network is replaced.

Tables and folders of images are in test_tables and test_image_folders.
"""

import io
import pickle
import re
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from mlflow_keras_adv.errors import UserError
from projects import data

SPLITS = ("train", "validation", "test")
ENDS = ("npz", "csv", "parquet")


def arrays(**changes: object) -> dict[str, np.ndarray]:
    """A good file's arrays: 60 + 12 grey images of 4x5 in 3 classes; None removes one."""
    rng = np.random.default_rng(0)
    good = {
        "x_train": rng.integers(0, 256, (60, 4, 5), np.uint8),
        "y_train": np.arange(60) % 3,
        "x_test": rng.integers(0, 256, (12, 4, 5), np.uint8),
        "y_test": np.arange(12) % 3,
    }
    changed = {**good, **changes}
    return {name: array for name, array in changed.items() if array is not None}


def write(path: Path, **changes: object) -> str:
    np.savez(path, **arrays(**changes))
    return str(path)


def test_digits_are_scaled_labelled_images() -> None:
    digits = data.load()

    assert digits.name == "digits"
    assert digits.classes == 10
    assert digits.input_shape == (8, 8, 1)
    # 25 % of 1797 are the test images, 15 % of the others the validation images, both rounded up.
    assert [len(getattr(digits, f"y_{split}")) for split in SPLITS] == [1144, 203, 450]
    for split in SPLITS:
        x, y = getattr(digits, f"x_{split}"), getattr(digits, f"y_{split}")
        assert (x.dtype, x.shape[1:]) == (np.float32, (8, 8, 1))
        assert (y.dtype, y.shape) == (np.int32, (len(x),))
        assert (x.min(), x.max()) == (0, 1)


def test_a_split_is_a_pair_of_images_and_labels() -> None:
    digits = data.load()

    for split in SPLITS:
        x, y = getattr(digits, split)
        assert x is getattr(digits, f"x_{split}")
        assert y is getattr(digits, f"y_{split}")
    assert (digits.dataset.name, digits.dataset.digest) == ("digits", digits.digest)


def keyed(x: np.ndarray, y: np.ndarray) -> list[tuple[bytes, int]]:
    return sorted((image.tobytes(), int(label)) for image, label in zip(x, y, strict=True))


def test_the_splits_of_digits_hold_every_image_with_its_label_once() -> None:
    digits = data.load(seed=3)
    source = load_digits()

    x = np.concatenate([getattr(digits, f"x_{split}") for split in SPLITS])
    y = np.concatenate([getattr(digits, f"y_{split}") for split in SPLITS])

    images = (source.images / 16).astype(np.float32)[..., np.newaxis]
    assert keyed(x, y) == keyed(images, source.target)


@pytest.mark.parametrize("split", SPLITS)
def test_each_split_of_digits_has_the_proportions_of_the_whole(split: str) -> None:
    labels = getattr(data.load(seed=1), f"y_{split}")
    whole = np.bincount(load_digits().target) / 1797

    # Each of the two stratified splits rounds a class to a whole image, up or down.
    np.testing.assert_array_less(np.abs(np.bincount(labels) - whole * len(labels)), 2)


def test_a_seed_gives_the_same_splits_again() -> None:
    first, second = data.load(seed=5), data.load(seed=5)

    for split in SPLITS:
        for kind in "xy":
            name = f"{kind}_{split}"
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("source", ["digits", "file"])
def test_a_seed_moves_the_validation_images_but_not_the_test_images(
    source: str, tmp_path: Path
) -> None:
    name = source if source == "digits" else write(tmp_path / "images.npz")
    first, second = data.load(name, seed=0), data.load(name, seed=1)

    assert not np.array_equal(first.x_validation, second.x_validation)
    np.testing.assert_array_equal(first.x_test, second.x_test)
    np.testing.assert_array_equal(first.y_test, second.y_test)
    assert first.digest == second.digest


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_numpy_cannot_take_is_refused(seed: int) -> None:
    with pytest.raises(UserError, match=f"seed: got {seed}, expected 0 to 4294967295"):
        data.load(seed=seed)


def test_the_largest_seed_is_taken() -> None:
    assert data.load(seed=2**32 - 1).classes == 10


def test_a_file_is_scaled_and_gets_a_channel(tmp_path: Path) -> None:
    written = arrays()
    loaded = data.load(write(tmp_path / "images.npz"))

    assert loaded.name == "images.npz"
    assert loaded.classes == 3
    assert loaded.input_shape == (4, 5, 1)
    assert [len(getattr(loaded, f"x_{split}")) for split in SPLITS] == [51, 9, 12]
    assert loaded.x_test.dtype == np.float32
    # Both sides are the float32 nearest to k / 255: one correctly rounded division.
    np.testing.assert_array_equal(
        loaded.x_test[..., 0], written["x_test"].astype(np.float32) / np.float32(255)
    )
    np.testing.assert_array_equal(loaded.y_test, written["y_test"])
    x = np.concatenate([loaded.x_train, loaded.x_validation])
    y = np.concatenate([loaded.y_train, loaded.y_validation])
    train = (written["x_train"] / np.float32(255)).astype(np.float32)[..., np.newaxis]
    assert keyed(x, y) == keyed(train, written["y_train"])
    np.testing.assert_array_equal(np.bincount(loaded.y_validation), [3, 3, 3])


def test_colour_floats_and_labels_in_a_column_are_taken_as_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x_test = rng.random((12, 4, 5, 3))
    loaded = data.load(
        write(
            tmp_path / "images.NPZ.npz",
            x_train=rng.random((60, 4, 5, 3)),
            x_test=x_test,
            y_train=(np.arange(60) % 3).astype(np.uint8)[:, np.newaxis],
            y_test=(np.arange(12) % 3)[:, np.newaxis],
        )
    )

    assert loaded.input_shape == (4, 5, 3)
    np.testing.assert_array_equal(loaded.x_test, x_test.astype(np.float32))
    np.testing.assert_array_equal(loaded.y_test, np.arange(12) % 3)
    assert (loaded.y_train.dtype, loaded.y_train.ndim) == (np.int32, 1)


def test_a_test_split_without_one_of_the_classes_is_fine(tmp_path: Path) -> None:
    assert data.load(write(tmp_path / "a.npz", y_test=np.arange(12) % 2)).classes == 3


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    one_pixel = arrays()["x_train"]
    one_pixel[7, 2, 3] ^= 1
    one_label = arrays()["y_test"]
    one_label[5] = 0
    x_test = arrays()["x_test"]

    digest = data.load(write(tmp_path / "a.npz")).digest
    again = data.load(write(tmp_path / "b.npz")).digest
    others = [
        data.load(write(tmp_path / "c.npz", x_train=one_pixel)).digest,
        data.load(write(tmp_path / "d.npz", y_test=one_label)).digest,
        data.load(
            write(
                tmp_path / "e.npz",
                x_train=arrays()["x_train"].reshape(60, 5, 4),
                x_test=x_test.reshape(12, 5, 4),
            )
        ).digest,
    ]

    assert digest == again
    assert len({digest, *others}) == 4
    assert re.fullmatch("[0-9a-f]{32}", digest)


def test_the_digest_of_digits_is_the_same_everywhere() -> None:
    """A changed digest makes old runs look as if they had seen other data."""
    assert data.load().digest == "ed8978e5976688cefbaf237112cc26c5"


def labels(*values: int) -> np.ndarray:
    """60 labels: 0 and 1 in turn, and these in front."""
    return np.concatenate([values, np.arange(60 - len(values)) % 2]).astype(np.int64)


def with_pixel(value: float) -> np.ndarray:
    images = np.full((60, 4, 5), 0.5)
    images[3, 2, 1] = value
    return images


BAD_ARRAYS = [
    ({"x_test": None, "y_test": None}, "holds x_train, y_train, but not x_test, y_test"),
    ({"x_train": np.zeros((60, 20))}, r"\(60, 20\), expected images \[n, height.*features"),
    ({"x_train": np.zeros((60, 1, 4, 5, 1))}, r"x_train has the shape \(60, 1, 4, 5, 1\)"),
    ({"x_train": np.float32(1)}, r"x_train has the shape \(\), expected"),
    (
        {"x_test": np.zeros((12, 4, 6), np.uint8)},
        r"\(4, 5, 1\) but those of x_test are \(4, 6, 1\)",
    ),
    ({"y_test": np.arange(11) % 3}, "x_test has 12 examples but y_test has 11 labels"),
    ({"y_train": np.arange(61) % 3}, "x_train has 60 examples but y_train has 61 labels"),
    ({"x_test": np.zeros((0, 4, 5)), "y_test": np.zeros(0, int)}, "x_test is empty"),
    ({"x_train": np.zeros((60, 0, 5))}, r"x_train is empty, with the shape \(60, 0, 5\)"),
    ({"x_train": with_pixel(np.nan)}, "x_train holds floats from nan to nan, expected 0 to 1"),
    ({"x_train": with_pixel(np.inf)}, "x_train holds floats from 0.5 to inf, expected 0 to 1"),
    ({"x_train": with_pixel(255.0)}, "x_train holds floats from 0.5 to 255.0, expected 0 to 1"),
    ({"x_train": with_pixel(-1e300)}, r"x_train holds floats from -1e\+300 to 0.5"),
    ({"x_train": np.zeros((60, 4, 5), np.int64)}, "x_train has the dtype int64, expected uint8"),
    ({"x_train": np.zeros((60, 4, 5), complex)}, "x_train has the dtype complex128"),
    ({"x_train": np.full((60, 4, 5), "a")}, "x_train has the dtype <U1"),
    ({"x_train": np.zeros((60, 4, 5), [("a", "f4")])}, r"x_train has the dtype \[\('a', '<f4'\)\]"),
    ({"y_train": labels().astype(float)}, "y_train has the dtype float64, expected integers"),
    ({"y_train": labels().astype(bool)}, "y_train has the dtype bool, expected integers"),
    ({"y_train": np.full(60, "cat")}, "y_train has the dtype <U3, expected integers"),
    ({"y_train": np.eye(3, dtype=int)[labels()]}, r"shape \(60, 3\), .* one-hot .*argmax"),
    ({"y_train": labels(-1, -1)}, "y_train holds labels from -1 to 1, expected integers from 0"),
    ({"y_train": labels(2**40, 2**40)}, "y_train holds labels from 0 to 1099511627776"),
    ({"y_train": labels(7, 7)}, "labels up to 7 but 3 different ones, expected 0 to 2"),
    ({"y_train": labels() + 1}, "labels up to 2 but 2 different ones, expected 0 to 1"),
    ({"y_train": labels()}, "y_test holds label 2, which y_train does not"),
    ({"y_train": np.zeros(60, int)}, "y_train holds one class only, label 0"),
    ({"y_train": labels(2)}, "y_train holds label 2 once; each class needs two"),
    (
        {"x_train": np.zeros((18, 4, 5)), "y_train": np.arange(18) % 3},
        "x_train has 18 examples of 3 classes; at least 20 are needed to hold 15% out",
    ),
    ({"x_train": np.full((60, 4, 5), None)}, "holds Python objects, which are not loaded"),
]


@pytest.mark.parametrize(("changes", "complaint"), BAD_ARRAYS)
def test_bad_arrays_are_named(changes: dict[str, object], complaint: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.npz", **changes)

    with pytest.raises(UserError, match=f"bad.npz.*{complaint}"):
        data.load(path)


def test_the_smallest_file_that_can_be_split_is_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", x_train=np.zeros((20, 4, 5)), y_train=np.arange(20) % 3)

    loaded = data.load(path)

    assert sorted(loaded.y_validation) == [0, 1, 2]


def test_a_missing_file_is_named_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = re.escape(str(tmp_path / "none.npz"))

    with pytest.raises(UserError, match=f"{path} cannot be read: No such file or directory"):
        data.load("none.npz")


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()

    with pytest.raises(UserError, match=r"folder.npz cannot be read: Is a directory; give"):
        data.load(str(tmp_path / "folder.npz"))


@pytest.mark.parametrize(
    "name", ["mnist", "keras:imdb", "keras:", "Digits", "images.txt", "", "x" * 999]
)
def test_an_unknown_dataset_is_told_the_known_ones(name: str) -> None:
    known = "digits, keras:mnist, keras:fashion_mnist, keras:cifar10, keras:cifar100, diabetes, "

    with pytest.raises(UserError, match=f"data: got '{name}', .*; give one of {known}"):
        data.load(name)


@pytest.mark.parametrize("name", [f"{odd}.{end}" for odd in ("x" * 999, "a\0b") for end in ENDS])
def test_a_name_that_no_file_can_have_is_a_user_error(name: str) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        data.load(name)


NOT_ARCHIVES = {
    "text": b"x,y\n1,2\n",
    "empty": b"",
    "one array": b"\x93NUMPY\x01\x00",
    "pickle": pickle.dumps({"x_train": [1]}),
}


@pytest.mark.parametrize("content", NOT_ARCHIVES.values(), ids=NOT_ARCHIVES)
def test_a_file_of_another_kind_is_not_an_npz(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)

    with pytest.raises(UserError, match=r"is not an \.npz file, .* write it with numpy.savez"):
        data.load(str(path))


@pytest.mark.parametrize("kept", [0.2, 0.9, 0.999])
def test_a_truncated_file_is_a_user_error(kept: float, tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.npz"))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])

    with pytest.raises(UserError, match="or the end of it is missing"):
        data.load(str(path))


def test_an_entry_that_is_not_an_array_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in data.ARRAYS:
            archive.writestr(f"{name}.npy", b"not an array")

    with pytest.raises(UserError, match="x_train is not an array"):
        data.load(str(path))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_bytes_never_end_in_another_exception(save: object, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    save(buffer, **arrays())
    rng = np.random.default_rng(0)
    path = tmp_path / "a.npz"
    refused = 0
    for _ in range(400):
        content = bytearray(buffer.getvalue())
        # Half of the damage in the first 400 bytes: headers, where a bit changes what is read.
        for place in rng.integers(0, rng.choice([400, len(content)]), 2):
            content[place] = rng.integers(0, 256)
        path.write_bytes(content)
        try:
            data.load(str(path))
        except UserError:
            refused += 1

    assert refused > 200


def keras_arrays() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    made = arrays()
    return (
        (made["x_train"], made["y_train"][:, np.newaxis]),
        (made["x_test"], made["y_test"][:, np.newaxis]),
    )


@pytest.mark.parametrize("name", data.KERAS_DATASETS)
def test_a_keras_dataset_is_the_one_of_that_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = getattr(keras.datasets, name.removeprefix("keras:"))
    monkeypatch.setattr(module, "load_data", keras_arrays)

    loaded = data.load(name)

    assert loaded.name == name
    assert loaded.input_shape == (4, 5, 1)
    np.testing.assert_array_equal(loaded.y_test, np.arange(12) % 3)


def test_a_failed_download_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable() -> None:
        raise Exception("URL fetch failure: None -- Name or service not known")  # as Keras does

    monkeypatch.setattr(keras.datasets.mnist, "load_data", unreachable)

    with pytest.raises(
        UserError, match=r"keras:mnist could not be downloaded \(URL fetch .*digits"
    ):
        data.load("keras:mnist")


def test_batches_hold_each_training_example_once_and_in_another_order_each_time() -> None:
    images = data.load("digits")
    batches = images.batches(100)

    first, second = ([y.numpy() for _, y in batches] for _ in range(2))

    assert [len(y) for y in first] == [100] * 11 + [len(images.y_train) - 1100]
    for labels in (first, second):
        assert sorted(np.concatenate(labels)) == sorted(images.y_train)
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))


def features(**changes: object) -> dict[str, object]:
    """60 + 12 rows of 3 features, each in a unit of its own, and numbers to predict."""
    rng = np.random.default_rng(0)
    x = rng.normal([0, 50, -1e4], [1, 5, 1e3], (72, 3))
    good = {"x_train": x[:60], "y_train": x[:60, 0] * 3, "x_test": x[60:], "y_test": x[60:, 0] * 3}
    return {**good, **changes}


TAKEN = {"kinds": ("features",), "goals": ("classes", "numbers")}


def test_features_and_numbers_are_taken_in_their_own_units(tmp_path: Path) -> None:
    loaded = data.load(write(tmp_path / "a.npz", **features()), **TAKEN)

    assert (loaded.kind, loaded.classes, loaded.input_shape) == ("features", 0, (3,))
    assert [len(getattr(loaded, f"y_{split}")) for split in SPLITS] == [51, 9, 12]
    np.testing.assert_array_equal(loaded.x_test, features()["x_test"].astype(np.float32))
    np.testing.assert_array_equal(loaded.y_test, features()["y_test"].astype(np.float32))
    pairs = zip(loaded.x_train, loaded.y_train, strict=True)
    assert all(y == pytest.approx(3 * x[0], rel=1e-6) for x, y in pairs)


def test_integers_are_classes_where_classes_are_taken_else_numbers(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.npz", **features(y_train=np.arange(60) % 3, y_test=np.zeros(12, int))
    )

    assert data.load(path, **TAKEN).classes == 3
    numbers = data.load(path, kinds=("features",), goals=("numbers",))
    assert (numbers.classes, numbers.y_test.dtype) == (0, np.float32)


@pytest.mark.parametrize(
    ("changes", "taken", "complaint"),
    [
        ({}, {}, r"\(60, 3\), expected images .*which is what this script trains on"),
        ({}, {"kinds": ("features",)}, "y_train has the dtype float64, expected integers"),
        (arrays(), TAKEN, r"\(60, 4, 5\), expected features .*reshape\(len\(x\), -1\)"),
        ({}, {**TAKEN, "kinds": ("columns",)}, r"\(60, 3\), expected columns of a table"),
        ({"x_test": np.full((12, 3), np.nan)}, TAKEN, "x_test holds NaN.* in 12 of 12 rows"),
        (
            {"x_test": np.full((12, 3), 1e39)},
            TAKEN,
            "x_test holds NaN, infinities or numbers beyond",
        ),
        ({"y_test": np.array([1.0] * 11 + [np.inf])}, TAKEN, "y_test .* 1 of 12 rows, .* row 11 "),
        ({"x_train": np.full((60, 3), "a")}, TAKEN, "x_train has the dtype <U1, expected numbers"),
        ({"x_test": np.zeros((12, 4))}, TAKEN, r"features of x_train are \(3,\) but .* \(4,\)"),
        ({"y_train": np.ones(60)}, TAKEN, "every number to predict is 1.0; nothing to learn"),
        (
            {"y_train": np.full(60, True)},
            {"kinds": ("features",), "goals": ("numbers",)},
            "y_train has the dtype bool, expected numbers to predict",
        ),
    ],
)
def test_what_a_script_does_not_take_is_said(
    changes: dict[str, object], taken: dict[str, object], complaint: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.npz", **features(**changes))

    with pytest.raises(UserError, match=f"a.npz: .*{complaint}"):
        data.load(path, **taken)


def test_a_target_is_of_tables_alone(tmp_path: Path) -> None:
    for name in ("digits", "wine", write(tmp_path / "a.npz")):
        with pytest.raises(UserError, match="target: got 'y', but .* has no column to choose"):
            data.load(name, target="y", kinds=("images", "columns"))


def test_the_entrance_of_a_dense_net_has_what_was_learned_of_the_training_features(
    tmp_path: Path,
) -> None:
    loaded = data.load(write(tmp_path / "a.npz", **features()), **TAKEN)
    scores = np.asarray(keras.Sequential(loaded.entrance())(loaded.x_train))

    # float32, of numbers of which the third is ten of its standard deviations from 0
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(scores.std(axis=0), 1, atol=1e-4)

    images = data.load()
    flat = keras.Sequential(images.entrance())(images.x_test)
    np.testing.assert_array_equal(flat, images.x_test.reshape(450, 64))

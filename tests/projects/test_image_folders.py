"""Real folders of real images, each broken in one way."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlflow_keras_adv.errors import UserError
from projects import data, image_folders

RNG = np.random.default_rng(0)


def save(path: Path, *, channels: int = 1, size: tuple[int, int] = (4, 5)) -> np.ndarray:
    pixels = RNG.integers(0, 256, (*size, channels), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of 12 grey images; what a file system leaves lying about is no class."""
    for name in ("cat", "dog"):
        for number in range(12):
            save(tmp_path / "pets" / name / f"{number}.png")
    (tmp_path / "pets" / ".cache").mkdir()
    (tmp_path / "pets" / "cat" / ".DS_Store").write_bytes(b"")
    (tmp_path / "pets" / "read me.txt").write_text("pets")
    return tmp_path / "pets"


def test_each_image_is_in_one_split_under_the_name_of_its_folder(folder: Path) -> None:
    loaded = data.load(str(folder))

    assert (loaded.name, loaded.classes, loaded.class_names) == ("pets", 2, ("cat", "dog"))
    assert loaded.input_shape == (4, 5, 1)
    pairs = [getattr(loaded, split) for split in ("train", "validation", "test")]
    assert [len(y) for _, y in pairs] == [15, 3, 6]
    found = sorted(
        (image.tobytes(), loaded.class_names[label])
        for x, y in pairs
        for image, label in zip(x, y, strict=True)
    )
    expected = sorted(
        (
            (np.asarray(Image.open(path)) / np.float32(255)).astype(np.float32).tobytes(),
            path.parent.name,
        )
        for path in folder.glob("*/*.png")
    )
    assert found == expected


def test_one_image_in_colour_makes_all_of_three_channels(folder: Path) -> None:
    colours = save(folder / "dog" / "0.png", channels=3)
    images, _ = image_folders.read(folder)

    assert images.shape == (24, 4, 5, 3)
    assert any(np.array_equal(image, colours) for image in images)


def nested(folder: Path) -> None:
    save(folder / "cat" / "train" / "0.png")


def loose(folder: Path) -> None:
    for path in [*folder.glob("*/*.png")]:
        path.rename(folder / f"{path.parent.name}-{path.name}")
    for path in folder.iterdir():
        if path.is_dir():
            for file in path.iterdir():
                file.unlink()
            path.rmdir()


def empty(folder: Path) -> None:
    (folder / "bird").mkdir()
    (folder / "bird" / "notes.txt").write_text("none yet")


def one_class(folder: Path) -> None:
    (folder / "dog").rename(folder / ".dog")


def larger(folder: Path) -> None:
    save(folder / "dog" / "a.png", size=(6, 5))


def no_image(folder: Path) -> None:
    (folder / "dog" / "a.jpg").write_bytes(b"not one")


def damaged(folder: Path) -> None:
    path = folder / "dog" / "0.png"
    save(path, size=(4, 5))
    path.write_bytes(path.read_bytes()[:-30])


def deep(folder: Path) -> None:
    Image.fromarray(np.zeros((4, 5), np.uint16)).save(folder / "dog" / "a.png")


def few(folder: Path) -> None:
    for path in sorted((folder / "dog").iterdir())[3:]:
        path.unlink()


BAD = [
    (nested, "has folders in its subfolders, such as cat/train; .*chosen from all"),
    (loose, "has 24 images and no subfolders; expected a subfolder for each class"),
    (empty, "bird has no images, but notes.txt; expected a subfolder"),
    (one_class, "pets holds one class only, 'cat'"),
    (larger, r"images of several sizes: cat/0.png is 5x4, dog/a.png 5x6; make them one size"),
    (no_image, "a.jpg is no image that can be read"),
    (damaged, "0.png is damaged"),
    (deep, "a.png has pixels of the mode I;16, expected 8 bits a channel"),
    (few, "pets has 3 of the class 'dog' examples; at least 4 are needed"),
]


@pytest.mark.parametrize(
    ("spoil", "complaint"), BAD, ids=lambda each: getattr(each, "__name__", "")
)
def test_a_bad_folder_is_named(spoil: Callable[[Path], None], complaint: str, folder: Path) -> None:
    spoil(folder)

    with pytest.raises(UserError, match=complaint):
        data.load(str(folder))


def test_more_than_memory_holds_is_refused_before_it_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_folders, "LARGEST_BYTES", 1900)

    with pytest.raises(UserError, match="24 images of 5x4 take .* make them smaller"):
        data.load(str(folder))


def test_scripts_about_other_data_say_so(folder: Path) -> None:
    with pytest.raises(UserError, match="holds images .*takes features"):
        data.load(str(folder), kinds=("features",), goals=("numbers",))
    with pytest.raises(UserError, match="holds classes to tell apart, .*takes numbers"):
        data.load(str(folder), goals=("numbers",))

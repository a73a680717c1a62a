"""A folder of images for the scripts: a subfolder for each class, named after it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlflow_keras_adv.errors import UserError

LARGEST_BYTES = 4_000_000_000  # of all images in float32
GREY, COLOUR = ("1", "L"), ("P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr")


def read(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.object_]]:
    """All images of a folder, and the names of their classes.

    Args:
        folder: Has a subfolder for each class, with images of one size in any format that Pillow
            reads. Names that begin with a dot are passed over.

    Returns:
        Images [n, height, width, channels], of 1 channel if all are grey, else of 3; and the name
        of the subfolder for each [n].

    Raises:
        UserError: Another layout, images of several sizes, too many, or a file that is no image.
    """
    try:
        files = _files(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror or error}") from error
    sizes: dict[tuple[int, int], Path] = {}
    grey = True
    for path in files:
        with _opened(path) as image:
            sizes.setdefault(image.size, path)
            grey = grey and image.mode in GREY
            if image.mode not in GREY + COLOUR:
                raise UserError(
                    f"{path} has pixels of the mode {image.mode}, expected 8 bits a channel; "
                    "convert it, or give the images as an .npz file of floats from 0 to 1"
                )
        if len(sizes) > 1:
            (one, first), (other, second) = sizes.items()
            raise UserError(
                f"{folder} has images of several sizes: {first.relative_to(folder)} is "
                f"{one[0]}x{one[1]}, {second.relative_to(folder)} {other[0]}x{other[1]}; make them "
                "one size, with PIL.Image.resize for example"
            )
    ((width, height),) = sizes
    channels = 1 if grey else 3
    needed = 4 * len(files) * height * width * channels
    if needed > LARGEST_BYTES:
        raise UserError(
            f"{folder}: {len(files)} images of {width}x{height} take {needed / 1e9:.1f} GB as "
            f"float32, and a script holds them all, {LARGEST_BYTES / 1e9:.0f} GB at most; make "
            "them smaller or take fewer"
        )
    x = np.empty((len(files), height, width, channels), np.uint8)
    for place, path in enumerate(files):
        with _opened(path) as image:
            try:
                x[place] = np.reshape(image.convert("L" if grey else "RGB"), x.shape[1:])
            except (OSError, SyntaxError, ValueError) as error:  # PIL's for damaged bytes
                raise UserError(f"{path} is damaged ({error}); replace or remove it") from error
    return x, np.array([path.parent.name for path in files], dtype=object)


def _files(folder: Path) -> list[Path]:
    how = "expected a subfolder for each class with its images in it"
    Image.init()
    readable = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if not classes:
        loose = sum(path.suffix.lower() in readable for path in folder.iterdir())
        raise UserError(f"{folder} has {loose} images and no subfolders; {how}")
    files = []
    for each in classes:
        inside = sorted(path for path in each.iterdir() if path.name[0] != ".")
        deeper = [path for path in inside if path.is_dir()]
        if deeper:
            raise UserError(
                f"{folder} has folders in its subfolders, such as {each.name}/{deeper[0].name}; "
                f"{how}, and no folders for train and test: they are chosen from all"
            )
        images = [path for path in inside if path.suffix.lower() in readable]
        if not images:
            seen = ", ".join(path.name for path in inside[:3]) or "nothing"
            raise UserError(f"{each} has no images, but {seen}; {how}")
        files += images
    return files


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no image that can be read ({error}); remove it") from error

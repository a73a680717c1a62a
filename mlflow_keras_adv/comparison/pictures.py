"""Pictures that several runs have logged under one name, made small for a page."""

import base64
import io
import logging
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from mlflow_keras_adv.comparison.artifacts import Artifacts
from mlflow_keras_adv.compat.mlflow import image_key

_logger = logging.getLogger(__name__)

# Limits for a page.
MAX_PICTURES = 6
SIDE = 720

_TYPES = (".png", ".jpg", ".jpeg")
# As `log_image` names its files: of a series of steps the last is shown.
_SERIES = re.compile(r"images/(?P<key>.+?)[%+]step[%+](?P<step>\d+)[%+]timestamp[%+](?P<time>\d+)")


@dataclass(frozen=True)
class Picture:
    """One picture, of some variants.

    Attributes:
        name: Its artifact path, or the key of its series.
        sources: `data:` addresses by number of the variant.
    """

    name: str
    sources: dict[int, str]


def read_pictures(artifacts: Artifacts) -> tuple[list[Picture], list[str]]:
    """Reads the pictures of one run of each variant, the oldest that has any.

    Each is decoded and encoded again with at most `SIDE` pixels: the bytes of a file, whatever they
    are, do not reach the page.

    Returns:
        The pictures, the most frequent names first, and sentences about those that were left out.
    """
    places = artifacts.by_name(_named)
    notes, found = [], []
    if len(places) > MAX_PICTURES:
        notes.append(f"Of {len(places)} pictures the {MAX_PICTURES} that most variants have.")
    for name in list(places)[:MAX_PICTURES]:
        sources = {}
        for number, (run_id, path) in places[name].items():
            if source := _source(artifacts, run_id, path):
                sources[number] = source
        if sources:
            found.append(Picture(name, sources))
    return found, notes


def _named(paths: Sequence[str]) -> dict[str, str]:
    """Path by name; of a series the last."""
    found: dict[str, tuple[int, int, str]] = {}
    for path in paths:
        if not path.lower().endswith(_TYPES):
            continue
        series = _SERIES.match(path)
        name = f"images/{image_key(series['key'])}" if series else path
        order = (int(series["step"]), int(series["time"]), path) if series else (0, 0, path)
        found[name] = max(found.get(name, order), order)
    return {name: path for name, (_, _, path) in found.items()}


def _source(artifacts: Artifacts, run_id: str, path: str) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = artifacts.download(run_id, path, folder)
            with Image.open(file, formats=("PNG", "JPEG")) as image:
                image.thumbnail((SIDE, SIDE))
                drawn = io.BytesIO()
                image.convert("RGBA").save(drawn, "WEBP", quality=85)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            _logger.warning("The picture %r of run %s cannot be shown: %s", path, run_id, error)
            return None
    return f"data:image/webp;base64,{base64.b64encode(drawn.getvalue()).decode()}"

"""Pictures that several runs have logged under one name, made small for a page."""

import base64
import io
import logging
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image

from mlflow_keras_adv.comparison.groups import Group

_logger = logging.getLogger(__name__)

# What is read of the store and put into a page at most.
MAX_PICTURES = 6
MAX_FOLDERS = 8
MAX_BYTES = 8_000_000
SIDE = 720

# Often only one seed has logged pictures; so many runs of a variant are asked.
_MAX_RUNS = 3
_TYPES = (".png", ".jpg", ".jpeg")
# As `log_image` names its files: of a series of steps the last is shown.
_SERIES = re.compile(r"images/(?P<key>.+?)[%+]step[%+](?P<step>\d+)[%+]timestamp[%+](?P<time>\d+)")
_NO_PICTURES = re.compile(r"^(checkpoints?|code|comparison|models?|params|tags)(/|$)")


@dataclass(frozen=True)
class Picture:
    """One picture, of some variants.

    Attributes:
        name: Its artifact path, or the key of its series.
        sources: `data:` addresses by number of the variant.
    """

    name: str
    sources: dict[int, str]


def read_pictures(groups: Sequence[Group]) -> tuple[list[Picture], list[str]]:
    """The pictures of one run of each variant, the oldest that has any; the commonest come first.

    Each is decoded and drawn anew, of at most `SIDE` pixels: what a file claims to be does not
    reach the page.

    Returns:
        The pictures, and what was left out, in sentences.
    """
    client = MlflowClient()
    paths: dict[str, dict[int, tuple[str, str]]] = {}
    for number, group in enumerate(groups):
        for run_id in [run.info.run_id for run in group.runs[:_MAX_RUNS]]:
            if named := _named(_listed(client, run_id)):
                for name, path in named.items():
                    paths.setdefault(name, {})[number] = run_id, path
                break
    names = sorted(paths, key=lambda name: (-len(paths[name]), name))
    notes, found = [], []
    if len(names) > MAX_PICTURES:
        notes.append(f"Of {len(names)} pictures the {MAX_PICTURES} that most variants have.")
    for name in names[:MAX_PICTURES]:
        sources = {}
        for number, where in paths[name].items():
            if source := _source(client, *where):
                sources[number] = source
        if sources:
            found.append(Picture(name, sources))
    return found, notes


def _listed(client: MlflowClient, run_id: str) -> list[str]:
    """Artifact paths of pictures, in the run's folder and the folders in it."""
    found: list[str] = []
    folders = [""]
    try:
        for folder in folders:
            for file in client.list_artifacts(run_id, folder or None):
                if file.is_dir and not folder and not _NO_PICTURES.match(file.path):
                    folders += [file.path] if len(folders) <= MAX_FOLDERS else []
                elif not file.is_dir and (file.file_size or 0) <= MAX_BYTES:
                    found += [file.path] if file.path.lower().endswith(_TYPES) else []
    except (MlflowException, OSError) as error:
        _logger.warning("The artifacts of run %s cannot be listed: %s", run_id, error)
    return [path for path in found if _is_inside(path)]


def _named(paths: Sequence[str]) -> dict[str, str]:
    """Path by name; of a series the last."""
    found: dict[str, tuple[int, int, str]] = {}
    for path in paths:
        series = _SERIES.match(path)
        name = f"images/{series['key'].replace('~', '/')}" if series else path
        order = (int(series["step"]), int(series["time"]), path) if series else (0, 0, path)
        found[name] = max(found.get(name, order), order)
    return {name: path for name, (_, _, path) in found.items()}


def _is_inside(path: str) -> bool:
    """Whether an artifact path stays in its run's folder."""
    parts = PurePosixPath(path).parts
    return bool(parts) and ".." not in parts and not path.startswith("/") and "\\" not in path


def _source(client: MlflowClient, run_id: str, path: str) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = Path(client.download_artifacts(run_id, path, folder))
            with Image.open(file, formats=("PNG", "JPEG")) as image:
                image.thumbnail((SIDE, SIDE))
                drawn = io.BytesIO()
                image.convert("RGBA").save(drawn, "WEBP", quality=85)
        except (MlflowException, OSError, ValueError, Image.DecompressionBombError) as error:
            _logger.warning("The picture %r of run %s cannot be shown: %s", path, run_id, error)
            return None
    return f"data:image/webp;base64,{base64.b64encode(drawn.getvalue()).decode()}"

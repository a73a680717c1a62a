"""Artifacts of the runs of a comparison: listed once, and one run of each variant chosen."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_keras_adv.comparison.groups import Group

_logger = logging.getLogger(__name__)

# Limits of what is read from the store.
MAX_FOLDERS = 8
MAX_BYTES = 8_000_000
# Often only one seed has logged figures; so many runs of a variant are asked.
_MAX_RUNS = 3
_NOT_SHOWN = re.compile(r"^(checkpoints?|code|comparison|models?|params|tags)(/|$)")

# By name, the run and the path of each variant that has it, by the variant's number.
Places = Mapping[str, Mapping[int, tuple[str, str]]]


class Artifacts:
    """The artifacts that the runs of variants have logged.

    Args:
        groups: The variants.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = groups
        self._client = MlflowClient()
        self._listed: dict[str, list[str]] = {}

    def by_name(self, choose: Callable[[Sequence[str]], Mapping[str, str]]) -> Places:
        """Finds artifacts by name.

        Args:
            choose: From all paths of a run to the wanted paths, by name.

        Returns:
            By name, the most frequent first: run and path in each variant, of the oldest run that
            has one.
        """
        places: dict[str, dict[int, tuple[str, str]]] = {}
        for number, group in enumerate(self._groups):
            for run_id in [run.info.run_id for run in group.runs[:_MAX_RUNS]]:
                if chosen := choose(self._paths(run_id)):
                    for name, path in chosen.items():
                        places.setdefault(name, {})[number] = run_id, path
                    break
        return dict(sorted(places.items(), key=lambda item: (-len(item[1]), item[0])))

    def download(self, run_id: str, path: str, folder: str) -> Path:
        """Downloads an artifact into a folder.

        Raises:
            OSError: It cannot be downloaded.
        """
        try:
            return Path(self._client.download_artifacts(run_id, path, folder))
        except MlflowException as error:
            raise OSError(str(error)) from error

    def _paths(self, run_id: str) -> list[str]:
        """Paths of files in the run's folder and the folders in it, without large ones."""
        if run_id not in self._listed:
            found: list[str] = []
            folders = [""]
            try:
                for folder in folders:
                    for file in self._client.list_artifacts(run_id, folder or None):
                        if file.is_dir and not folder and not _NOT_SHOWN.match(file.path):
                            folders += [file.path] if len(folders) <= MAX_FOLDERS else []
                        elif not file.is_dir and (file.file_size or 0) <= MAX_BYTES:
                            found.append(file.path)
            except (MlflowException, OSError) as error:
                _logger.warning("The artifacts of run %s cannot be listed: %s", run_id, error)
            self._listed[run_id] = [path for path in found if _is_inside(path)]
        return self._listed[run_id]


def _is_inside(path: str) -> bool:
    """Whether an artifact path stays in its run's folder."""
    parts = PurePosixPath(path).parts
    return bool(parts) and ".." not in parts and not path.startswith("/") and "\\" not in path

"""Artifacts that a server stores for its clients, for a durable address of that server."""

import functools
import posixpath
import re
import shutil
from pathlib import Path
from typing import Any

from mlflow.entities import FileInfo
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

from mlflow_keras_adv.durable.answers import AwayError
from mlflow_keras_adv.durable.store import DurableStore, open_store
from mlflow_keras_adv.tracking.durable_address import plain_uri

_OWNER = re.compile(r"/(?P<owner>[^/]+)/artifacts(?:/(?P<inside>.*))?$")


class DurableArtifacts(MlflowArtifactsRepository):
    """The artifacts of a run or a model: what the server does not take goes to the journal.

    Args:
        artifact_uri: Where they are: `mlflow-artifacts:/…`.
        tracking_uri: A durable address of the server.
        **options: What MLflow gives beside.
    """

    def __init__(self, artifact_uri: str, tracking_uri: str, **options: Any) -> None:
        super().__init__(artifact_uri, tracking_uri=plain_uri(tracking_uri), **options)
        self._durable: DurableStore = open_store(tracking_uri)
        found = _OWNER.search(artifact_uri)
        self._owner = found["owner"] if found else ""
        self._inside = (found["inside"] or "") if found else ""

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Uploads a file, now or later."""
        self._durable.upload(
            self._owner,
            Path(local_file),
            self._place(artifact_path),
            lambda: super(DurableArtifacts, self).log_artifact(local_file, artifact_path),
        )

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        """Uploads the files of a folder, now or later."""
        self._durable.upload(
            self._owner,
            Path(local_dir),
            self._place(artifact_path),
            lambda: super(DurableArtifacts, self).log_artifacts(local_dir, artifact_path),
        )

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        """What is there, after all that was handed in; while the server is away, what waits."""
        ask = functools.partial(super().list_artifacts, path)
        try:
            return list(self._durable.ask_for_files(self._owner, ask))
        except AwayError as away:
            folder = f"{path.strip('/')}/" if path else ""
            found: dict[str, FileInfo] = {}
            for place, file in self._waiting(away).items():
                if place.startswith(folder):
                    name, _, deeper = place.removeprefix(folder).partition("/")
                    size = None if deeper else file.stat().st_size
                    found[name] = FileInfo(f"{folder}{name}", bool(deeper), size)
            return [found[name] for name in sorted(found)]

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        ask = functools.partial(super()._download_file, remote_file_path, local_path)
        try:
            self._durable.ask_for_files(self._owner, ask)
        except AwayError as away:
            waiting = self._waiting(away)
            if remote_file_path not in waiting:
                raise away.__cause__ or away from None
            shutil.copyfile(waiting[remote_file_path], local_path)

    def _waiting(self, away: AwayError) -> dict[str, Path]:
        found = self._durable.waiting_files(self._owner)
        if found is None or self._inside:
            raise away.__cause__ or away from None
        return found

    def _place(self, artifact_path: str | None) -> str | None:
        return posixpath.join(self._inside, artifact_path or "").strip("/") or None

"""MLflow's own ways to write figures, images, texts and dicts, with the files handed in."""

from collections.abc import Callable, Mapping
from typing import Any

from mlflow import MlflowClient


class StagingClient(MlflowClient):
    """A client whose files and tags go to a run's outbox.

    Args:
        tracking_uri: The store of the run.
        log_artifact: Takes a copy of a file, and the folder of artifacts to put it in.
        set_tags: Takes tags.
    """

    def __init__(
        self,
        tracking_uri: str,
        log_artifact: Callable[[str, str | None], None],
        set_tags: Callable[[Mapping[str, object]], None],
    ) -> None:
        super().__init__(tracking_uri)
        self._log_artifact = log_artifact
        self._set_tags = set_tags

    def log_artifact(self, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
        """Hands in a file."""
        self._log_artifact(local_path, artifact_path)

    def set_tag(self, run_id: str, key: str, value: Any, synchronous: bool | None = None) -> None:
        """Hands in a tag."""
        self._set_tags({key: value})

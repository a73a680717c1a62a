"""The store that runs are carried to, and which of its answers are final."""

import re
import tempfile
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.utils.file_utils import local_file_uri_to_path

from mlflow_keras_adv.compat.mlflow import refused_though_stored

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Of a run in the source: the run of the target that it goes on.
CONTINUES_TAG = "mlflow_keras_adv.continues"

_MLFLOW_ID = re.compile(r"\b(?:m-)?[0-9a-f]{32}\b")


class RejectedError(Exception):
    """The store has understood the call and will never accept it."""


@dataclass
class Carried:
    """What became of one run.

    Attributes:
        run_id: Its id in the source.
        target_run_id: Its id in the target, or None if the run as a whole was rejected.
        points: Metric values that the target holds.
        refused_points: Metric values that it rejected.
        refused: Why, by the name of each thing that it rejected.
    """

    run_id: str
    target_run_id: str | None = None
    points: int = 0
    refused_points: int = 0
    refused: dict[str, str] = field(default_factory=dict)

    def refuse(self, name: str, reason: object) -> None:
        """Notes the name of something that the target rejected."""
        self.refused[name] = str(reason)


class Target:
    """A store, and what is known of it.

    Args:
        client: The store.
        ids: Id in the target by id in the source; kept by the caller.
        progress: Called after each call to the store.

    Attributes:
        client: The store.
        ids: As given.
        places: Artifact root in the target by artifact root in the source.
    """

    def __init__(
        self,
        client: MlflowClient,
        ids: MutableMapping[str, str],
        progress: Callable[[], None],
    ) -> None:
        self.client = client
        self.ids = ids
        self.places: dict[str, str] = {}
        self._progress = progress

    def ask(self, call: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """What a method of the client returns.

        Raises:
            RejectedError: The store rejects the call for good.
            Exception: Any other error of the call; the same call may succeed later.
        """
        try:
            return call(*args, **kwargs)
        except Exception as error:
            if _is_rejection(error):
                raise RejectedError(str(error)) from error
            raise
        finally:
            self._progress()

    def find_or_create(
        self,
        find: Callable[[], Sequence[_T]],
        create: Callable[[], object],
        delete: Callable[[_T], object],
    ) -> _T:
        """The one thing of a uid, which may have been created by an earlier call.

        MLflow's HTTP client sends a creation again if its answer is lost, and then there are two.

        Args:
            find: What there is of the uid, in an order that does not change.
            create: Creates one.
            delete: Deletes what was created twice.

        Raises:
            RejectedError: It cannot be created.
        """
        found = find()
        if not found:
            create()
            found = find()
        for twin in found[1:]:
            with suppress(RejectedError):  # it is gone already
                delete(twin)
        return found[0]

    def active_run(self, run_id: str) -> Run:
        """A run that takes values.

        Raises:
            RejectedError: There is none, or it was deleted.
        """
        run = self.ask(self.client.get_run, run_id)
        if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
            raise RejectedError(f"Run {run_id} was deleted there.")
        return run

    def log(
        self, run_id: str, entities: Sequence[Metric | Param | RunTag], carried: Carried
    ) -> int:
        """Logs metrics, params or tags in one call; if it is rejected, finds out which of them.

        Args:
            run_id: The run, in the target.
            entities: At most 1000.
            carried: Where the rejected ones are noted.

        Returns:
            How many were accepted.

        Raises:
            RejectedError: The run takes no values any more.
        """
        if not entities:
            return 0
        try:
            self.ask(
                self.client.log_batch,
                run_id,
                metrics=[each for each in entities if isinstance(each, Metric)],
                params=[each for each in entities if isinstance(each, Param)],
                tags=[each for each in entities if isinstance(each, RunTag)],
                synchronous=True,
            )
        except RejectedError as error:
            self.active_run(run_id)
            stored = self.ask(refused_though_stored, self.client, run_id, entities)
            if stored:
                left = [each for index, each in enumerate(entities) if index not in stored]
                return len(stored) + self.log(run_id, left, carried)
            if len(entities) == 1:
                carried.refuse(entities[0].key, error)
                return 0
            middle = len(entities) // 2
            halves = entities[:middle], entities[middle:]
            return sum(self.log(run_id, half, carried) for half in halves)
        return len(entities)

    def translate(self, text: str) -> str:
        """A text in which ids and artifact roots of the source became those of the target."""
        for here, there in self.places.items():
            text = text.replace(here, there)
        return _MLFLOW_ID.sub(lambda match: self.ids.get(match[0], match[0]), text)

    def upload(
        self,
        artifact_root: str,
        call: Callable[[str, str, str | None], None],
        owner_id: str,
        carried: Carried,
        prefix: str = "",
    ) -> None:
        """Uploads a folder of artifacts, file by file; a file again overwrites itself.

        Args:
            artifact_root: URI of the folder, on this machine.
            call: `log_artifact` or `log_model_artifact` of the client.
            owner_id: The run or model, in the target.
            carried: Where rejected files are noted.
            prefix: Before the file's path in these notes.
        """
        root = Path(local_file_uri_to_path(artifact_root))
        with tempfile.TemporaryDirectory() as folder:
            for file in sorted(path for path in root.rglob("*") if path.is_file()):
                place = file.relative_to(root)
                parent = None if place.parent == Path() else place.parent.as_posix()
                try:
                    if file.name == MLMODEL_FILE_NAME:  # it names its model, its run, its place
                        text = self.translate(file.read_text(encoding="utf-8"))
                        file = Path(folder, MLMODEL_FILE_NAME)
                        file.write_text(text, encoding="utf-8")
                    self.ask(call, owner_id, str(file), parent)
                except RejectedError as error:
                    carried.refuse(f"{prefix}{place.as_posix()}", error)


def _is_rejection(error: Exception) -> bool:
    """Whether the store has answered, and not about itself: a login, a limit, a lock may pass.

    An error of an unknown kind is none: what is not delivered must not be taken for refused.
    """
    if isinstance(error, MlflowException):
        # All connections of the database are in use: to MLflow that is a bad request.
        if "QueuePool limit" in error.message:
            return False
        status = error.get_http_status_code()
    elif type(error).__module__.startswith("requests"):
        status = getattr(getattr(error, "response", None), "status_code", 503)
    else:
        return isinstance(error, FileNotFoundError)  # of an artifact that is gone here
    return 400 <= status < 500 and status not in (401, 403, 408, 429)

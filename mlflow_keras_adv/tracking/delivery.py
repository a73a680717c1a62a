"""Delivery: takes what was handed in for a run to its store. Used by the writer's thread alone."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from threading import Lock
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

from mlflow_keras_adv.tracking.names import metric_key, same_param
from mlflow_keras_adv.tracking.pending import (
    Artifact,
    Deletion,
    End,
    Flush,
    Input,
    Params,
    Record,
    Table,
    Tags,
)

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")

# Between two attempts at a store that fails: doubled from the first to the longest.
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0


class AbandonedError(Exception):
    """The store did not take what was left in the time that was given."""


class Delivery:
    """Calls the store until it has answered.

    An error of the connection or the server is retried until it passes, with one warning for each
    kind. What the store rejects is refused by name, and the rest of its batch delivered.

    Args:
        run_id: The run to write to.
        client: Its store.

    Attributes:
        refused: How often each name was refused.
    """

    def __init__(self, run_id: str, client: MlflowClient) -> None:
        self.refused: Counter[str] = Counter()
        self._run_id = run_id
        self._client = client
        self._counting = Lock()
        self._warned: set[str] = set()
        self._nudges: SimpleQueue[None] = SimpleQueue()
        self._abandoned = False

    def send(self, entities: Sequence[Metric | Param | RunTag]) -> None:
        """Logs metrics, params or tags in one call; if it is rejected, finds out which of them.

        Args:
            entities: At most 1000.

        Raises:
            AbandonedError: If `abandon` was called meanwhile.
        """
        if not entities:
            return
        metrics = [entity for entity in entities if isinstance(entity, Metric)]
        params = [entity for entity in entities if isinstance(entity, Param)]
        tags = [entity for entity in entities if isinstance(entity, RunTag)]
        try:
            self._attempt(
                lambda: self._client.log_batch(
                    self._run_id, metrics=metrics, params=params, tags=tags, synchronous=True
                )
            )
        except AbandonedError:
            raise
        except Exception as error:
            if len(entities) > 1 and self._run_takes_values():
                middle = len(entities) // 2
                self.send(entities[:middle])
                self.send(entities[middle:])
            else:
                for entity in entities:
                    self.refuse(entity.key, str(error))

    def write(self, item: Record | End | Flush) -> None:
        """Delivers one item.

        Raises:
            AbandonedError: If `abandon` was called meanwhile.
        """
        match item:
            case Params(values):
                self._write_params(values)
            case Tags(values):
                self._write_tags(values)
            case Artifact(path, artifact_path):
                call = self._client.log_artifact
                try:
                    self._deliver(path.name, lambda: call(self._run_id, str(path), artifact_path))
                finally:
                    item.discard()
            case Table(data, artifact_file):
                self._deliver(
                    artifact_file,
                    lambda: self._client.log_table(self._run_id, data, artifact_file),
                )
            case Input(dataset):
                self._deliver(
                    f"dataset {dataset.dataset.name}",
                    lambda: self._client.log_inputs(self._run_id, datasets=[dataset]),
                )
            case Deletion(artifact_file):
                self._delete(artifact_file)
            case End(status):
                self._deliver(
                    f"status {status}",
                    lambda: self._client.set_terminated(self._run_id, status),
                )
            case Flush(answer):
                answer.put(True)

    def hurry(self) -> None:
        """Ends the pause before the next attempt: somebody waits."""
        self._nudges.put(None)

    def abandon(self) -> None:
        """Makes the attempts end, as soon as the call to the store that is under way returns."""
        self._abandoned = True
        self.hurry()

    def refuse(self, name: str, reason: str, count: int = 1) -> None:
        """Counts what cannot be recorded, and says so once for each name."""
        with self._counting:
            self.refused[name] += count
        self.warn_once(
            f"refused {name}", "%s of run %s is not recorded: %s", name, self._run_id, reason
        )

    def warn_once(self, kind: str, message: str, *arguments: object) -> None:
        """Logs a warning, the first time for its kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            _logger.warning(message, *arguments)

    def _write_params(self, values: Mapping[str, object]) -> None:
        try:
            stored = self._attempt(lambda: self._client.get_run(self._run_id)).data.params
        except AbandonedError:
            raise
        except Exception as error:
            for name in values:
                self.refuse(name, str(error))
            return
        params, changes = [], {}
        for name, value in values.items():
            key, text = metric_key(name), str(value)
            if key not in stored:
                params.append(Param(key, self._head(text, MAX_PARAM_VAL_LENGTH, f"params/{key}")))
            elif not same_param(stored[key], value) and stored[key] != text[:MAX_PARAM_VAL_LENGTH]:
                changes[f"param.{key}.changed"] = text
        self.send(params)
        self._write_tags(changes)

    def _write_tags(self, values: Mapping[str, str]) -> None:
        tags = []
        for name, text in values.items():
            key = metric_key(name)
            tags.append(RunTag(key, self._head(text, MAX_TAG_VAL_LENGTH, f"tags/{key}")))
        self.send(tags)

    def _head(self, text: str, length: int, place: str) -> str:
        """As much of a text as MLflow takes; a longer one goes to an artifact as well."""
        if len(text) > length:
            file = f"{place}.txt"
            self._deliver(file, lambda: self._client.log_text(self._run_id, text, file))
        return text[:length]

    def _delete(self, artifact_file: str) -> None:
        """Tries once: not every artifact store can delete, or lets everyone do so."""
        folder, _, name = artifact_file.rpartition("/")
        try:
            place = get_artifact_repository(
                f"runs:/{self._run_id}/{folder}", tracking_uri=self._client.tracking_uri
            )
            place.delete_artifacts(name)
        except Exception as error:
            self.warn_once(
                "delete",
                "Run %s keeps artifacts that should be gone: deleting %s failed with %r",
                self._run_id,
                artifact_file,
                error,
            )

    def _deliver(self, name: str, call: Callable[[], object]) -> None:
        try:
            self._attempt(call)
        except AbandonedError:
            raise
        except Exception as error:
            self.refuse(name, str(error))

    def _attempt(self, call: Callable[[], _T]) -> _T:
        """What the call returns, or raises because the store rejects it."""
        while not self._nudges.empty():
            self._nudges.get()
        pause = FIRST_PAUSE_SECONDS
        while not self._abandoned:
            try:
                return call()
            except Exception as error:
                if not _may_pass(error):
                    raise
                self.warn_once(
                    f"retry {getattr(error, 'error_code', type(error).__name__)}",
                    "The tracking store does not take the values of run %s for now; "
                    "they are kept and sent again: %s",
                    self._run_id,
                    error,
                )
            try:
                self._nudges.get(timeout=pause)
                pause = FIRST_PAUSE_SECONDS
            except Empty:
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        raise AbandonedError

    def _run_takes_values(self) -> bool:
        try:
            info = self._attempt(lambda: self._client.get_run(self._run_id)).info
        except MlflowException:
            return False
        return bool(info.lifecycle_stage == LifecycleStage.ACTIVE)


def _may_pass(error: Exception) -> bool:
    """Whether the same call may succeed later: a connection, a server, a lock, a login."""
    if isinstance(error, MlflowException):
        # All connections of the database are in use: to MLflow that is a bad request.
        if "QueuePool limit" in error.message:
            return True
        status = error.get_http_status_code()
    elif type(error).__module__.startswith("requests"):
        status = getattr(getattr(error, "response", None), "status_code", 503)
    else:
        return isinstance(error, ConnectionError | TimeoutError)
    return status >= 500 or status in (401, 403, 408, 429)

"""Delivery: takes what was handed in for a run to its store. Used by the writer's thread alone."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Metric, Param, RunTag
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_BACKOFF_JITTER
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.uri import get_uri_scheme, is_http_uri
from mlflow.utils.validation import (
    MAX_PARAM_VAL_LENGTH,
    MAX_PARAMS_TAGS_PER_BATCH,
    MAX_TAG_VAL_LENGTH,
)

from mlflow_keras_adv.compat.mlflow import refused_though_stored
from mlflow_keras_adv.tracking.attempts import AbandonedError, Attempts
from mlflow_keras_adv.tracking.co_writers import CoWriters
from mlflow_keras_adv.tracking.courier import batches, count, courier_to, dismiss
from mlflow_keras_adv.tracking.items import (
    Artifact,
    Deletion,
    End,
    Flush,
    Input,
    Model,
    Params,
    Points,
    Record,
    Refusal,
    Series,
    Table,
    Tags,
)
from mlflow_keras_adv.tracking.logged_models import COPY_IS_GONE, ModelIds, deliver_model
from mlflow_keras_adv.tracking.names import metric_key, same_param
from mlflow_keras_adv.tracking.pending import Pending
from mlflow_keras_adv.tracking.store import probe
from mlflow_keras_adv.tracking.tables import write_table

_logger = logging.getLogger(__name__)


class Delivery:
    """Calls the store until it has answered.

    What the store rejects is refused by name, and the rest of its batch delivered. Everything may
    be delivered twice without harm, so that an answer that was lost needs no care.

    Args:
        run_id: The run to write to.
        client: Its store.
        pending: Where what is refused is counted.

    Attributes:
        attempts: What repeats the calls.
        to_file: Whether the store is a database file.
    """

    def __init__(self, run_id: str, client: MlflowClient, pending: Pending) -> None:
        self._run_id = run_id
        self._client = client
        self._pending = pending
        self.to_file = get_uri_scheme(client.tracking_uri).startswith("sqlite")
        self.attempts = Attempts(run_id, self._ask, pending.progress)
        self._model_ids = ModelIds(client, run_id)
        if is_http_uri(client.tracking_uri) and not MLFLOW_HTTP_REQUEST_BACKOFF_JITTER.is_set():
            # Between its own attempts MLflow waits for a time that it draws from Python's random,
            # here on a thread beside the training, which draws from it too.
            MLFLOW_HTTP_REQUEST_BACKOFF_JITTER.set(0.0)

    def send_values(self, items: Sequence[Points | Series]) -> None:
        """Logs metric values, however many; if they are rejected, finds out which of them.

        Raises:
            AbandonedError: If the attempts were abandoned meanwhile.
        """
        count(self._client.tracking_uri, sum(len(item) for item in items))
        if courier_to(self._client.tracking_uri) is not None:
            try:
                self.attempts.until_answered(
                    lambda: self._log([self._model_ids.values(item) for item in items], [], [])
                )
                return
            except AbandonedError:
                raise
            except Exception as error:
                _logger.debug("the values of run %s are sent one by one: %r", self._run_id, error)
        for batch in batches(chain.from_iterable(items)):
            self.send(batch)

    def send(self, entities: Sequence[Metric | Param | RunTag]) -> None:
        """Logs metrics, params or tags in one call; if it is rejected, finds out which of them.

        Args:
            entities: At most 1000.

        Raises:
            AbandonedError: If the attempts were abandoned meanwhile.
        """
        if not entities:
            return
        metrics = [entity for entity in entities if isinstance(entity, Metric)]
        params = [entity for entity in entities if isinstance(entity, Param)]
        tags = [entity for entity in entities if isinstance(entity, RunTag)]
        try:
            self.attempts.until_answered(
                lambda: self._log(
                    [self._model_ids.values(Points(metrics))],
                    params,
                    [RunTag(tag.key, self._model_ids.true(tag.value)) for tag in tags],
                )
            )
        except AbandonedError:
            raise
        except Exception as error:
            stored = self._refused_though_stored(entities)
            if stored:
                self.send([each for at, each in enumerate(entities) if at not in stored])
            elif len(entities) > 1 and self._run_takes_values():
                middle = len(entities) // 2
                self.send(entities[:middle])
                self.send(entities[middle:])
            else:
                for entity in entities:
                    self.refuse(entity.key, str(error), points=isinstance(entity, Metric))

    def _refused_though_stored(self, entities: Sequence[Metric | Param | RunTag]) -> list[int]:
        if not any(isinstance(each, Metric) for each in entities):
            return []
        sent = [
            next(iter(self._model_ids.values(Points([each])))) if isinstance(each, Metric) else each
            for each in entities
        ]
        try:
            return self.attempts.until_answered(
                lambda: refused_though_stored(self._client, self._run_id, sent)
            )
        except MlflowException:  # the run may be gone
            return []

    def write(self, item: Record | Refusal | End | Flush) -> None:
        """Delivers one item.

        Raises:
            AbandonedError: If the attempts were abandoned meanwhile.
        """
        match item:
            case Params(values):
                self._write_params(values)
            case Tags(values):
                self._write_tags(values)
            case Artifact():
                self._deliver(item.path.name, lambda: self._upload(item))
            case Model():
                self._deliver(f"model {item.name}", lambda: self._deliver_model(item))
            case Table():
                self._deliver(
                    item.artifact_file, lambda: write_table(self._client, self._run_id, item)
                )
            case Input(dataset):
                self._deliver(
                    f"dataset {dataset.dataset.name}",
                    lambda: self._client.log_inputs(self._run_id, datasets=[dataset]),
                )
            case Deletion(artifact_file):
                self._delete(artifact_file)
            case Refusal(name, reason, points):
                self.refuse(name, reason, points)
            case End():
                self._end(item)
            case Flush(answer):
                answer.put(True)

    def refuse(self, name: str, reason: str, points: int = 0) -> None:
        """Counts what cannot be recorded, and says so once for each name.

        Args:
            name: Name of a metric, param, tag or artifact.
            reason: Why.
            points: How many metric values; 0 for anything else.
        """
        self._pending.refuse(name, points)
        self.warn_refused(name, reason)

    def warn_refused(self, name: str, reason: str) -> None:
        """Says once for each name that it cannot be recorded."""
        self.attempts.warn_once(
            f"refused {name}", "%s of run %s is not recorded: %s", name, self._run_id, reason
        )

    def _log(
        self, values: Sequence[Points | Series], params: list[Param], tags: list[RunTag]
    ) -> None:
        """One call to the store, by the courier if there is one."""
        courier = courier_to(self._client.tracking_uri)
        if courier is None:
            metrics = list(chain.from_iterable(values))
            self._client.log_batch(
                self._run_id, metrics=metrics, params=params, tags=tags, synchronous=True
            )
            return
        try:
            courier.log(self._run_id, values, params, tags, progress=self._pending.progress)
        except OSError:
            dismiss(courier)
            raise ConnectionError("the process that sends values has ended") from None

    def _ask(self) -> None:
        """Asks the store whether it answers, within seconds: MLflow would go on for minutes."""
        if courier_to(self._client.tracking_uri) is None:  # which asks by itself
            probe(self._client.tracking_uri)

    def _write_params(self, values: Mapping[str, object]) -> None:
        """Sends them at once; only if the store rejects them, looks which of them it has."""
        texts = {metric_key(name): str(value) for name, value in values.items()}
        short = all(len(text) <= MAX_PARAM_VAL_LENGTH for text in texts.values())
        try:
            if short and len(texts) <= MAX_PARAMS_TAGS_PER_BATCH:
                params = [Param(*each) for each in texts.items()]
                self.attempts.until_answered(lambda: self._log([], params, []))
                return
        except AbandonedError:
            raise
        except Exception as error:
            _logger.debug("the params of run %s are sent one by one: %r", self._run_id, error)
        self._write_new_params(values)

    def _write_new_params(self, values: Mapping[str, object]) -> None:
        try:
            run = self.attempts.until_answered(lambda: self._client.get_run(self._run_id))
        except AbandonedError:
            raise
        except Exception as error:
            for name in values:
                self.refuse(name, str(error))
            return
        params, changes, stored = [], {}, run.data.params
        for name, value in values.items():
            key, text = metric_key(name), str(value)
            if key not in stored:
                params.append(Param(key, self._head(text, MAX_PARAM_VAL_LENGTH, f"params/{key}")))
            elif not same_param(stored[key], value) and stored[key] != text[:MAX_PARAM_VAL_LENGTH]:
                changes[f"param.{key}.changed"] = text
        for start in range(0, len(params), MAX_PARAMS_TAGS_PER_BATCH):
            self.send(params[start : start + MAX_PARAMS_TAGS_PER_BATCH])
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

    def _end(self, end: End) -> None:
        others = CoWriters(self._run_id)
        try:
            receipt = self._pending.receipt() + others.deliver(self._drain)
            self._write_tags(receipt.tags())
            self._deliver(
                f"status {end.status}",
                lambda: self._client.set_terminated(self._run_id, end.status, end.end_time),
            )
            others.counted()
        finally:
            others.leave()

    def _drain(self, pending: Pending) -> None:
        """Delivers what is pending in another journal of the run."""
        delivery = Delivery(self._run_id, self._client, pending)
        delivery.attempts = self.attempts
        while (taken := pending.take(timeout=0)) is not None:
            place, item = taken
            if isinstance(item, Points | Series):
                delivery.send_values([item])
            elif not isinstance(item, End):  # that is the matter of the process that ends the run
                delivery.write(item)
            if not isinstance(item, Flush):
                pending.settle(place, item)
            if isinstance(item, Artifact | Model):
                item.discard()

    def _upload(self, artifact: Artifact) -> None:
        if artifact.path.exists():
            path, folder = str(artifact.path), artifact.artifact_path
            self._client.log_artifact(self._run_id, path, folder)
            return
        # It was settled, and the copy deleted, by a process that could not write that down.
        stored = self._client.list_artifacts(self._run_id, artifact.artifact_path)
        if artifact.path.name not in {Path(each.path).name for each in stored}:
            raise FileNotFoundError(COPY_IS_GONE)

    def _deliver_model(self, model: Model) -> None:
        tags = {name: self._model_ids.true(text) for name, text in model.tags.items()}
        deliver_model(self._client, self._run_id, replace(model, tags=tags))
        # What they name may have been delivered meanwhile, by another thread that did not see them.
        late = {name: self._model_ids.true(text) for name, text in tags.items()}
        if late != tags:
            self._client.set_logged_model_tags(self._model_ids.true(model.uid), late)

    def _delete(self, artifact_file: str) -> None:
        """Tries once: not every artifact store can delete, or lets everyone do so."""
        folder, _, name = artifact_file.rpartition("/")
        try:
            place = get_artifact_repository(
                f"runs:/{self._run_id}/{folder}", tracking_uri=self._client.tracking_uri
            )
            place.delete_artifacts(name)
        except Exception as error:
            self.attempts.warn_once(
                "delete",
                "Run %s keeps artifacts that should be gone: deleting %s failed with %r",
                self._run_id,
                artifact_file,
                error,
            )

    def _deliver(self, name: str, call: Callable[[], object]) -> None:
        try:
            self.attempts.until_answered(call)
        except AbandonedError:
            raise
        except Exception as error:
            self.refuse(name, str(error))

    def _run_takes_values(self) -> bool:
        try:
            info = self.attempts.until_answered(lambda: self._client.get_run(self._run_id)).info
        except MlflowException:
            return False
        return bool(info.lifecycle_stage == LifecycleStage.ACTIVE)

"""Delivery: applies records to a run of a store; what the store rejects is refused by name.

Everything may be applied twice without harm, so that an answer that was lost needs no care. Records
come from the journal of a run (`journal_delivery`), or are those of a whole run that was recorded
offline (`copy_runs`).
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, TypeVar

from mlflow.entities import Metric, Param, RunTag
from mlflow.utils.validation import (
    MAX_METRICS_PER_BATCH,
    MAX_PARAM_VAL_LENGTH,
    MAX_PARAMS_TAGS_PER_BATCH,
    MAX_TAG_VAL_LENGTH,
)

from mlflow_keras_adv.compat.mlflow import delete_artifact, refused_though_stored
from mlflow_keras_adv.tracking.artifact_stores import require_reachable
from mlflow_keras_adv.tracking.logged_models import ModelIds
from mlflow_keras_adv.tracking.names import folded, metric_key, same_param
from mlflow_keras_adv.tracking.retry import FAILURES, FAILURES_OF_A_PART, Retry
from mlflow_keras_adv.tracking.target import Target
from mlflow_keras_adv.tracking.texts import TWIN, without_sql
from mlflow_keras_adv.tracking.verdict import RejectedError, of_artifacts

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")

# Called with what is refused: its name, the reason, and how many metric values it is.
Refuse = Callable[[str, str, int], object]

# A tag that is written and deleted again, to see whether the store takes anything.
_PROOF_TAG = "mlflow_keras_adv.proof"


class Delivery:
    """Applies records to one run.

    Args:
        run_id: The run.
        target: Its store.
        retry: What makes the calls.
        refuse: Takes what the store rejects.

    Attributes:
        run_id: As given.
        target: As given.
        client: The client of the store.
        retry: As given.
    """

    def __init__(self, run_id: str, target: Target, retry: Retry, refuse: Refuse) -> None:
        self.run_id = run_id
        self.target = target
        self.client = target.client
        self.retry = retry
        self._refuse = refuse
        self._model_ids = ModelIds(target.client, run_id)
        self._tags: dict[str, str] = {}  # the first key that was set, by what it is folded to
        self._store_folds: bool | None = None
        self._artifact_uri: str | None = None

    def attempt(self, name: str, call: Callable[[], object], **how: Any) -> None:
        """Makes a call; if the store rejects it, it is refused by name.

        Args:
            name: What the call is about.
            call: The call.
            **how: What `Retry.until_answered` takes.

        Raises:
            RetryCancelledError: If the retries were cancelled meanwhile.
        """
        try:
            self.retry.until_answered(call, **how)
        except RejectedError as error:
            self.refuse(name, str(error))

    def refuse(self, name: str, reason: str, points: int = 0) -> None:
        """Counts what cannot be recorded.

        Args:
            name: Name of a metric, param, tag or artifact.
            reason: Why.
            points: How many metric values; 0 for anything else.
        """
        self._refuse(name, without_sql(reason), points)

    def send_values(self, values: Iterable[Metric]) -> None:
        """Logs metric values, however many."""
        for batch in batches(values, MAX_METRICS_PER_BATCH):
            self.send(batch)

    def send(
        self, entities: Sequence[Metric | Param | RunTag], *, failures: int = FAILURES
    ) -> None:
        """Logs metrics, params or tags in one call; if it is rejected, finds out which of them.

        Args:
            entities: At most 1000.
            failures: How often the store may fail before it is asked whether it takes others.

        Raises:
            RetryCancelledError: If the retries were cancelled meanwhile.
        """
        if not entities:
            return
        try:
            self.retry.until_answered(lambda: self.log_batch(entities), failures=failures)
        except RejectedError as error:
            stored = self._refused_though_stored(entities)
            if stored:
                self.send([each for at, each in enumerate(entities) if at not in stored])
            elif len(entities) > 1 and self._run_takes_values():
                middle = len(entities) // 2
                for part in (entities[:middle], entities[middle:]):
                    self.send(part, failures=FAILURES_OF_A_PART)
            else:
                for entity in entities:
                    self.refuse(entity.key, str(error), points=isinstance(entity, Metric))

    def log_params(self, values: Mapping[str, object]) -> None:
        """Logs params at once; only if the store rejects them, looks which of them it has.

        One that the run holds with another value becomes a tag: MLflow cannot change a param.
        """
        texts = {metric_key(name): str(value) for name, value in values.items()}
        short = all(len(text) <= MAX_PARAM_VAL_LENGTH for text in texts.values())
        if short and len(texts) <= MAX_PARAMS_TAGS_PER_BATCH:
            params = [Param(*each) for each in texts.items()]
            try:
                self.retry.until_answered(lambda: self.log_batch(params), failures=FAILURES)
                return
            except RejectedError as error:
                _logger.debug("the params of run %s are looked at: %s", self.run_id, error)
        try:
            run = self.retry.until_answered(lambda: self.client.get_run(self.run_id))
        except RejectedError as error:
            for name in values:
                self.refuse(name, str(error))
            return
        new, changes, stored = [], {}, run.data.params
        for name, value in values.items():
            key, text = metric_key(name), str(value)
            if key not in stored:
                new.append(Param(key, self._head(text, MAX_PARAM_VAL_LENGTH, f"params/{key}")))
            elif not same_param(stored[key], value) and stored[key] != text[:MAX_PARAM_VAL_LENGTH]:
                changes[f"param.{key}.changed"] = text
        for batch in batches(new, MAX_PARAMS_TAGS_PER_BATCH):
            self.send(batch)
        self.set_tags(changes)

    def upload(self, record: Any, call: Callable[[], object]) -> None:
        """Makes a call that brings a record to the store of the artifacts.

        Args:
            record: The `records.Record`.
            call: The call.

        Raises:
            RetryCancelledError: If the retries were cancelled meanwhile.
        """
        self.attempt(record.title, call, ask_first=True)

    def log_text(self, text: str, artifact_file: str) -> None:
        """Writes an artifact."""
        self.attempt(artifact_file, lambda: self.write_text(text, artifact_file))

    def write_text(self, text: str, artifact_file: str) -> None:
        """Writes an artifact by one call, once."""
        with of_artifacts():
            self.reach_artifact_store()
            self.client.log_text(self.run_id, text, artifact_file)

    def ask_artifact_store(self) -> None:
        """Asks once, on this thread, whether the store of the run's artifacts answers.

        Raises:
            Exception: It does not.
        """
        self.reach_artifact_store()
        with suppress(RejectedError):
            self.target.ask(self.client.list_artifacts, self.run_id, _PROOF_TAG)

    def reach_artifact_store(self) -> None:
        """Connects to the store of the run's artifacts, if it is a server whose address is known.

        Raises:
            OSError: It cannot be reached.
        """
        if self._artifact_uri is None:
            self._artifact_uri = self.client.get_run(self.run_id).info.artifact_uri
        require_reachable(self._artifact_uri)

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Sets tags; of a text that is too long for a tag, an artifact holds the whole."""
        tags = []
        for name, text in values.items():
            key = metric_key(name)
            if self._tags.setdefault(folded(key), key) != key and self._folds():
                self.refuse(key, TWIN)
                continue
            tags.append(RunTag(key, self._head(text, MAX_TAG_VAL_LENGTH, f"tags/{key}")))
        for batch in batches(tags, MAX_PARAMS_TAGS_PER_BATCH):
            self.send(batch)

    def add_rows(self, tag: str, rows: Sequence[object]) -> None:
        """Has a tag that is a list in JSON hold these rows too. Makes its calls once."""
        known = json.loads(self.client.get_run(self.run_id).data.tags.get(tag, "[]"))
        new = [row for row in rows if row not in known]
        if new:
            text = json.dumps(known + new)
            self.client.set_tag(self.run_id, tag, text, synchronous=True)

    def delete(self, artifact_file: str) -> None:
        """Tries once: not every artifact store can delete, or lets everyone do so."""
        try:
            delete_artifact(self.client, self.run_id, artifact_file)
        except Exception as error:
            self.retry.warn_once(
                "delete",
                "Run %s keeps artifacts that should be gone: deleting %s failed with %r",
                self.run_id,
                artifact_file,
                error,
            )

    def end(self, status: str, end_time: int) -> None:
        """Ends the run; `end_time` is in milliseconds since the epoch."""
        self.attempt(
            f"status {status}", lambda: self.client.set_terminated(self.run_id, status, end_time)
        )

    def true_id(self, text: str) -> str:
        """The id that the store has given to a model; any other text as it is. Calls it once."""
        return self._model_ids.true(text)

    def log_batch(self, entities: Sequence[Metric | Param | RunTag]) -> None:
        """Logs metrics, params or tags by one call, once; at most 1000."""
        metrics, params, tags = [], [], []
        for entity in entities:
            match entity:
                case Metric():
                    metrics.append(self._model_ids.of(entity))
                case Param():
                    params.append(entity)
                case RunTag(key=key, value=value):
                    tags.append(RunTag(key, self._model_ids.true(value)))
        self.client.log_batch(
            self.run_id, metrics=metrics, params=params, tags=tags, synchronous=True
        )

    def _refused_though_stored(self, entities: Sequence[Metric | Param | RunTag]) -> list[int]:
        if not any(isinstance(each, Metric) for each in entities):
            return []

        def look() -> list[int]:
            sent = [
                self._model_ids.of(each) if isinstance(each, Metric) else each for each in entities
            ]
            return refused_though_stored(self.client, self.run_id, sent)

        try:
            return self.retry.until_answered(look)
        except RejectedError:  # the run may be gone
            return []

    def _head(self, text: str, length: int, place: str) -> str:
        """As much of a text as MLflow takes; a longer one goes to an artifact as well."""
        if len(text) > length:
            self.log_text(text, f"{place}.txt")
        return text[:length]

    def _folds(self) -> bool:
        """Whether the store takes tags for one that differ in the case of letters.

        It would say so itself, after it has asked its database for 13 seconds.
        """

        def find_out() -> bool:
            self.client.log_batch(self.run_id, tags=[RunTag(_PROOF_TAG, "")], synchronous=True)
            found = False
            for key in (_PROOF_TAG.upper(), _PROOF_TAG):
                with suppress(RejectedError):
                    self.target.ask(self.client.delete_tag, self.run_id, key)
                    found = key != _PROOF_TAG
                    break
            return found

        if self._store_folds is None:
            try:
                self._store_folds = self.retry.until_answered(find_out)
            except RejectedError:
                self._store_folds = False
        return self._store_folds

    def _run_takes_values(self) -> bool:
        try:
            self.retry.until_answered(lambda: self.target.active_run(self.run_id))
        except RejectedError:
            return False
        return True


def prove(target: Target, run_id: str, text: str) -> None:
    """Writes a tag to a run and deletes it again.

    Raises:
        Exception: The store does not take it.
    """
    target.client.log_batch(run_id, tags=[RunTag(_PROOF_TAG, text)], synchronous=True)
    target.client.delete_tag(run_id, _PROOF_TAG)


def batches(values: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Values in lists of at most so many."""
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch

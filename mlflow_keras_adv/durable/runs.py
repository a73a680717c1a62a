"""A run that is written to through a durable address."""

from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Metric, Run, RunStatus
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.utils.time import get_current_time_millis

from mlflow_keras_adv.compat.mlflow import client_of
from mlflow_keras_adv.durable.answers import ANSWER_SECONDS, Answers, AwayError
from mlflow_keras_adv.durable.views import history_of, with_waiting
from mlflow_keras_adv.tracking import active
from mlflow_keras_adv.tracking.outbox import GRACE_SECONDS, is_delivering
from mlflow_keras_adv.tracking.records import Artifact, End, Points, Record
from mlflow_keras_adv.tracking.writer import RunWriter, open_writers

_T = TypeVar("_T")


class Place:
    """A store that runs are in.

    Args:
        store: MLflow's store.
        uri: Its plain tracking URI.

    Attributes:
        store: As given.
        uri: As given.
        answers: Whether it answers.
    """

    def __init__(self, store: AbstractStore, uri: str) -> None:
        self.store: Any = store
        self.uri = uri
        self.answers = Answers(uri)

    @cached_property
    def client(self) -> MlflowClient:
        """A client of it. Made when it is needed: MLflow builds one store at a time."""
        return client_of(self.uri)


class DurableRun:
    """One run: metric values go to a journal, other calls to the store itself while it answers.

    What a call would have changed goes to the journal too if the store is away. Order is kept:
    a call is made once all that was handed in before it is in the store.

    Args:
        run_id: The run.
        place: The store that it is in.
        seen: What the store shows of it; None if it was not asked yet.

    Attributes:
        run_id: As given.
        place: As given.
    """

    def __init__(self, run_id: str, place: Place, seen: Run | None) -> None:
        self.run_id = run_id
        self.place = place
        self._seen = seen
        self._last: dict[str, Metric] = {}
        self._writer: RunWriter | None = None
        self._making = Lock()  # held for moments; of two writers, the end would see one only

    @property
    def writer(self) -> RunWriter:
        """What delivers: that of `track` if the run is open there, else its own."""
        shared = open_writers.get(self.run_id)
        if shared is not None and not shared.has_ended:
            return shared
        with self._making:
            if self._writer is None or self._writer.has_ended:
                self._writer = RunWriter(
                    self.run_id, self.place.client, in_use=lambda: active.is_active(self.run_id)
                )
            return self._writer

    @property
    def was_asked_for(self) -> bool:
        """Whether the store was seen to have it."""
        return self._seen is not None

    @property
    def is_away(self) -> bool:
        """Whether its store takes nothing for now."""
        return self.place.answers.is_away or self.writer.is_failing

    def log_metrics(self, metrics: list[Metric]) -> None:
        """Hands in values, as they are."""
        self._last |= {metric.key: metric for metric in metrics}
        self.writer.hand_in(Points(metrics))

    def is_delivered(self) -> bool:
        """Whether all that was handed in is in the store, which is waited for if it answers."""
        if is_delivering():  # what MLflow asks for in the middle of a delivery
            return True
        if self.is_away:
            return False
        settled = self.writer.flush(ANSWER_SECONDS, files=False)
        if not settled and not self.is_away:
            self.place.answers.note_away(TimeoutError("it has not answered in time"))
        return settled

    def call(
        self, call: Callable[[], _T], *, otherwise: Callable[[], Iterable[Record]]
    ) -> _T | None:
        """Makes a call to the store now, or hands in what it would have changed.

        Args:
            call: The call.
            otherwise: Gives the records that do the same later; raises what any store refuses.

        Returns:
            What the call returns; None if the store is away.

        Raises:
            Exception: What the store has answered.
        """
        if self.is_delivered():
            try:
                answer = self.place.answers.attempt(call)
            except AwayError:
                pass
            else:
                if self._seen is not None:
                    self._seen = with_waiting(self._seen, otherwise())
                return answer
        for record in otherwise():
            self.writer.hand_in(record)
        return None

    def get(self) -> Run:
        """The run, with all that was handed in.

        Raises:
            mlflow.exceptions.MlflowException: The store does not have it, or is away and has not
                shown it before.
        """
        store = self.place.store
        delivered = self.is_delivered()
        try:
            self._seen = self.place.answers.attempt(lambda: store.get_run(self.run_id))
        except AwayError as away:
            if self._seen is None:
                raise away.__cause__ or away from None
            delivered = False
        assert self._seen is not None
        if delivered:
            return self._seen
        return with_waiting(self._seen, [Points(list(self._last.values())), *self.writer.waiting()])

    def waiting_history(self, key: str) -> list[Metric]:
        """The values of a metric that stand in the journal."""
        return history_of(key, self.writer.waiting())

    def waiting_files(self) -> dict[str, Path]:
        """The files that stand in the journal, by their paths in the run."""
        found: dict[str, Path] = {}
        for record in self.writer.waiting():
            if isinstance(record, Artifact) and record.path.is_dir():
                inside = (each for each in record.path.rglob("*") if each.is_file())
                found |= {
                    f"{record.place}/{each.relative_to(record.path).as_posix()}": each
                    for each in inside
                }
            elif isinstance(record, Artifact):
                found[record.place] = record.path
        return found

    def end(self, status: int, end_time: int | None, call: Callable[[], Any]) -> None:
        """Ends the run, after all that was handed in.

        Args:
            status: One of `RunStatus`.
            end_time: When, in milliseconds since the epoch; None: now.
            call: Does the same in the store.
        """
        writer = self.writer
        if writer is not self._writer:
            self.call(call, otherwise=tuple)  # `track` ends it once more
            return
        if not writer.was_used and not self.is_away:
            try:
                self.place.answers.attempt(call)
            except AwayError:
                pass
            else:
                writer.close(GRACE_SECONDS)
                self._writer = None
                return
        end_time = end_time or get_current_time_millis()
        record = End(RunStatus.to_string(status), end_time)
        if self._seen is not None:
            self._seen = with_waiting(self._seen, [Points(list(self._last.values())), record])
        writer.log_status(record.status, record.end_time)
        writer.close(GRACE_SECONDS)
        self._writer = None

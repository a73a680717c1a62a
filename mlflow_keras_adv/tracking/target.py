"""Target: a store that records are delivered to, in which each thing is made once."""

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Run, ViewType
from mlflow.store.entities import PagedList

from mlflow_keras_adv.tracking.names import UID_TAG
from mlflow_keras_adv.tracking.verdict import RejectedError, Verdict, verdict_of

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Target:
    """A store, and what is known of it.

    Args:
        client: The store.
        ids: Id in the store by the id that records have for it; kept by the caller.
        progress: Called after each call to the store, answered or not.

    Attributes:
        client: The store.
        ids: As given.
    """

    def __init__(
        self,
        client: MlflowClient,
        ids: MutableMapping[str, str],
        progress: Callable[[], object] = lambda: None,
    ) -> None:
        self.client = client
        self.ids = ids
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
            if verdict_of(error) is Verdict.REJECTED:
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
        for duplicate in found[1:]:
            with suppress(RejectedError):  # it is gone already
                delete(duplicate)
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

    def runs_of(self, experiment_id: str, uid: str) -> list[Run]:
        """The runs of a uid; one that was deleted counts if there is no other."""
        found = self.ask(
            self.client.search_runs,
            [experiment_id],
            filter_string=of_uid(uid),
            run_view_type=ViewType.ALL,  # one that was deleted there is not created again
        )
        active = [run for run in found if run.info.lifecycle_stage == LifecycleStage.ACTIVE]
        return sorted(active or found[:1], key=lambda run: run.info.run_id)

    def ensure_run(self, experiment_id: str, uid: str, create: Callable[[], object]) -> Run:
        """The run of a uid, found or created.

        Args:
            experiment_id: Its experiment.
            uid: In its tag `names.UID_TAG`.
            create: Creates it.

        Raises:
            RejectedError: It cannot be created, or was deleted.
        """
        there = self.find_or_create(
            lambda: self.runs_of(experiment_id, uid), create, self.delete_run
        )
        return self.active_run(there.info.run_id)

    def delete_run(self, run: Run) -> None:
        """Deletes a run."""
        self.ask(self.client.delete_run, run.info.run_id)

    def ensure_experiment(self, name: str, tags: dict[str, str]) -> str:
        """The id of an experiment, found or created.

        Raises:
            RejectedError: It cannot be created.
        """
        there = self.ask(self.client.get_experiment_by_name, name)
        if there is None:
            try:
                return self.ask(self.client.create_experiment, name, tags=tags)
            except RejectedError:  # somebody else may have been faster
                there = self.ask(self.client.get_experiment_by_name, name)
                if there is None:
                    raise
        return there.experiment_id

    def ensure_registered_model(self, name: str, **described: Any) -> None:
        """Creates a registered model if there is none.

        Args:
            name: Its name.
            described: What `create_registered_model` takes beside.

        Raises:
            RejectedError: There is none, and it cannot be created.
        """
        try:  # who may add a version need not have the right to make new models
            self.ask(self.client.get_registered_model, name)
        except RejectedError:
            try:
                self.ask(self.client.create_registered_model, name, **described)
            except RejectedError:  # somebody else may have been faster
                self.ask(self.client.get_registered_model, name)


def of_uid(uid: str) -> str:
    """The condition of a search for what was made of a uid."""
    return f"tags.`{UID_TAG}` = '{uid}'"


def pages(search: Callable[..., PagedList[_T]], *arguments: Any, **named: Any) -> Iterator[_T]:
    """All that a search of an MLflow client finds, page by page."""
    page = search(*arguments, **named)
    yield from page
    while page.token:
        page = search(*arguments, **named, page_token=page.token)
        yield from page

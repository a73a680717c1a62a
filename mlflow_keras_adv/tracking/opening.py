"""How a run begins: in the store that MLflow is configured with, or offline where it is away."""

import os
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, RunInfo
from mlflow.environment_variables import MLFLOW_RUN_ID
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.uri import is_http_uri

from mlflow_keras_adv.compat.mlflow import active_experiment_id
from mlflow_keras_adv.compat.tested import warn_of_untried
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.random_state import keeps_random_state
from mlflow_keras_adv.tracking.active import activate, stack_of_this_thread
from mlflow_keras_adv.tracking.left import deliver_left
from mlflow_keras_adv.tracking.names import UID_TAG
from mlflow_keras_adv.tracking.offline import create_run, go_where_it_answers, is_offline
from mlflow_keras_adv.tracking.store import may_succeed_later, opening_runs


@keeps_random_state()
def open_run(
    name: str | None,
    *,
    run_id: str | None,
    begins: bool,
    stores: ExitStack,
) -> RunInfo:
    """Opens a run and makes it the active one of this thread.

    Args:
        name: Name of a new run.
        run_id: A run to continue; else that of MLFLOW_RUN_ID, which is consumed.
        begins: Whether nobody in this process has it open.
        stores: Keeps the choice of the store.

    Raises:
        UserError: If the store rejects it.
    """
    warn_of_untried()
    resumed = run_id or MLFLOW_RUN_ID.get()
    go_where_it_answers(stores)
    if is_offline():
        os.environ.pop(MLFLOW_RUN_ID.name, None)
        run = create_run(name, continues=resumed)
        activate(run)
        return run.info
    if resumed is not None and begins:
        deliver_left(resumed)
    uid = uuid.uuid4().hex
    stack_of_this_thread()  # `mlflow.start_run` puts the run on it
    with opening_runs(resumed):
        if resumed is not None:
            # Without an id of ours, MLflow takes MLFLOW_RUN_ID out of the environment.
            return _start(run_id=run_id)
        tags = {UID_TAG: uid}
        info = _created(
            lambda: _start(run_name=name, tags=tags), active_experiment_id, uid, adopt=_start
        )
        _delete_twins(info, uid)
        return info


@keeps_random_state()
def open_child(
    name: str | None, parent_run_id: str, experiment_id: str | None, stores: ExitStack
) -> RunInfo:
    """Opens a run nested in another and makes it the active one of this thread.

    Not by `mlflow.start_run`: in another thread it would not know the parent, and where
    MLFLOW_RUN_ID is set it takes that run for the child.

    Args:
        name: Its name.
        parent_run_id: The other.
        experiment_id: Its experiment, where it is known.
        stores: Keeps the choice of the store.

    Raises:
        UserError: If the store rejects it, or the parent is deleted.
    """
    go_where_it_answers(stores)
    if is_offline():
        child = create_run(name, parent_run_id=parent_run_id, continues=None)
    else:
        with opening_runs(parent_run_id):
            client = MlflowClient()
            if experiment_id is None:
                experiment_id = _experiment_of(client.get_run(parent_run_id).info)
            uid = uuid.uuid4().hex
            tags = resolve_tags({MLFLOW_PARENT_RUN_ID: parent_run_id, UID_TAG: uid})
            info = _created(
                lambda: client.create_run(experiment_id, tags=tags, run_name=name).info,
                lambda: experiment_id,
                uid,
            )
            _delete_twins(info, uid)
            child = client.get_run(info.run_id)
    activate(child)
    return child.info


def _start(run_id: str | None = None, **options: Any) -> RunInfo:
    # The load of the machine goes through the journal: see `watch_machine`.
    return mlflow.start_run(run_id, nested=True, log_system_metrics=False, **options).info


def _created(
    create: Callable[[], RunInfo],
    experiment_id: Callable[[], str],
    uid: str,
    adopt: Callable[[str], RunInfo] = lambda run_id: MlflowClient().get_run(run_id).info,
) -> RunInfo:
    """A run that is created once more if the first answer was lost, unless it is there.

    MLflow's client does so itself before 3.18, and not any more from then on.
    """
    try:
        return create()
    except MlflowException as error:
        if not may_succeed_later(error):
            raise
        found = MlflowClient().search_runs([experiment_id()], f"tags.`{UID_TAG}` = '{uid}'")
        return adopt(found[0].info.run_id) if found else create()


def _experiment_of(parent: RunInfo) -> str:
    if parent.lifecycle_stage == LifecycleStage.DELETED:
        raise UserError(f"The run {parent.run_id} is deleted: it cannot have a new child.")
    return parent.experiment_id


def _delete_twins(info: RunInfo, uid: str) -> None:
    """MLflow's client sends a request again when its answer was lost, and so makes two runs."""
    client = MlflowClient()
    if is_http_uri(client.tracking_uri):
        for twin in client.search_runs([info.experiment_id], f"tags.`{UID_TAG}` = '{uid}'"):
            if twin.info.run_id != info.run_id:
                client.delete_run(twin.info.run_id)

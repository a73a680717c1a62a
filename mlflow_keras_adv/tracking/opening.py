"""How a run begins: in the store that MLflow is configured with, or offline where it is away."""

import os
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Run, RunInfo
from mlflow.environment_variables import MLFLOW_RUN_ID
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.uri import is_http_uri

from mlflow_keras_adv.compat.mlflow import active_experiment_id, is_made_up
from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.compat.tested import warn_of_untried
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.tracking.active import activate, stack_of_this_thread
from mlflow_keras_adv.tracking.durable_address import configured_uri
from mlflow_keras_adv.tracking.names import UID_TAG
from mlflow_keras_adv.tracking.offline import create_run, is_offline, use_reachable_store
from mlflow_keras_adv.tracking.orphaned_journals import deliver_orphaned
from mlflow_keras_adv.tracking.store import store_errors_for_users
from mlflow_keras_adv.tracking.target import Target
from mlflow_keras_adv.tracking.verdict import may_succeed_later


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
        name: Name of a new run; also of that of `mlflow run`, where the user gave it none.
        run_id: A run to continue; else that of MLFLOW_RUN_ID, which is consumed.
        begins: Whether nobody in this process has it open.
        stores: Keeps the choice of the store.

    Raises:
        UserError: If the store rejects it.
    """
    warn_of_untried()
    resumed = run_id or MLFLOW_RUN_ID.get()
    use_reachable_store(stores, resumed)
    if is_offline():
        os.environ.pop(MLFLOW_RUN_ID.name, None)
        run = create_run(name, continues=resumed)
        activate(run)
        return run.info
    if resumed is not None and begins:
        deliver_orphaned(resumed)
    uid = uuid.uuid4().hex
    stack_of_this_thread()  # `mlflow.start_run` puts the run on it
    with store_errors_for_users(resumed):
        if resumed is not None:
            # Without an id of ours, MLflow takes MLFLOW_RUN_ID out of the environment.
            info = _start(run_id=run_id).info
            if run_id is None and name is not None and is_made_up(info.run_name):
                MlflowClient().update_run(info.run_id, name=name)
                info = MlflowClient().get_run(info.run_id).info
            return info
        tags = {UID_TAG: uid}
        run = _created(
            lambda: _start(run_name=name, tags=tags, experiment_id=active_experiment_id()),
            active_experiment_id,
            uid,
            adopt=_start,
        )
        return run.info


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
    use_reachable_store(stores)
    if is_offline():
        child = create_run(name, parent_run_id=parent_run_id, continues=None)
    else:
        with store_errors_for_users(parent_run_id):
            client = MlflowClient()
            if experiment_id is None:
                experiment_id = _experiment_of(client.get_run(parent_run_id).info)
            uid = uuid.uuid4().hex
            tags = resolve_tags({MLFLOW_PARENT_RUN_ID: parent_run_id, UID_TAG: uid})
            child = _created(
                lambda: client.create_run(experiment_id, tags=tags, run_name=name),
                lambda: experiment_id,
                uid,
                adopt=client.get_run,
            )
    activate(child)
    return child.info


def _start(run_id: str | None = None, **options: Any) -> Run:
    # The load of the machine goes through the journal: see `watch_machine`.
    return mlflow.start_run(run_id, nested=True, log_system_metrics=False, **options)


def _created(
    create: Callable[[], Run],
    experiment_id: Callable[[], str],
    uid: str,
    *,
    adopt: Callable[[str], Run],
) -> Run:
    """The one run of a new uid, though the answer to its creation may get lost.

    It is created first, and looked for only then: no store can have it yet.
    """
    target = Target(MlflowClient(), {})
    try:
        run = create()
    except MlflowException as error:
        if not may_succeed_later(error):
            raise
        found = target.runs_of(experiment_id(), uid)
        run = adopt(found[0].info.run_id) if found else create()
    if is_http_uri(configured_uri()):
        # MLflow's client sends it again before 3.18, and so makes two; from then on it does not.
        for duplicate in target.runs_of(run.info.experiment_id, uid):
            if duplicate.info.run_id != run.info.run_id:
                target.delete_run(duplicate)
    return run


def _experiment_of(parent: RunInfo) -> str:
    if parent.lifecycle_stage == LifecycleStage.DELETED:
        raise UserError(f"The run {parent.run_id} is deleted: it cannot have a new child.")
    return parent.experiment_id

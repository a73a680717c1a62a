"""Runs without their server: recorded in an MLflow store of this machine, to be copied later.

The store is an ordinary one, so that `mlflow ui`, logged models and the registry work with it, and
a user's own `mlflow.log_figure` goes to the run as ever. For that the tracking URI has to be
changed as long as an offline run is open: it is put back when the outermost one ends.
"""

import logging
import os
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from threading import Lock

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.environment_variables import (
    MLFLOW_EXPERIMENT_ID,
    MLFLOW_EXPERIMENT_NAME,
    MLFLOW_TRACKING_URI,
)
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.tracking.default_experiment import DEFAULT_EXPERIMENT_ID
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from mlflow_keras_adv.compat.mlflow import (
    chosen_experiment_id,
    chosen_tracking_uri,
    client_of,
    is_made_up,
)
from mlflow_keras_adv.tracking.copy_runs import EXPERIMENT_ID_TAG
from mlflow_keras_adv.tracking.durable_address import configured_uri
from mlflow_keras_adv.tracking.names import UID_TAG
from mlflow_keras_adv.tracking.paths import offline_artifacts, offline_uri, state_folder
from mlflow_keras_adv.tracking.records_of_run import CONTINUES_TAG
from mlflow_keras_adv.tracking.store import normalized_uri, probe, without_password

_logger = logging.getLogger(__name__)

# Tag of an offline run: the store that it is meant for.
TARGET_TAG = "mlflow_keras_adv.target"
# Tag of an offline run that has been delivered: the run that it became.
DELIVERED_TAG = "mlflow_keras_adv.delivered"


def is_wanted() -> bool:
    """Whether MLFLOW_KERAS_ADV_OFFLINE asks for it."""
    return os.environ.get("MLFLOW_KERAS_ADV_OFFLINE", "").lower() not in ("", "0", "false")


def is_offline() -> bool:
    """Whether runs are recorded on this machine now."""
    return _switch.depth > 0


def target() -> str:
    """The store that the offline runs of now are meant for; empty where none is open."""
    return _switch.target if is_offline() else ""


def use_reachable_store(stores: ExitStack, run_id: str | None = None) -> None:
    """Lets MLflow's store be one that answers: the one that is configured, or the offline store.

    Args:
        stores: Keeps the choice until it is closed.
        run_id: A run to continue: one that is in the offline store, and not delivered, goes on
            there.
    """
    uri = configured_uri()
    if not is_offline() and not is_wanted() and not (run_id and waits_here(run_id)):
        try:
            probe(uri)
            return
        except MlflowException as error:
            _logger.warning(
                "The tracking server %s cannot be used now: %s The run is recorded on this machine "
                "(%s). `mlflow-keras-adv sync` delivers it once the server is back.",
                without_password(uri),
                without_password(error.message),
                offline_uri(),
            )
    _switch.go_offline()
    stores.callback(_switch.come_back)


def create_run(name: str | None, *, parent_run_id: str | None = None, continues: str | None) -> Run:
    """Creates a run in the offline store, or finds the one that is to be continued.

    Args:
        name: Its name; of one that is continued, if MLflow has made up the name that it has.
        parent_run_id: A run of either store to nest it in.
        continues: A run of either store.
    """
    client = MlflowClient()
    if continues is not None:
        try:
            known = client.get_run(continues)
            # That of `mlflow run`, where the user gave it no name.
            renamed = name if is_made_up(known.info.run_name) else None
            client.update_run(continues, status="RUNNING", name=renamed)
            return client.get_run(continues)
        except MlflowException:  # it is a run of the server
            pass
    tags = {}
    if parent_run_id is not None:
        tags[MLFLOW_PARENT_RUN_ID] = parent_run_id
    if continues is not None:
        tags[CONTINUES_TAG] = continues
    name_of_experiment = MLFLOW_EXPERIMENT_NAME.get()
    chosen = chosen_experiment_id()
    if chosen is None and not name_of_experiment:
        chosen = MLFLOW_EXPERIMENT_ID.get() or DEFAULT_EXPERIMENT_ID
    experiment_id = open_experiment(client, _switch.target, name_of_experiment or "", chosen)
    return new_run(client, _switch.target, experiment_id, name, resolve_tags(tags))


def new_run(
    client: MlflowClient,
    target: str,
    experiment_id: str,
    name: str | None,
    tags: Mapping[str, str],
    start_time: int | None = None,
) -> Run:
    """Creates a run in the offline store.

    Args:
        client: The offline store.
        target: The tracking URI of the store that it is meant for.
        experiment_id: Its experiment in the offline store.
        name: Its name.
        tags: Its tags.
        start_time: When it began, in milliseconds since the epoch; default: now.
    """
    own = {UID_TAG: uuid.uuid4().hex, TARGET_TAG: normalized_uri(target)}
    run = client.create_run(experiment_id, start_time, {**own, **tags}, name)
    recorded_here.add(run.info.run_id)
    return run


def offline_client() -> MlflowClient:
    """A client of the offline store, which is made if there is none."""
    state_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    return client_of(offline_uri())


def recorded_run(run_id: str) -> Run | None:
    """A run of the offline store, if it has it; delivered ones have the tag `DELIVERED_TAG`."""
    if not (state_folder() / "offline.db").exists():
        return None
    try:
        return offline_client().get_run(run_id)
    except MlflowException:
        return None


def waits_here(run_id: str) -> bool:
    """Whether a run is in the offline store, and not delivered yet."""
    run = recorded_run(run_id)
    return run is not None and DELIVERED_TAG not in run.data.tags


# The offline runs of this process.
recorded_here: set[str] = set()


class _Switch:
    """Turns MLflow to the offline store while anybody wants it.

    Attributes:
        depth: How many do.
        target: The tracking URI that was found.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.target = ""
        self._found: tuple[str | None, str | None] = (None, None)
        self._changing = Lock()

    def go_offline(self) -> None:
        """Offline until `come_back` was called as often."""
        with self._changing:
            if self.depth == 0:
                self.target = configured_uri()
                self._found = (chosen_tracking_uri(), MLFLOW_TRACKING_URI.get_raw())
                state_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
                mlflow.set_tracking_uri(offline_uri())
            self.depth += 1

    def come_back(self) -> None:
        """Puts back the store that was found, if nobody else wants to be offline."""
        with self._changing:
            self.depth -= 1
            if self.depth == 0:
                chosen, variable = self._found
                mlflow.set_tracking_uri(chosen)  # type: ignore[arg-type]
                if variable is not None:
                    MLFLOW_TRACKING_URI.set(variable)


_switch = _Switch()


def open_experiment(client: MlflowClient, target: str, name: str, experiment_id: str | None) -> str:
    """The offline experiment for one of another store.

    Args:
        client: The offline store.
        target: The tracking URI of the other.
        name: The name of the experiment there; without a meaning if its id is known.
        experiment_id: Its id there.
    """
    tags = {}
    if experiment_id is not None:
        name = f"experiment {experiment_id} of {normalized_uri(target)}"
        tags = {EXPERIMENT_ID_TAG: experiment_id}
    known = client.get_experiment_by_name(name)
    if known is not None:
        return known.experiment_id
    try:
        return client.create_experiment(name, offline_artifacts().as_uri(), tags)
    except MlflowException:  # another process was faster
        known = client.get_experiment_by_name(name)
        if known is None:
            raise
        return known.experiment_id

"""A run on a rank that does not write: all that can be done with a run, and nothing happens."""

import time
import uuid
from typing import Any

from mlflow.entities import LifecycleStage, RunInfo, RunStatus

from mlflow_keras_adv.tracking.logged_models import UID_PREFIX
from mlflow_keras_adv.tracking.pending import Receipt
from mlflow_keras_adv.tracking.writer import RunWriter


def _nothing(self: RunWriter, *arguments: Any, **named: Any) -> None:
    """Takes what another writer would hand in."""


class QuietWriter(RunWriter):
    """Takes what a `RunWriter` takes, and drops it: no journal, no thread, no store.

    Args:
        run_id: The run.
        tracking_uri: The store that the chief writes it to, as far as it is known here.
    """

    is_quiet = True

    def __init__(self, run_id: str, tracking_uri: str) -> None:
        self.run_id = run_id
        self._tracking_uri = tracking_uri

    @property
    def tracking_uri(self) -> str:
        """The store that the run is in."""
        return self._tracking_uri

    @property
    def receipt(self) -> Receipt:
        """Nothing was handed in."""
        return Receipt(0, 0, 0, 0)

    @property
    def has_ended(self) -> bool:
        """It is not ended here."""
        return False

    @property
    def was_used(self) -> bool:
        """It is not used here."""
        return False

    @property
    def exited_by(self) -> None:
        """It is not ended here."""

    puts_off = False
    will_end_run = _nothing
    will_not_end_run = _nothing
    log_metrics = _nothing
    log_series = _nothing
    log_params = _nothing
    set_tags = _nothing
    log_artifact = _nothing
    log_figure = _nothing
    log_image = _nothing
    log_text = _nothing
    log_dict = _nothing
    log_table = _nothing
    delete_artifact = _nothing
    log_dataset = _nothing
    describe = _nothing
    log_status = _nothing

    def hold(self) -> Any:
        """As `RunWriter.hold`."""
        return lambda *_: None

    def log_model_folder(self, folder: Any, *, name: str, **described: Any) -> str:
        """As `RunWriter.log_model_folder`; no model will have the id."""
        return f"{UID_PREFIX}{uuid.uuid4().hex}"

    def flush(self, timeout: float | None = None, *, files: bool = True) -> bool:
        """There is nothing to wait for."""
        return True

    def settle(self, seconds: float) -> bool:
        """There is nothing to wait for."""
        return True

    def close(self, timeout: float) -> bool:
        """There is nothing to wait for."""
        return True


def quiet_run_info(run_id: str | None, name: str | None) -> RunInfo:
    """Describes a run that is not asked for: its store may not be reached from each rank.

    Args:
        run_id: Its id, if this rank was given one; else one that no store has.
        name: Its name.
    """
    return RunInfo(
        run_id=run_id or f"of-rank-0-{uuid.uuid4().hex}",
        experiment_id="",
        user_id="",
        status=RunStatus.to_string(RunStatus.RUNNING),
        start_time=time.time_ns() // 1_000_000,
        end_time=None,
        lifecycle_stage=LifecycleStage.ACTIVE,
        artifact_uri="",
        run_name=name or "",
    )

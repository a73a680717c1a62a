"""LoggedModels that are made while their store is away."""

import tempfile
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mlflow.entities import (
    LoggedModel,
    LoggedModelParameter,
    LoggedModelStatus,
    LoggedModelTag,
    Metric,
)
from mlflow.utils.time import get_current_time_millis

from mlflow_keras_adv.durable.runs import DurableRun
from mlflow_keras_adv.tracking.logged_models import UID_PREFIX
from mlflow_keras_adv.tracking.records import Model


class WaitingModel:
    """A model that the store does not know yet: its files gather in a folder of the journal.

    Args:
        run: The run that makes it.
        experiment_id: Its experiment.
        name: Its name.
        tags: Its tags.
        params: Its params.
        model_type: For example "classifier".

    Attributes:
        run: As given.
        entity: What MLflow is shown of it.
        step: Training step that it comes from.
    """

    def __init__(
        self,
        run: DurableRun,
        experiment_id: str,
        name: str | None,
        tags: Iterable[LoggedModelTag],
        params: Iterable[LoggedModelParameter],
        model_type: str | None,
    ) -> None:
        self.run = run
        self.step = 0
        self._metrics: list[Metric] = []
        folder = tempfile.mkdtemp(prefix="mlflow-model-", dir=run.writer.folder())
        self._files = Path(folder, "model")
        self._files.mkdir()
        now = get_current_time_millis()
        self.entity = LoggedModel(
            experiment_id=experiment_id,
            model_id=f"{UID_PREFIX}{uuid.uuid4().hex}",
            name=name or "model",
            artifact_location=self._files.as_uri(),
            creation_timestamp=now,
            last_updated_timestamp=now,
            model_type=model_type,
            source_run_id=run.run_id,
            status=LoggedModelStatus.PENDING,
            tags=list(tags),
            params=list(params),
        )

    @property
    def model_id(self) -> str:
        """Its id until the store gives one."""
        return self.entity.model_id

    def log_metrics(self, metrics: Sequence[Metric]) -> None:
        """Takes values of it: they follow it to the store, which would refuse them before."""
        self._metrics += metrics
        if self.entity.status == LoggedModelStatus.READY:
            self.hand_in_metrics()

    def hand_in_metrics(self) -> None:
        """Hands in its values; as those of the run alone if it has not become a model."""
        metrics, self._metrics = self._metrics, []
        if self.entity.status != LoggedModelStatus.READY:
            metrics = [Metric(each.key, each.value, each.timestamp, each.step) for each in metrics]
        if metrics:
            self.run.log_metrics(metrics)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags."""
        self.entity.tags.update(tags)

    def add_params(self, params: Mapping[str, str]) -> None:
        """Adds params."""
        self.entity.params.update(params)

    def finalize(self, status: LoggedModelStatus) -> None:
        """Hands it in, if it has become one."""
        self.entity.status = status
        if status != LoggedModelStatus.READY:
            self.hand_in_metrics()
            return
        self.run.writer.hand_in(
            Model(
                self.entity.model_id,
                self._files,
                self.entity.name,
                dict(self.entity.params),
                dict(self.entity.tags),
                self.entity.model_type,
                self.step,
                None,
            )
        )
        self.hand_in_metrics()

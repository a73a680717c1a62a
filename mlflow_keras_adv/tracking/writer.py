"""RunWriter: the only code that writes to a run, from a thread of its own.

MLflow's own asynchronous logging has one queue per store, which the end of any run shuts down, and
it drops a batch that fails. Here each run has its queue and its thread, and what the store cannot
take for now is kept and sent again.
"""

import copy
import json
import math
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient, entities
from mlflow.entities import Metric
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_RUN_NOTE

from mlflow_keras_adv.tracking.delivery import Delivery
from mlflow_keras_adv.tracking.names import flatten, metric_key
from mlflow_keras_adv.tracking.outbox import Outbox
from mlflow_keras_adv.tracking.pending import (
    Artifact,
    Deletion,
    End,
    Input,
    Params,
    Points,
    Series,
    Table,
    Tags,
)

_INFINITE = "an infinity, which a chart cannot show"


@dataclass(frozen=True)
class Dataset:
    """The data that a metric was measured on.

    Attributes:
        name: At most 500 characters.
        digest: At most 36 characters.
    """

    name: str
    digest: str


class RunWriter:
    """Delivers what is handed in, in order; the caller never waits for the store.

    What cannot be recorded (an infinity, what is not a number, what the store rejects) is refused
    by name: counted in `refused`, with one warning for each name. What the store cannot take for
    now is retried, see `Delivery`.

    Args:
        run_id: The run to write to.
        client: Its store.
    """

    def __init__(self, run_id: str, client: MlflowClient) -> None:
        self.run_id = run_id
        self._client = client
        self._delivery = Delivery(run_id, client)
        self._outbox = Outbox(run_id, self._delivery)

    @property
    def refused(self) -> Counter[str]:
        """How many values of each name were refused."""
        return self._delivery.refused

    def log_metrics(
        self,
        values: Mapping[str, float],
        *,
        step: int = 0,
        model_id: str | None = None,
        dataset: Dataset | None = None,
    ) -> None:
        """Hands in values of this moment.

        Args:
            values: Real numbers by name. NaN is recorded, an infinity is refused.
            step: Training batches consumed so far; 0 for numbers about the finished model.
            model_id: LoggedModel that the values belong to.
            dataset: Data that the values were measured on.
        """
        now = time.time_ns() // 1_000_000
        measured_on = (dataset.name, dataset.digest) if dataset else (None, None)
        metrics = []
        for name, value in values.items():
            try:
                number = float(value)
            except (TypeError, ValueError, OverflowError) as error:
                self._delivery.refuse(name, f"{type(value).__name__} is not a number: {error}")
                continue
            if math.isinf(number):
                self._delivery.refuse(name, _INFINITE)
                continue
            metrics.append(Metric(metric_key(name), number, now, int(step), model_id, *measured_on))
        if metrics:
            self._outbox.put(Points(metrics))

    def log_series(
        self, columns: Mapping[str, "np.ndarray[Any, Any]"], *, steps: Any, timestamps_ms: Any
    ) -> None:
        """Hands in values of many moments at once: arrays are copied, no object made per value.

        Args:
            columns: Per name an array of real numbers of shape `[rows]`; where it is masked there
                is no value. NaN is recorded, an infinity is refused.
            steps: Training batches consumed, integers of shape `[rows]`.
            timestamps_ms: Milliseconds since the epoch, integers of shape `[rows]`.

        Raises:
            ValueError: If an array is not one-dimensional, or they differ in length.
        """
        steps, timestamps_ms = np.array(steps, np.int64), np.array(timestamps_ms, np.int64)
        for name, array in {**columns, "timestamps_ms": timestamps_ms}.items():
            if steps.ndim != 1 or np.shape(array) != steps.shape:
                raise ValueError(
                    f"Received steps of shape {steps.shape} and {name!r} of shape "
                    f"{np.shape(array)}. Expected one dimension and equal lengths."
                )
        finite = {}
        for name, array in columns.items():
            column = np.ma.array(array, copy=True)
            if column.dtype.kind not in "biuf":
                self._delivery.refuse(name, f"{column.dtype} is not a real number", len(column))
                continue
            infinite = np.ma.filled(np.isinf(column), False)
            if infinite.any():
                self._delivery.refuse(name, _INFINITE, int(infinite.sum()))
            finite[name] = np.ma.masked_where(infinite, column, copy=False)
        self._outbox.put(Series(finite, steps, timestamps_ms))

    def log_params(self, values: Mapping[str, object]) -> None:
        """Hands in a configuration, nested or flat, as dotted params (see `names.flatten`).

        One that the run holds with an equal value is skipped. MLflow cannot change a param, so a
        different value becomes the tag `param.<key>.changed`. Of a text of more than 6000
        characters the param holds the head and the artifact `params/<key>.txt` the whole.

        Args:
            values: Mappings in mappings, sequences, plain values, NumPy arrays.
        """
        if values:
            self._outbox.put(Params(flatten(values)))

    def set_tags(self, values: Mapping[str, object]) -> None:
        """Hands in tags; of more than 8000 characters `tags/<key>.txt` holds the whole."""
        if values:
            self._outbox.put(Tags({name: str(value) for name, value in values.items()}))

    def log_artifact(self, path: str | os.PathLike[str], artifact_path: str | None = None) -> None:
        """Hands in a copy of a file or a folder.

        Args:
            path: The file or folder; it may be changed or deleted afterwards.
            artifact_path: Folder of the run's artifacts to put it in.

        Raises:
            FileNotFoundError: If there is nothing at `path`.
        """
        try:
            self._outbox.put(Artifact.copy_of(Path(path), artifact_path))
        except FileNotFoundError:
            raise
        except OSError as error:  # a full disk is no reason to end a training
            self._delivery.refuse(f"artifact {path}", str(error))

    def log_figure(self, figure: Any, artifact_file: str) -> None:
        """Draws a Matplotlib or Plotly figure now and hands in the file."""
        _StagingClient(self, self._client).log_figure(self.run_id, figure, artifact_file)

    def log_image(self, image: Any, *, key: str, step: int = 0) -> None:
        """Hands in an image of one step, for which the MLflow UI has a slider.

        Args:
            image: uint8 of shape `[height, width, 3 or 4]`, or what `MlflowClient.log_image` takes.
            key: Name of the series: letters, digits, spaces and `_ - . /`.
            step: Training batches consumed so far.
        """
        client = _StagingClient(self, self._client)
        client.log_image(self.run_id, image, key=key, step=step, synchronous=True)

    def log_text(self, text: str, artifact_file: str) -> None:
        """Hands in a text file."""
        _StagingClient(self, self._client).log_text(self.run_id, text, artifact_file)

    def log_dict(self, dictionary: Mapping[str, Any], artifact_file: str) -> None:
        """Hands in a JSON file, or a YAML file if `artifact_file` ends so."""
        _StagingClient(self, self._client).log_dict(self.run_id, dict(dictionary), artifact_file)

    def log_table(self, data: Any, artifact_file: str) -> None:
        """Hands in rows for MLflow's table artifact: a pandas DataFrame or a dict of columns."""
        self._outbox.put(Table(copy.deepcopy(data), artifact_file))

    def delete_artifact(self, artifact_file: str) -> None:
        """Hands in the deletion of an artifact, in order: after an upload handed in before.

        Where the artifact store cannot delete, or does not let us, the file stays; one warning.
        """
        self._outbox.put(Deletion(artifact_file))

    def log_dataset(self, dataset: Dataset, *, context: str) -> None:
        """Hands in a dataset that the run uses.

        Args:
            dataset: Its name and digest, as they stand in the metrics that are measured on it.
            context: What for: "training", "validation", "test".
        """
        source = json.dumps({"name": dataset.name})
        entity = entities.Dataset(dataset.name, dataset.digest, "external", source)
        tag = entities.InputTag(MLFLOW_DATASET_CONTEXT, context)
        self._outbox.put(Input(entities.DatasetInput(entity, [tag])))

    def describe(self, description: str) -> None:
        """Hands in the run's description, in Markdown; its first line should say the result."""
        self.set_tags({MLFLOW_RUN_NOTE: description})

    def flush(self, timeout: float | None = None) -> bool:
        """Waits until everything handed in so far is in the store, or was refused by name.

        Args:
            timeout: Seconds to wait at most; None waits as long as it takes.

        Returns:
            Whether it is.
        """
        return self._outbox.flush(timeout)

    def close(self, timeout: float, *, status: str | None = None) -> bool:
        """Delivers what is left, then the status with which the run ended, and takes no more.

        Args:
            timeout: Seconds. As long as the store goes on taking values it is waited for; if it
                takes none for so long, what is left is given up, with one warning.
            status: FINISHED, FAILED or KILLED; None leaves the run's status alone.

        Returns:
            Whether everything is in the store.
        """
        if status is not None:
            self._outbox.put(End(status))
        return self._outbox.close(timeout)


class _StagingClient(MlflowClient):
    """Lets MlflowClient write figures, images, texts and dicts to files, and hands these in."""

    def __init__(self, writer: RunWriter, client: MlflowClient) -> None:
        super().__init__(client.tracking_uri)
        self._writer = writer

    def log_artifact(self, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
        self._writer.log_artifact(local_path, artifact_path)

    def set_tag(self, run_id: str, key: str, value: Any, synchronous: bool | None = None) -> None:
        self._writer.set_tags({key: value})

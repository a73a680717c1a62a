"""Checkpoints: keeps the best models of a training with the run, and load_best() loads them."""

import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import mlflow

from mlflow_keras_adv.callbacks.base import Joined, RunCallback
from mlflow_keras_adv.callbacks.checkpoint_index import (
    FOLDER,
    GRACE_SECONDS,
    Checkpoint,
    index_of,
    sha256,
    stored_checkpoints,
)
from mlflow_keras_adv.callbacks.monitor import Monitor
from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.tracking.run import Run, run_of


class Checkpoints(RunCallback):
    """Keeps the best `keep` models of a run as `.keras` files among its artifacts.

    A file holds the weights, the architecture and, if the model is compiled, its optimizer with its
    state: training can continue from `load_best(run)`. A model that a `Loop` trains is saved with
    its optimizer if it was compiled with it. `checkpoints/index.json` lists the files, best first.

    The file does not contain the random state: Keras 3.15 does not save that of dropout and other
    random layers. A training without them continues bit for bit, if its examples come in the same
    order; one with dropout continues with other masks.

    Keras' `SwapEMAWeights` validates the averaged weights. For checkpoints of those, put this
    callback behind a `SwapEMAWeights(swap_on_epoch=True)`, as with `ModelCheckpoint`.

    Args:
        monitor: Name of the value in the epoch's logs that decides. NaN and infinity never win.
        mode: "min", "max" or "auto"; see `Monitor`.
        keep: Number of checkpoints to keep in the run, over all its trainings; worse ones are
            deleted.
        run: The run to write to, or its id. Default: the innermost `track`, else MLflow's active
            run; without any, nothing is saved and that is logged.

    Raises:
        ValueError: If `mode` is unknown, or `keep` is less than 1.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        mode: str = "auto",
        keep: int = 1,
        run: Run | str | None = None,
    ) -> None:
        super().__init__(run)
        if keep < 1:
            raise ValueError(f"Received keep={keep}; expected 1 or more.")
        self._monitor = Monitor(monitor, mode)
        self._keep = keep

    def begin(self, joined: Joined) -> None:
        """Finds what the run holds already."""
        self._index = index_of(joined.run)

    @keeps_random_state()
    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Saves the model if it is among the best."""
        joined = self._joined
        if joined is None:
            return
        step = joined.step()
        value = self._monitor.read(logs or {}, self.model)
        if value is None or not math.isfinite(value):
            return
        name, kept = self._monitor.name, self._index.of(self._monitor.name)
        if len(kept) >= self._keep and not self._monitor.improves(value, kept[-1].value):
            return
        with joined.spares_training("Saving a checkpoint"):
            kept.append(self._save(joined.run, value, step=step, epoch=epoch + 1))
            kept.sort(key=lambda each: each.value, reverse=self._monitor.mode == "max")
            self._index.replace(joined.run, name, kept[: self._keep])

    def _save(self, run: Run, value: float, *, step: int, epoch: int) -> Checkpoint:
        name = re.sub(r"[^\w.-]", "_", self._monitor.name)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"step-{step:06d}_{name}-{value:.6g}.keras")
            self.model.save(path)
            run.log_artifact(path, FOLDER)
            return Checkpoint(
                monitor=self._monitor.name,
                value=value,
                step=step,
                epoch=epoch,
                file=f"{FOLDER}/{path.name}",
                size_bytes=path.stat().st_size,
                sha256=sha256(path),
                dtype_policy=self.model.dtype_policy.name,
            )


@keeps_random_state()
def load_best(
    run: Run | str | None = None,
    *,
    monitor: str | None = None,
    custom_objects: Mapping[str, Any] | None = None,
) -> keras.Model:
    """Loads the best checkpoint of a run, with its optimizer's state, in any process.

    Args:
        run: The run, or its id. Default: the current run.
        monitor: The value by which it was chosen, needed if the run has checkpoints by several.
        custom_objects: Custom classes and functions that the model needs, by name.

    Returns:
        The compiled model, with the weights and the optimizer of that epoch.

    Raises:
        TypeError: The run is no run.
        UserError: No run is open, it has no such checkpoint, or the file has changed since.
    """
    run = run_of(run, "load_best")
    run.flush(GRACE_SECONDS)
    try:
        stored = stored_checkpoints(run.run_id)
    except Exception as error:
        raise UserError(f"The checkpoints of run {run.run_id} cannot be read: {error}") from error
    index = [each for each in stored if monitor in (None, each.monitor)]
    monitors = sorted({each.monitor for each in index})
    if not index:
        wanted = "" if monitor is None else f" by {monitor!r}"
        raise UserError(
            f"Run {run.run_id} has no checkpoint{wanted}. Was it trained with Checkpoints()?"
        )
    if len(monitors) > 1:
        raise UserError(
            f"Run {run.run_id} has checkpoints by {', '.join(monitors)}: pass monitor=… to choose."
        )
    return _load(run.run_id, index[0], custom_objects)


def _load(
    run_id: str, checkpoint: Checkpoint, custom_objects: Mapping[str, Any] | None
) -> keras.Model:
    download = mlflow.artifacts.download_artifacts
    with tempfile.TemporaryDirectory() as folder:
        path = Path(download(run_id=run_id, artifact_path=checkpoint.file, dst_path=folder))
        if sha256(path) != checkpoint.sha256:
            raise UserError(f"{checkpoint.file} of run {run_id} is not the file that was saved.")
        found = keras.config.dtype_policy()
        # To compile under mixed_float16 adds the loss scaling that the saved optimizer state is of.
        keras.config.set_dtype_policy(checkpoint.dtype_policy)
        try:
            return keras.saving.load_model(path, custom_objects=custom_objects)
        finally:
            keras.config.set_dtype_policy(found)

"""The ids of runs in Keras Tuner's folders, by which a continued search finds its runs."""

import json
import logging
import os
from contextlib import AbstractContextManager, ExitStack

import tensorflow as tf

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.tracking.run import Run, track
from mlflow_keras_adv.tuner.hooks import harmless

FILE = "mlflow_runs.json"

_logger = logging.getLogger(__name__)


def read_run_ids(folder: str) -> dict[str, str]:
    """Reads the ids of the runs of a folder.

    Args:
        folder: That of a project or of a trial; any that TensorFlow can read, `gs://` too.

    Returns:
        Ids by name. Empty if there are none, or they cannot be read.
    """
    return _read(_path(folder)) or {}


def open_run(
    stack: ExitStack, folder: str, name: str, new: AbstractContextManager[Run]
) -> tuple[Run, bool]:
    """Continues the run that a folder names, or opens a new one and notes its id there.

    Args:
        stack: The stack that keeps the run open.
        folder: That of a project or of a trial.
        name: Name of the run in that folder.
        new: Opens a new run.

    Returns:
        The run, and whether it existed before.

    Raises:
        UserError: The store cannot be reached, or refuses the run.
    """
    run_ids = read_run_ids(folder)
    if name in run_ids:
        try:
            reopened = track(run_id=run_ids[name], log_system_metrics=False)
            return stack.enter_context(reopened), True
        except UserError as error:
            _logger.warning(
                "The run of %s in %s cannot be continued, so there will be a new one: %s",
                name,
                folder,
                error,
            )
    run = stack.enter_context(new)
    _write(_path(folder), run_ids | {name: run.run_id})
    return run, False


def note(folder: str, name: str, text: str, *, without: str | None = None) -> None:
    """Notes a text beside the ids of a folder.

    Args:
        folder: That of a project or of a trial.
        name: Name of the note.
        text: The text.
        without: Name of a run that is not to be continued; its id is kept under another name.
    """
    found = read_run_ids(folder)
    if without in found:
        found[f"{without} before {text}"] = found.pop(without)
    _write(_path(folder), found | {name: text})


def _path(folder: str) -> str:
    return os.path.join(folder, FILE)  # noqa: PTH118 - not a Path: it may be an address


@harmless
def _read(path: str) -> dict[str, str] | None:
    if not tf.io.gfile.exists(path):
        return None
    with tf.io.gfile.GFile(path) as file:
        return dict(json.load(file))


@harmless
def _write(path: str, run_ids: dict[str, str]) -> None:
    unfinished = f"{path}.new"
    with tf.io.gfile.GFile(unfinished, "w") as file:
        json.dump(run_ids, file)
    tf.io.gfile.rename(unfinished, path, overwrite=True)

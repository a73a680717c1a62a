"""Makes a model folder of any flavor a LoggedModel of its run.

While the store, or that of the artifacts, does not answer, the folder goes to the run's journal.
"""

import logging
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.model import ModelInfo

from mlflow_keras_adv.compat.mlflow import asking_once
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.ranks import this_rank
from mlflow_keras_adv.tracking.outbox import GRACE_SECONDS
from mlflow_keras_adv.tracking.run import Run, current_run, known_run, track
from mlflow_keras_adv.tracking.store import PROBE_SECONDS, answers, without_password
from mlflow_keras_adv.tracking.verdict import may_succeed_later

_logger = logging.getLogger(__name__)

_NOT_IN_NAMES = "/:.%\"'"

# Writes an MLflow model folder that does not exist yet, with the description that it completes.
Save = Callable[[Path, Model], None]


@dataclass(frozen=True)
class LoggedAs:
    """The name, run and description of a LoggedModel.

    Attributes:
        name: Its name.
        run_id: The run that made it; default: the active run of this thread.
        params: Its params, beside those of the run, which they override.
        tags: Its tags.
        step: The training step that it comes from.
        model_type: For example "classifier".
        registered_model_name: Registers a version of it too.
        metadata: Kept in the MLmodel file.
    """

    name: str
    run_id: str | None = None
    params: Mapping[str, object] = field(default_factory=dict)
    tags: Mapping[str, object] = field(default_factory=dict)
    step: int = 0
    model_type: str | None = None
    registered_model_name: str | None = None
    metadata: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        bad = sorted(set(self.name) & set(_NOT_IN_NAMES))
        if bad or not self.name:
            raise ValueError(
                f"a model cannot be called {self.name!r}: MLflow refuses "
                f"{' '.join(bad) or 'empty names'}. Use letters, digits, '-' and '_'."
            )


def log_saved(save: Save, folder: Path, described: Model, wanted: LoggedAs) -> ModelInfo:
    """Makes a LoggedModel.

    Args:
        save: Writes the model again, for the store.
        folder: The folder in which it was written and checked before.
        described: Its description in that folder.
        wanted: Its name, run and description.

    Returns:
        MLflow's description of the model. In a run whose store does not answer, or that of its
        artifacts, its id is one that becomes the true one in the metrics and tags of that run, when
        the model is delivered.

    Raises:
        mlflow.exceptions.MlflowException: From the store, which rejects it; a LoggedModel that
            exists by then is FAILED.
    """
    if not this_rank().is_chief:  # which logs the model that all ranks have
        with track(run_id=wanted.run_id) as quiet:
            return _hand_in(quiet, folder, described, wanted)
    run = current_run() if wanted.run_id is None else known_run(wanted.run_id)
    if run is None:
        if wanted.run_id is None and mlflow.active_run() is None:
            _logger.warning(
                "The model %r belongs to no run, since none is open: log it inside of "
                "`with mka.track(...)`, or give run=.",
                wanted.name,
            )
        return _log(save, wanted)
    writer = run.internals.writer
    # What the run was given before, its params and metrics, is the model's too.
    if (
        writer.puts_off
        or not answers(run.tracking_uri)
        or not writer.settle(GRACE_SECONDS)
        or not writer.can_upload()
    ):
        return _hand_in(run, folder, described, wanted)
    try:
        return _log(save, wanted)
    except Exception as error:
        if not may_succeed_later(error) or (_is_forbidden(error) and answers(run.tracking_uri)):
            raise
        _logger.warning("The model %r of run %s is kept: %s", wanted.name, run.run_id, error)
        return _hand_in(run, folder, described, wanted)


def _is_forbidden(error: Exception) -> bool:
    """Whether the tracking server knows us, or wants to, and does not let us do so."""
    return isinstance(error, MlflowException) and error.get_http_status_code() in (401, 403)


def _log(save: Save, wanted: LoggedAs) -> ModelInfo:
    logged = _create(wanted)

    class Flavor:
        """The flavor by which `Model.log` writes the folder."""

        @staticmethod
        def save_model(path: str, mlflow_model: Model, **_: Any) -> None:
            save(Path(path), mlflow_model)

    try:
        return Model.log(
            artifact_path=None,
            flavor=Flavor,
            run_id=logged.source_run_id,
            model_id=logged.model_id,
            step=wanted.step,
            metadata=wanted.metadata,
            registered_model_name=wanted.registered_model_name,
            validate_serving_input=False,  # it was, before anything was created
        )
    except BaseException as error:
        # Model.log has marked the model FAILED after an Exception, but not after Ctrl-C.
        if not isinstance(error, Exception):
            client = mlflow.MlflowClient()
            client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
        elif may_succeed_later(error):  # by another one, which comes from the journal
            with suppress(Exception), asking_once(PROBE_SECONDS):
                mlflow.MlflowClient().delete_logged_model(logged.model_id)
        raise


def _create(wanted: LoggedAs) -> LoggedModel:
    """A PENDING LoggedModel.

    Left to `Model.log` it would be in the current experiment even if the run is in another, and the
    run's params would win over those given.
    """
    active, run_id = mlflow.active_run(), wanted.run_id
    if run_id is None and active is not None:
        run_id = active.info.run_id
    run = None if run_id is None else mlflow.get_run(run_id)
    return mlflow.initialize_logged_model(
        name=wanted.name,
        source_run_id=run_id,
        experiment_id=run.info.experiment_id if run else None,
        params=_texts({**(run.data.params if run else {}), **wanted.params}),
        tags=_texts(wanted.tags),
        model_type=wanted.model_type,
    )


def _hand_in(run: Run, folder: Path, described: Model, wanted: LoggedAs) -> ModelInfo:
    """Writes the model to the journal of its run, because the store does not answer."""
    described.run_id = run.run_id
    described.model_id = run.internals.writer.log_model_folder(
        folder,
        name=wanted.name,
        params=_texts(wanted.params),
        tags=_texts(wanted.tags),
        model_type=wanted.model_type,
        step=wanted.step,
        registered_model_name=wanted.registered_model_name,
    )
    now = time.time_ns() // 1_000_000
    pending = LoggedModel(
        run.experiment_id,
        described.model_id,
        wanted.name,
        artifact_location=str(folder),
        creation_timestamp=now,
        last_updated_timestamp=now,
        status=LoggedModelStatus.PENDING,
    )
    return described.get_model_info(pending)


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}


FORMS = (
    "models:/m-… (a logged model), models:/<registered name>/<version>, "
    "models:/<registered name>@<alias>, runs:/<run id>/<name of the model> or a folder"
)


def fetched(model_uri: str, dst_path: str | None = None) -> tuple[str, dict[str, Any]]:
    """Downloads a model.

    Args:
        model_uri: Its address, or its folder.
        dst_path: Where to download it to; default: a temporary folder.

    Returns:
        The folder, and the model's flavors by their names.

    Raises:
        UserError: There is no model.
    """
    try:
        folder = mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=dst_path)
        return folder, Model.load(folder).flavors
    except (MlflowException, OSError) as error:
        said = without_password(getattr(error, "message", str(error))).rstrip(".")
        raise UserError(
            f"No model can be loaded from {model_uri!r}: {said}. {_what_is_there(model_uri)}"
        ) from error


def _what_is_there(model_uri: str) -> str:
    """Lists the existing aliases or models of the run, else the valid forms of an address."""
    client = MlflowClient()
    with suppress(MlflowException):
        if alias := re.fullmatch(r"models:/([^/:@]+)@.*", model_uri):
            model = client.get_registered_model(alias[1])
            aliases = ", ".join(map(repr, model.aliases)) or "none"
            return f"The registered model {alias[1]!r} has the aliases: {aliases}."
        run_id = re.fullmatch(r"(?:runs:/)?([0-9a-f]{32})(?:/.*)?", model_uri)
        if run_id is not None:
            outputs = client.get_run(run_id[1]).outputs
            made = [] if outputs is None else outputs.model_outputs
            models = (client.get_logged_model(each.model_id) for each in made)
            names = ", ".join(f"{each.name!r} (models:/{each.model_id})" for each in models)
            return f"The run {run_id[1]} has logged the models: {names or 'none'}."
    return f"Expected {FORMS}."

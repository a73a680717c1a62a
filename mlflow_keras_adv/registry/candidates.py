"""Resolves the address of a candidate to a model, and checks that its files are unchanged.

models:/m-…            a LoggedModel
runs:/<run id>/<name>  the LoggedModel of that name that the run has made
models:/digits/3       a version of a registered model, of this or of another one
models:/dev.digits@champion
best-of-experiment     see `best_of_experiment`
"""

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.registry.gates import Gate, ReadyMade, judge
from mlflow_keras_adv.registry.rights import READ_EXPERIMENT, READ_MODEL, asking
from mlflow_keras_adv.registry.samples import Measurements
from mlflow_keras_adv.tracking.directions import direction, recorded
from mlflow_keras_adv.tracking.target import pages

BEST = "best-of-experiment"
SHA256_TAG = "sha256"

_FORMS = (
    "models:/m-… (a logged model), runs:/<run id>/<name>, models:/<registered name>/<version>, "
    f"models:/<registered name>@<alias> or {BEST}"
)
_COPIES = 10  # a version may be a copy of a version, of a copy, …
_ASKED_RUNS = 20  # of which the direction of a metric is read


@dataclass(frozen=True)
class Model:
    """A model that can be downloaded.

    Attributes:
        uri: `models:/m-…`, or for a version that is no LoggedModel `models:/name/version`.
        logged: The LoggedModel, if it is one.
        run_id: The run that made it; empty if there is none.
        sha256: Its fingerprint when it was registered; empty if none was recorded.
    """

    uri: str
    logged: LoggedModel | None
    run_id: str
    sha256: str = ""

    @property
    def recorded_on(self) -> frozenset[str]:
        """Digests of the datasets that its own run measured `final/…` on."""
        metrics = self.logged.metrics if self.logged else None
        return frozenset(
            metric.dataset_digest
            for metric in metrics or []
            if metric.key.startswith("final/") and metric.run_id == self.run_id
            if metric.dataset_digest
        )


def resolve(candidate: str) -> Model:
    """Finds the model of an address; see the top of this file for the forms.

    Raises:
        UserError: There is no such model, it was not finished, or the URI is of no known form.
    """
    client = MlflowClient()
    if found := re.fullmatch(r"models:/(m-\w+)", candidate):
        return _logged(client, found[1])
    if found := re.fullmatch(r"runs:/([^/]+)(?:/(.+))?", candidate):
        return _of_run(client, found[1], found[2])
    if found := re.fullmatch(r"models:/([^/:@]+)/(\d+)", candidate):
        with asking(f"{candidate} cannot be read", READ_MODEL):
            return model_of(client.get_model_version(found[1], found[2]))
    if found := re.fullmatch(r"models:/([^/:@]+)@([\w\-]+)", candidate):
        with asking(f"{candidate} cannot be read", READ_MODEL):
            return model_of(client.get_model_version_by_alias(found[1], found[2]))
    run = f" To name a model of this run: runs:/{candidate}/<name>." if _is_run(candidate) else ""
    raise UserError(f"{candidate!r} names no model. Give {_FORMS}.{run}")


def _is_run(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{32}", text) is not None


def model_of(version: ModelVersion) -> Model:
    """Finds the model of a version, also if that is a copy of another version.

    Raises:
        UserError: A version that it is a copy of, or the model itself, is gone.
    """
    client, sha256, source = MlflowClient(), version.tags.get(SHA256_TAG, ""), version
    for _ in range(_COPIES):
        if found := re.fullmatch(r"models:/(m-\w+)", source.source or ""):
            return _logged(client, found[1], sha256)
        copy = re.fullmatch(r"models:/([^/:@]+)/(\d+)", source.source or "")
        if copy is None:
            break
        with asking(f"{version.name} version {version.version} is a copy", READ_MODEL):
            source = client.get_model_version(copy[1], copy[2])
    return Model(f"models:/{version.name}/{version.version}", None, version.run_id or "", sha256)


def best_of_experiment(
    experiment_id: str,
    digest: str,
    gates: Sequence[Gate] = (),
    monitor: str = "accuracy",
    mode: str = "auto",
) -> Model:
    """Finds the finished model with the best `final/<monitor>`; ties go to the fewest gzip bytes.

    Args:
        experiment_id: The experiment to search.
        digest: Digest of the dataset; values on other datasets are ignored.
        gates: Gates; floors, ceilings and budgets of bytes are applied to the recorded numbers. The
            others need a new measurement, and are left for later.
        monitor: The metric.
        mode: "min", "max", or "auto": as recorded by the runs of the models, else by its name.

    Returns:
        The model.

    Raises:
        UserError: There is none, or it is unknown whether the metric is better lower or higher.
    """
    client = MlflowClient()
    asked = [
        gate.on_record
        for gate in gates
        if isinstance(gate, ReadyMade) and gate.on_record is not None
    ]
    seen, passing = 0, []
    with asking("The models of the experiment cannot be read", READ_EXPERIMENT):
        experiment = client.get_experiment(experiment_id).name
        for model in _finished(client, experiment_id):
            final = {
                metric.key.removeprefix("final/"): metric.value
                for metric in model.metrics or []
                if metric.key.startswith("final/") and metric.dataset_digest == digest
            }
            if math.isnan(final.get(monitor, math.nan)):
                continue
            seen += 1
            known = Measurements(final)
            if all(judge(gate, known, None).passed for gate in asked):
                passing.append((final[monitor], -final.get("gzip_bytes", math.inf), model))
        rising = seen > 0 and _rises(client, monitor, mode, passing)
    if passing:
        sign = 1 if rising else -1
        best = max(passing, key=lambda each: (sign * each[0], each[1]))
        return _logged(client, best[2].model_id)
    where = (
        f"experiment {experiment!r} has {seen} models with final/{monitor} on the dataset {digest}"
    )
    if seen:
        raise UserError(f"{where}, but none passes the floors. Lower them, or train a better one.")
    raise UserError(
        f"{where}. Train some on this dataset first, for example with "
        "`mlflow run . -e compress --env-manager local`, or name a candidate: models:/m-…."
    )


def _rises(
    client: MlflowClient, monitor: str, mode: str, found: Sequence[tuple[Any, Any, LoggedModel]]
) -> bool:
    """Whether a higher value of the metric is better."""
    key = f"final/{monitor}"
    known: str | None = mode
    if mode == "auto":
        ids = sorted({model.source_run_id for *_, model in found if model.source_run_id})
        known = direction(key, recorded(client.get_run(each) for each in ids[:_ASKED_RUNS]))
    if known is None:
        raise UserError(
            f"It is not known which way {key!r} is better: give mode='min' or mode='max' (--mode)."
        )
    return known == "max"


def download(model: Model) -> tuple[Path, str]:
    """Downloads a model, and checks that it is the one that was registered.

    Raises:
        UserError: It cannot be downloaded, or its sha256 is not the one recorded.
    """
    with asking(f"{model.uri} cannot be downloaded", READ_EXPERIMENT):
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=model.uri))
    found = fingerprint(folder)
    if model.sha256 not in ("", found):
        raise changed(model.uri, found, model.sha256)
    return folder, found


def changed(uri: str, found: str, recorded: str) -> UserError:
    """The error for a model whose files differ from those that were registered."""
    return UserError(
        f"{uri} is not what was registered: its sha256 is {found}, recorded is {recorded}. "
        "Somebody has changed its files: find out who, log the model again and register that one."
    )


def fingerprint(folder: Path) -> str:
    """Computes the sha256 of names and contents of a model's files.

    These are the files in its folders `data` and `code`, without `MLmodel` and the requirements,
    which MLflow may rewrite.
    """
    digest = hashlib.sha256()
    inside = [path for path in folder.rglob("*") if path.is_file() and path.parent != folder]
    for path in sorted(inside or [path for path in folder.iterdir() if path.is_file()]):
        name = path.relative_to(folder).as_posix()
        if "__pycache__" not in path.parts and name != "registered_model_meta":
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{len(name)}:{name}:{content}\n".encode())
    return digest.hexdigest()


def _logged(client: MlflowClient, model_id: str, sha256: str = "") -> Model:
    uri = f"models:/{model_id}"
    with asking(f"{uri} cannot be read", READ_EXPERIMENT):
        logged = client.get_logged_model(model_id)
    if logged.status != LoggedModelStatus.READY:
        raise UserError(
            f"{uri} is {LoggedModelStatus(logged.status).value}: its logging has not ended, or "
            "failed. Log it again."
        )
    return Model(uri, logged, logged.source_run_id or "", sha256)


def _of_run(client: MlflowClient, run_id: str, name: str | None) -> Model:
    with asking(f"The run {run_id} cannot be read", READ_EXPERIMENT):
        run = client.get_run(run_id)
        made = [
            model
            for model in _finished(client, run.info.experiment_id)
            if model.source_run_id == run.info.run_id
        ]
    found = [model for model in made if name in (None, model.name)]
    if len(found) == 1:
        return _logged(client, found[0].model_id)
    names = ", ".join(f"{model.name} (models:/{model.model_id})" for model in made) or "none"
    many = "several" if found else "no"
    raise UserError(f"The run {run_id} has {many} finished models {name or ''}: {names}. Name one.")


def _finished(client: MlflowClient, experiment_id: str) -> Iterator[LoggedModel]:
    for model in pages(client.search_logged_models, [experiment_id]):
        if model.status == LoggedModelStatus.READY:
            yield model

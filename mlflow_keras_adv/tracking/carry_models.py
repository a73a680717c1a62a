"""Carries the LoggedModels of a run, and the registered versions made of them."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.store.entities import PagedList
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from mlflow_keras_adv.compat.mlflow import log_model_artifact
from mlflow_keras_adv.tracking.carry_target import Carried, RejectedError, Target
from mlflow_keras_adv.tracking.names import UID_TAG

_T = TypeVar("_T")

_LOGGED_MODEL = "models:/m-"


def all_models(source: MlflowClient) -> list[LoggedModel]:
    """Every model of a store, with its metrics."""
    experiments = [each.experiment_id for each in _pages(source.search_experiments)]
    if not experiments:
        return []
    return _pages(source.search_logged_models, experiment_ids=experiments)


def open_model(target: Target, model: LoggedModel, experiment_id: str) -> None:
    """Finds or creates a model in the target, by name and uid alone.

    Raises:
        RejectedError: It can be neither.
    """
    if model.model_id in target.ids:
        return
    client, uid = target.client, model.tags.get(UID_TAG, model.model_id)

    def find() -> list[LoggedModel]:
        found = target.ask(
            client.search_logged_models,
            [experiment_id],
            filter_string=f"tags.`{UID_TAG}` = '{uid}'",
        )
        return sorted(found, key=lambda each: each.model_id)

    there = target.find_or_create(
        find,
        lambda: target.ask(
            client.create_logged_model,
            experiment_id,
            name=model.name,
            source_run_id=target.ids[str(model.source_run_id)],
            tags={UID_TAG: uid},
            model_type=model.model_type,
        ),
        lambda twin: target.ask(client.delete_logged_model, twin.model_id),
    )
    target.ids[model.model_id] = there.model_id


def fill_model(target: Target, model: LoggedModel, carried: Carried) -> None:
    """Brings params, tags and artifacts of a model, then its status.

    Raises:
        RejectedError: The model is not there any more, or takes no values.
    """
    client, model_id = target.client, target.ids[model.model_id]
    there = target.ask(client.get_logged_model, model_id)
    target.places[model.artifact_location] = there.artifact_location
    _fill_params(target, model, there)
    tags = {
        key: target.translate(text)
        for key, text in model.tags.items()
        if key not in (UID_TAG, MLFLOW_MODEL_VERSIONS)
    }
    if not tags.items() <= there.tags.items():
        target.ask(client.set_logged_model_tags, model_id, tags)
    target.upload(
        model.artifact_location,
        partial(log_model_artifact, client),
        model_id,
        carried,
        prefix=f"model {model.name}: ",
    )
    if model.status not in (LoggedModelStatus.PENDING, there.status):
        target.ask(client.finalize_logged_model, model_id, model.status)


def _fill_params(target: Target, model: LoggedModel, there: LoggedModel) -> None:
    """Logs what is missing: MLflow refuses a param that a model has, be it with an equal value."""
    client, model_id = target.client, there.model_id
    missing = {key: text for key, text in model.params.items() if key not in there.params}
    while missing:
        try:
            target.ask(client.log_model_params, model_id, missing)
            return
        except RejectedError:  # MLflow's HTTP client may have sent some of them twice
            known = target.ask(client.get_logged_model, model_id).params
            if known.keys().isdisjoint(missing):
                raise
            missing = {key: text for key, text in missing.items() if key not in known}


def carry_versions(source: MlflowClient, target: Target, run_id: str, carried: Carried) -> None:
    """Registers the versions that were registered of a run, in their order, with their aliases."""
    versions = _pages(source.search_model_versions, filter_string=f"run_id = '{run_id}'")
    for version in sorted(versions, key=_age):
        here = f"models:/{version.name}/{version.version}"
        if here in target.ids:  # and its aliases may have moved on
            continue
        try:
            number = _open_version(source, target, version)
            for alias in source.get_model_version(version.name, version.version).aliases:
                target.ask(target.client.set_registered_model_alias, version.name, alias, number)
            target.ids[here] = f"models:/{version.name}/{number}"
        except RejectedError as error:
            carried.refuse(f"version {version.version} of {version.name}", error)


def _open_version(source: MlflowClient, target: Target, version: ModelVersion) -> str:
    """The number of the version in the target, found or created."""
    client, name = target.client, version.name
    here = str(version.source)
    place = target.ids.get(here, target.translate(here))
    if place == here and here not in target.ids:  # the same words would mean another model there
        raise RejectedError(f"Its source {here} was not carried.")
    model_id = place.removeprefix("models:/") if place.startswith(_LOGGED_MODEL) else None
    uid = version.tags.get(UID_TAG, f"{version.run_id}/{name}/{version.version}")

    def find() -> list[ModelVersion]:
        found = target.ask(
            client.search_model_versions, f"name = '{name}' AND tags.`{UID_TAG}` = '{uid}'"
        )
        # A copy of a version has its tags, but another source.
        return sorted((each for each in found if each.source == place), key=_number)

    def create() -> None:
        _open_registered_model(source, target, name)
        tags = {key: target.translate(text) for key, text in version.tags.items()}
        target.ask(
            client.create_model_version,
            name,
            place,
            run_id=target.ids[str(version.run_id)],
            tags={**tags, UID_TAG: uid},
            description=version.description,
            await_creation_for=0,
            model_id=model_id,
        )

    twins: list[str] = []

    def delete(twin: ModelVersion) -> None:
        twins.append(str(twin.version))
        target.ask(client.delete_model_version, name, twin.version)

    number = str(target.find_or_create(find, create, delete).version)
    if model_id is not None:
        _link(target, model_id, name, number, twins)
    return number


def _open_registered_model(source: MlflowClient, target: Target, name: str) -> None:
    here = source.get_registered_model(name)
    try:
        target.ask(
            target.client.create_registered_model,
            name,
            tags=here.tags,
            description=here.description,
        )
    except RejectedError:  # most likely it is there
        target.ask(target.client.get_registered_model, name)


def _link(target: Target, model_id: str, name: str, number: str, twins: list[str]) -> None:
    """Notes a version at its model; a server does so itself, if nothing interrupts it."""
    there = target.ask(target.client.get_logged_model, model_id)
    noted = json.loads(there.tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    versions = [each for each in noted if each["name"] != name or str(each["version"]) not in twins]
    if not any(each["name"] == name and str(each["version"]) == number for each in versions):
        versions.append({"name": name, "version": number})
    if versions != noted:
        target.ask(
            target.client.set_logged_model_tags,
            model_id,
            {MLFLOW_MODEL_VERSIONS: json.dumps(versions)},
        )


def _number(version: ModelVersion) -> int:
    return int(version.version)


def _age(version: ModelVersion) -> tuple[int, int]:
    return version.creation_timestamp, _number(version)


def _pages(search: Callable[..., PagedList[_T]], **arguments: Any) -> list[_T]:
    page = search(**arguments)
    found = list(page)
    while page.token:
        page = search(**arguments, page_token=page.token)
        found += page
    return found

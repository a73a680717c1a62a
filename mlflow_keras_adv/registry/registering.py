"""register: makes a logged model a version of a registered model, with its fingerprint."""

import json
from contextlib import suppress

from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.registry.candidates import (
    SHA256_TAG,
    Model,
    changed,
    download,
    resolve,
)
from mlflow_keras_adv.registry.rights import EDIT_MODEL, asking, require_registry

# Metrics of the model that the description of a version shows.
_LINEAGE = ("technique", "variant", "parent_model_id", "mlflow.source.git.commit")


def register(name: str, candidate: str) -> ModelVersion:
    """Makes a model a version of a registered model, which is created if it does not exist.

    The version is tagged with its lineage and with the sha256 of the model, by which every later
    promotion and rollback checks that the model is unchanged.

    Args:
        name: Name of the registered model, such as `digits` or `prod.digits`.
        candidate: `models:/m-…`, `runs:/<run id>/<name>`, or a version of another registered model.

    Returns:
        The version; the existing one, if this model is registered under this name already.

    Raises:
        UserError: There is no such model, it was changed since, or the registry refuses it.
    """
    require_name(name)
    require_registry()
    model = resolve(candidate)
    _, sha256 = download(model)
    return register_model(name, model, sha256)


def register_model(name: str, model: Model, sha256: str) -> ModelVersion:
    """Registers a model that was downloaded.

    Raises:
        UserError: It was registered with another sha256, or the registry refuses it.
    """
    client = MlflowClient()
    with asking(f"{model.uri} cannot be registered as {name}", EDIT_MODEL):
        _create(client, name)
        for found in client.search_model_versions(f"name = '{name}'"):
            if model.uri in (found.source, f"models:/{name}/{found.version}"):
                recorded = found.tags.get(SHA256_TAG)
                if recorded is None:
                    client.set_model_version_tag(name, str(found.version), SHA256_TAG, sha256)
                elif recorded != sha256:
                    raise changed(model.uri, sha256, recorded)
                return client.get_model_version(name, str(found.version))
        tags = {SHA256_TAG: sha256, **_lineage(client, model)}
        # Not by mlflow.register_model, which first asks to create `name`: who may add a version to
        # a registered model need not have the right to make new ones.
        model_id = model.logged.model_id if model.logged else None
        version = client.create_model_version(
            name, model.uri, model.run_id or None, tags, model_id=model_id
        )
    if model.logged:
        _link(client, model.logged, version)
    return version


def require_name(name: str) -> None:
    """Rejects a name that a registered model cannot have.

    Raises:
        UserError: It is empty, or has characters that MLflow or a search for versions rejects.
    """
    if not name.strip() or set(name) & set("/:\"'@") or not name.isprintable():
        raise UserError(
            f"{name!r} cannot be the name of a registered model: it needs at least one character, "
            "and none of / : @ ' \" or line breaks. Use letters, digits, '.', '-' and '_'."
        )


def _create(client: MlflowClient, name: str) -> None:
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        try:
            client.create_registered_model(name)
        except MlflowException as race:
            if race.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise


def _link(client: MlflowClient, logged: LoggedModel, version: ModelVersion) -> None:
    """Sets the tag by which MLflow's UI links a model to its versions."""
    links = json.loads(logged.tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    links.append({"name": version.name, "version": version.version})
    with suppress(MlflowException):  # who may register a model need not have the right to tag it
        client.set_logged_model_tags(logged.model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(links)})


def _lineage(client: MlflowClient, model: Model) -> dict[str, str]:
    known: dict[str, str] = {}
    if model.run_id:
        with suppress(MlflowException):  # a model may outlive its run
            known |= client.get_run(model.run_id).data.tags
    known |= model.logged.tags if model.logged else {}
    tags = {key: known[key] for key in _LINEAGE if key in known}
    return tags | ({"source_run_id": model.run_id} if model.run_id else {})

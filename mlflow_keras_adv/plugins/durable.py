"""`durable+…` addresses: what MLflow builds for them.

MLflow imports this module while `import mlflow` runs, in each program of an environment in which
this package is installed: what it needs is imported when such an address is used.
"""

import sys
from typing import Any

import mlflow
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository


def tracking_store(store_uri: str, artifact_uri: str | None = None) -> Any:
    """The tracking store of a durable address; see `durable.store.open_store`."""
    from mlflow_keras_adv.durable.store import open_store

    return open_store(store_uri, artifact_uri)


def registry_store(store_uri: str, tracking_uri: str | None = None) -> Any:
    """The model registry of a durable address: that of the store behind."""
    from mlflow_keras_adv.compat.mlflow import registry_store_of
    from mlflow_keras_adv.tracking.durable_address import plain_uri

    return registry_store_of(plain_uri(store_uri), plain_uri(tracking_uri or store_uri))


def artifact_repository(
    artifact_uri: str, tracking_uri: str | None = None, **options: Any
) -> ArtifactRepository:
    """The artifacts that a tracking server stores, for MLflow's own client.

    MLflow's own, but for durable addresses and in the blocks of `track`.
    """
    address = tracking_uri or mlflow.get_tracking_uri()
    block = sys.modules.get("mlflow_keras_adv.durable.block")  # nobody else can have opened one
    if not address.startswith("durable+") and not (block and block.is_open(address)):
        return MlflowArtifactsRepository(artifact_uri, tracking_uri=tracking_uri, **options)
    from mlflow_keras_adv.durable.artifacts import DurableArtifacts

    return DurableArtifacts(artifact_uri, address, **options)

"""The address that makes a store durable, and the store that is behind it."""

import mlflow

PREFIX = "durable+"


def plain_uri(uri: str) -> str:
    """The tracking URI of the store itself: `durable+http://host` is that of `http://host`."""
    return uri.removeprefix(PREFIX)


def configured_uri() -> str:
    """The tracking URI of the store that MLflow is configured with, as `plain_uri` has it."""
    return plain_uri(mlflow.get_tracking_uri())

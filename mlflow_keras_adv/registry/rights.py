"""Errors of a store or registry in one sentence, with the right that a login lacks."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from getpass import getuser

import mlflow
from mlflow.exceptions import MlflowException

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.tracking.offline import is_offline, is_wanted
from mlflow_keras_adv.tracking.store import require_store, without_password

READ_MODEL = "READ on the registered model"
EDIT_MODEL = "EDIT on the registered model (a new one: the right to register models)"
READ_EXPERIMENT = "READ on the experiment"
EDIT_EXPERIMENT = "EDIT on the experiment"


@contextmanager
def asking(purpose: str, right: str) -> Iterator[None]:
    """Converts errors of calls to a store to one sentence.

    Args:
        purpose: The failed purpose, such as "cannot register …".
        right: The right that the calls need.

    Raises:
        UserError: The store rejects a call of the block.
    """
    try:
        yield
    except (MlflowException, UserError, OSError) as error:
        cause = error.__cause__ if isinstance(error, UserError) else error
        if isinstance(cause, MlflowException):
            status, text = cause.get_http_status_code(), cause.message
        else:  # requests' errors are OSErrors
            status = getattr(getattr(cause, "response", None), "status_code", 0)
            text = str(error)
        if status == 401:
            reason = (
                "401, the login is missing or wrong: set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            )
        elif status == 403:
            reason = f"403, this login lacks {right}"
        elif isinstance(error, UserError):
            raise
        else:
            reason = " ".join(without_password(text).split())
        raise UserError(f"{purpose}: {reason}") from error


def require_registry() -> None:
    """Checks that tracking store and registry can be reached and written.

    Raises:
        UserError: One of them cannot, or runs are recorded offline.
    """
    if is_wanted() or is_offline():
        raise UserError(
            "A registry cannot be changed offline: its aliases are shared. Go online (unset "
            "MLFLOW_KERAS_ADV_OFFLINE, `mlflow-keras-adv sync`) and promote again."
        )
    for uri in dict.fromkeys((mlflow.get_tracking_uri(), mlflow.get_registry_uri())):
        with asking("The registry cannot be used", READ_MODEL):
            require_store(uri)


def who() -> str:
    """The login at the server, else the user of this machine."""
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return f"uid {os.getuid()}" if hasattr(os, "getuid") else "unknown"

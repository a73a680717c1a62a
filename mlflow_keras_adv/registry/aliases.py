"""Moving the champion: one at a time, and read again afterwards.

MLflow moves an alias in one call, without comparing it first. So each process announces a move by a
tag of the registered model, and continues if no other process has announced one. Two that announce
at the same time both see the other's tag, withdraw, and try again after a random wait.
"""

import logging
import random
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from mlflow_keras_adv.registry.rights import EDIT_MODEL, READ_MODEL, asking, who

CHAMPION = "champion"
CHALLENGER = "challenger"
PREVIOUS = "previous_champion"

# Moving aliases takes a few calls. An announcement that is unchanged for so long comes from a
# process that has died.
STALE_SECONDS = 60.0

_LOCK = "moving."
_logger = logging.getLogger(__name__)


def alias(name: str, role: str) -> ModelVersion | None:
    """Reads the version that an alias names; None if there is no such alias or model.

    Raises:
        UserError: The registry cannot be read.
    """
    client = MlflowClient()
    with asking(f"The registered model {name!r} cannot be read", READ_MODEL):
        try:
            number = client.get_registered_model(name).aliases.get(role)
        except MlflowException as error:
            if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                return None
            raise
        return None if number is None else client.get_model_version(name, str(number))


def number_of(version: ModelVersion | None) -> str:
    """The number of a version as text; empty for None."""
    return "" if version is None else str(version.version)


def set_alias(name: str, role: str, version: str) -> None:
    """Moves an alias.

    Raises:
        UserError: The registry refuses it.
    """
    with asking(f"The alias {role} of {name} cannot be set", EDIT_MODEL):
        MlflowClient().set_registered_model_alias(name, role, version)


def move_champion(name: str, version: str, *, before: str, previous: str) -> str:
    """Makes a version the champion, unless the champion has changed meanwhile.

    Call it inside `alone`.

    Args:
        name: Name of the registered model.
        version: The new champion.
        before: The version that must still be the champion; empty: there is none.
        previous: The version that becomes `previous_champion`; empty: leaves that as it is.

    Returns:
        The champion's version as it was read afterwards: `version`, unless somebody else moved it.

    Raises:
        UserError: The registry refuses it.
    """
    now = number_of(alias(name, CHAMPION))
    if now != before:
        return now
    if previous:
        set_alias(name, PREVIOUS, previous)
    set_alias(name, CHAMPION, version)
    return number_of(alias(name, CHAMPION))


@contextmanager
def alone(name: str) -> Iterator[None]:
    """A lock over processes for moving the aliases of a registered model.

    Raises:
        UserError: The registry refuses it.
    """
    client = MlflowClient()
    since: dict[str, float] = {}
    purpose = f"An alias of {name} cannot be moved"
    while True:
        key = f"{_LOCK}{uuid.uuid4().hex}"  # new each time: what stays the same is stale
        with asking(purpose, EDIT_MODEL):
            client.set_registered_model_tag(name, key, who())
            try:
                tags = client.get_registered_model(name).tags
            except BaseException:
                client.delete_registered_model_tag(name, key)
                raise
        others = {each: text for each, text in tags.items() if each.startswith(_LOCK)}
        others.pop(key, None)
        if not others:
            break
        _withdraw(client, name, key)
        now = time.monotonic()
        since = {each: since.get(each, now) for each in others}
        for each, first in since.items():
            if now - first > STALE_SECONDS:
                message = "%s: %s announced to move an alias and did not: taken as dead"
                _logger.warning(message, name, others[each])
                _withdraw(client, name, each)
        time.sleep(random.uniform(0.05, 0.5))
    try:
        yield
    finally:
        _withdraw(client, name, key)


def _withdraw(client: MlflowClient, name: str, key: str) -> None:
    try:
        client.delete_registered_model_tag(name, key)
    except MlflowException as error:  # others take it as dead after STALE_SECONDS
        _logger.warning("%s: the tag %s could not be deleted: %s", name, key, error.message)

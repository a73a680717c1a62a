"""A server that asks who one is: the right that is missing is named, and nothing is half done."""

from collections.abc import Iterator

import pytest
import requests

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.registry import history, rollback
from tests.conftest import Guarded
from tests.registry.conftest import log_numbers, promoted


@pytest.fixture
def logins(guarded_server: Guarded, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Logs in as the administrator or as the reader."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", guarded_server.address)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)

    def login(who: tuple[str, str]) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", who[0])
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", who[1])

    return login


def permit(guarded: Guarded, name: str, permission: str) -> None:
    requests.post(
        f"{guarded.address}/api/3.0/mlflow/users/permissions/grant",
        json={
            "username": guarded.reader[0],
            "resource_type": "registered_model",
            "resource_id": name,
            "permission": permission,
        },
        auth=guarded.administrator,
        timeout=60,
    ).raise_for_status()


def test_the_right_that_is_missing_is_named(
    guarded_server: Guarded, logins: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    logins(guarded_server.administrator)
    first, second = (log_numbers("0", f"net{n}", accuracy=0.8) for n in range(2))
    assert promoted("guarded", first).outcome == "promoted"

    logins(guarded_server.reader)
    assert promoted("guarded", second, dry_run=True).outcome == "passed"  # to read is enough
    with pytest.raises(UserError, match=r"403, this login lacks EDIT on the experiment"):
        promoted("guarded", second)
    guarded_server.permit_writing(True)
    try:
        with pytest.raises(UserError, match=r"403, this login lacks EDIT on the registered model"):
            promoted("guarded", second)
        assert [entry.what for entry in history("guarded")] == ["promoted"]
        permit(guarded_server, "guarded", "EDIT")
        assert promoted("guarded", second).outcome == "promoted"
        assert rollback("guarded").version == "1"
    finally:
        guarded_server.permit_writing(False)
    assert [entry.who for entry in history("guarded")] == ["admin", "reader", "reader"]

    logins(("nobody", "of this name"))
    with pytest.raises(UserError, match="401, the login is missing or wrong"):
        promoted("guarded", second)

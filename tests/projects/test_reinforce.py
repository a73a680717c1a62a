"""What `reinforce` says without gymnasium; the training is in test_catalogue."""

import sys

import mlflow
import pytest

from mlflow_keras_adv import UserError
from projects import reinforce


def test_without_gymnasium_one_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, experiment: str, client: mlflow.MlflowClient
) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)

    with pytest.raises(UserError, match='gymnasium is not installed; the extra "rl" brings it'):
        reinforce.main(epochs=1)

    assert client.search_runs([experiment]) == []

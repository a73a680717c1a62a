"""The store that is measured is another one than the one that holds the result."""

import os
from pathlib import Path

import mlflow
import pytest

from projects.measuring.stores import scratch_run, scratch_store, tracking_in


def test_the_chosen_store_and_experiment_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://chosen")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "7")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)

    def train() -> None:
        with scratch_store("sqlite") as uri, tracking_in(uri), scratch_run() as run:
            assert mlflow.get_tracking_uri() == uri
            folder = Path(uri.removeprefix("sqlite:///")).parent
            assert run.info.artifact_uri.startswith(folder.as_uri())
            raise KeyError

    with pytest.raises(KeyError):
        train()
    assert mlflow.get_tracking_uri() == "http://chosen"
    assert os.environ["MLFLOW_EXPERIMENT_ID"] == "7"
    assert "MLFLOW_EXPERIMENT_NAME" not in os.environ


def test_a_file_is_deleted_with_its_folder() -> None:
    with scratch_store("sqlite") as uri, tracking_in(uri), scratch_run() as run:
        path = Path(uri.removeprefix("sqlite:///"))
        assert mlflow.MlflowClient().get_run(run.info.run_id).info.status == "RUNNING"
        assert path.exists()
    assert not path.parent.exists()

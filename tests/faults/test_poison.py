"""What a server fails at for ever is refused by name, and holds up nothing behind it."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_keras_adv.tracking import retry
from mlflow_keras_adv.tracking import run as run_module
from mlflow_keras_adv.tracking.copy_runs import copy_runs
from mlflow_keras_adv.tracking.run import Run, track
from mlflow_keras_adv.tracking.sync import sync
from mlflow_keras_adv.tracking.values import Dataset
from tests.faults.proxy import FaultyProxy, Rule

REASON = "A string literal cannot contain NUL (0x00) characters."
# As PostgreSQL does to a text with a NUL, behind a server that answers everything else.
POISON = (
    Rule("500", "log-batch", body='"poison"', reason=REASON),
    Rule("500", "log-inputs", body='"poison"', reason=REASON),
)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(tmp_path / "home"))


@pytest.fixture
def between(proxy: Callable[[], FaultyProxy], monkeypatch: pytest.MonkeyPatch) -> FaultyProxy:
    made = proxy()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.address)
    return made


def record(run: Run) -> None:
    run.log_params({"p": "poison", "q": 2})
    run.set_tags({"good": "1", "bad": "poison", "better": "2"})
    run.log_dataset(Dataset("poison", "1"), context="test")
    run.log_dataset(Dataset("digits", "1"), context="test")
    for step in range(1, 21):
        run.log_metrics({"loss": 1 / step}, step=step)
    run.log_text("hello", "a.txt")


def assert_arrived(client: MlflowClient, run_id: str) -> None:
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"q": "2"}
    assert (run.data.tags["good"], run.data.tags["better"]) == ("1", "2")
    assert "bad" not in run.data.tags
    assert len(client.get_metric_history(run_id, "loss")) == 20
    assert [each.dataset.name for each in run.inputs.dataset_inputs] == ["digits"]
    assert [file.path for file in client.list_artifacts(run_id)] == ["a.txt"]
    assert not any("proof" in tag for tag in run.data.tags)


def test_it_is_refused_by_name_with_the_servers_reason(
    between: FaultyProxy, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), track("poisoned", log_system_metrics=False) as run:
        between.inject(*POISON)
        record(run)
    assert run.receipt.refused_names == {"p": 1, "bad": 1, "dataset poison": 1}
    assert run.receipt.pending == 0
    assert f"bad of run {run.run_id} is not recorded: INTERNAL_ERROR: {REASON}" in caplog.text
    assert_arrived(MlflowClient(server), run.run_id)


def test_sync_delivers_what_stands_behind_it(
    between: FaultyProxy, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "GRACE_SECONDS", 0.5)
    with track("poisoned journal", log_system_metrics=False) as run:
        assert run.flush(60)
        between.close()
        record(run)
    assert run.receipt.pending == 20
    between.inject(*POISON)
    between.open()
    outcome = sync()
    assert outcome.pending == []
    (line,) = outcome.delivered
    assert "20 delivered, 0 pending" in line
    assert line.endswith("refused: p (1), bad (1), dataset poison (1)")
    assert_arrived(MlflowClient(server), run.run_id)


def test_of_a_run_that_was_recorded_offline_too(
    between: FaultyProxy, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_KERAS_ADV_OFFLINE", "1")
    with track("poisoned offline", log_system_metrics=False) as run:
        record(run)
    # Or MLflow itself would ask again for minutes, each time.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    between.inject(*POISON)
    source, target = MlflowClient(run.tracking_uri), MlflowClient(between.address)
    (copied,) = copy_runs(source, target, [run.run_id], {})
    assert copied.refused.keys() == {"p", "bad", "dataset poison"}
    assert (copied.points, copied.refused_points) == (20, 0)
    assert REASON in copied.refused["bad"]
    assert copied.target_run_id is not None
    assert_arrived(MlflowClient(server), copied.target_run_id)


def test_a_server_that_fails_at_everything_is_waited_for(between: FaultyProxy, server: str) -> None:
    with track("all fails", log_system_metrics=False) as run:
        between.inject(Rule("500", "log-batch", times=15, reason="no space left on device"))
        record(run)
        assert run.flush(60)
    assert between.did["500"] == 15
    assert not run.receipt.refused_names
    data = MlflowClient(server).get_run(run.run_id).data
    assert data.params == {"p": "poison", "q": "2"}
    assert data.tags["bad"] == "poison"


def test_a_server_that_answers_is_not_asked_whether_it_does(between: FaultyProxy) -> None:
    with track("no questions", log_system_metrics=False) as run:
        between.inject(Rule("slow", "experiments/search"), Rule("slow", "log-batch"))
        for step in range(3):
            run.log_metrics({"loss": 1.0}, step=step)
            assert run.flush(60)
        asked = dict(between.did)
    assert asked["slow"] == 3

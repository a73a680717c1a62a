"""A run is taken up on a second machine, before the first has delivered what it had of it."""

import logging
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_keras_adv.tracking.axis import is_superseded, superseded_spans
from mlflow_keras_adv.tracking.run import track
from mlflow_keras_adv.tracking.sync import sync
from tests.faults.proxy import FaultyProxy
from tests.warm import PYTHON

ROOT = Path(__file__).parent.parent.parent

FIRST = """
import os, sys
import mlflow_keras_adv as mka
with mka.track("job", log_system_metrics=False) as run:
    for step in range(1, 6):
        run.log_metrics({"batch/loss": 1.0}, step=step)
    run.log_metrics({"train/epoch": 1.0}, step=5)
    run.flush(60)
    print(run.run_id, flush=True)
    sys.stdin.readline()
    for step in range(6, 21):
        run.log_metrics({"batch/loss": 1.0}, step=step)
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), 9)
    os.environ["end"] = "in the journal"
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["killed", "ended"])
def test_what_is_delivered_late_is_superseded(
    end: str,
    proxy: Callable[[], FaultyProxy],
    server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    between, client = proxy(), MlflowClient(server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", between.address)
    monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(tmp_path / "first"))
    first = subprocess.Popen(
        [PYTHON, "-c", FIRST, end],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None
    run_id = first.stdout.readline().strip()
    between.close()
    first.communicate("go on\n", timeout=120)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(tmp_path / "second"))
    with track(run_id=run_id, log_system_metrics=False) as run:
        assert run.axis.batches == 5
        for step in range(6, 13):
            run.log_metrics({"batch/loss": 2.0}, step=step)
        assert run.flush(60)

        between.open()
        monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(tmp_path / "first"))
        with caplog.at_level(logging.WARNING):
            outcome = sync()
        assert (len(outcome.delivered), outcome.pending) == (1, [])
        assert "taken up elsewhere" in caplog.text
        assert client.get_run(run_id).info.status == "RUNNING"
        monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(tmp_path / "second"))
        for step in range(13, 26):
            run.log_metrics({"batch/loss": 2.0}, step=step)

    there = client.get_run(run_id)
    assert there.info.status == "FINISHED"
    spans = superseded_spans(there.data.tags)
    history = client.get_metric_history(run_id, "batch/loss")
    counting = {point.step: point.value for point in history if not is_superseded(point, spans)}
    assert len(history) == 5 + 15 + 20
    assert counting == {step: 1.0 if step <= 5 else 2.0 for step in range(1, 26)}

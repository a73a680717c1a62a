"""What these servers keep as it was handed in, and what they refuse."""

import json
import logging
import subprocess
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

import mlflow_keras_adv as mka
from mlflow_keras_adv import registry
from mlflow_keras_adv.tracking.texts import TWIN
from tests.comparison import made_runs
from tests.registry.conftest import GATES, SAMPLES, log_numbers, read_numbers
from tests.servers.conftest import Team
from tests.warm import PYTHON

ROOT = Path(__file__).parent.parent.parent

# Two of these write to one run at a time: the same keys, in another order, at steps of their own.
WRITER = """
import sys, mlflow_keras_adv as mka
number, run_id = int(sys.argv[1]), sys.argv[2]
with mka.track(run_id=run_id, log_system_metrics=False) as run:
    keys = [f"k{each}" for each in range(20)][:: 1 if number % 2 else -1]
    for step in range(50):
        run.log_metrics({key: number for key in keys}, step=1000 * number + step)
    run.set_tags({f"t{number}": "x", "same": number})
    run.log_params({f"p{number}": number, "shared": 1})
"""


@pytest.mark.parametrize("artifacts", ["proxied", "direct"], indirect=True)
def test_odd_doubles_come_back_bit_for_bit_and_files_too(project: Team, tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    values = random.integers(0, 2**64, 3000, dtype=np.uint64).view(np.float64)
    values = np.concatenate([values[np.isfinite(values)], [5e-324, 0.1 + 0.2, 1e308]])
    content = random.bytes(100_000)
    (tmp_path / "bytes").write_bytes(content)
    with mka.track("doubles", log_system_metrics=False) as run:
        steps = np.arange(len(values))
        run.log_series({"odd": values}, steps=steps, timestamps_ms=steps + 1_700_000_000_000)
        run.log_artifact(tmp_path / "bytes", "notes")
    client = MlflowClient(project.address)
    history = client.get_metric_history(run.run_id, "odd")
    found = np.array([point.value for point in sorted(history, key=lambda each: each.step)])
    assert found.view(np.uint64).tolist() == values.view(np.uint64).tolist()
    place = client.download_artifacts(run.run_id, "notes/bytes", str(tmp_path))
    assert Path(place).read_bytes() == content


@pytest.mark.parametrize("artifacts", ["proxied"], indirect=True)
def test_of_two_processes_that_write_to_one_run_nothing_is_lost(project: Team) -> None:
    client = MlflowClient(project.address)
    with mka.track("shared", log_system_metrics=False) as run:
        writers = [
            subprocess.Popen([PYTHON, "-c", WRITER, str(number), run.run_id], cwd=ROOT)
            for number in (1, 2)
        ]
        assert [each.wait(timeout=120) for each in writers] == [0, 0]
    data = client.get_run(run.run_id).data
    for key in (f"k{each}" for each in range(20)):
        history = client.get_metric_history(run.run_id, key)
        assert Counter((point.step, point.value) for point in history) == Counter(
            (1000 * number + step, float(number)) for number in (1, 2) for step in range(50)
        )
    assert (data.tags["t1"], data.tags["t2"]) == ("x", "x")
    assert data.params == {"p1": "1", "p2": "2", "shared": "1"}


@pytest.mark.parametrize("artifacts", ["proxied"], indirect=True)
def test_a_text_that_the_database_cannot_hold_is_refused_by_name(
    project: Team, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with suppress(RuntimeError), mka.track("hostile", log_system_metrics=False) as run:
        run.set_tags({"nul": "a\0b", "surrogate": "caf\udce9.csv", "fine": "ü \N{PILE OF POO}"})
        run.log_params({"nul": "a\0b", "fine": 1})
        run.log_metrics({"after": 1.0}, step=2)
        raise RuntimeError("a bad byte \0 in caf\udce9.csv")
    there = MlflowClient(project.address).get_run(run.run_id)
    assert there.info.status == "FAILED"
    assert there.data.tags["fine"] == "ü \N{PILE OF POO}"
    assert there.data.tags["error"] == r"RuntimeError: a bad byte \x00 in caf\udce9.csv"
    assert there.data.metrics == {"after": 1.0}
    assert there.data.params["fine"] == "1"
    refused = {"nul": 2, "surrogate": 1} if project.name == "postgresql" else {"surrogate": 1}
    assert run.receipt.refused_names == refused
    assert json.loads(there.data.tags["points.refused_names"]) == refused
    assert "SQL" not in caplog.text


@pytest.mark.parametrize("artifacts", ["proxied"], indirect=True)
def test_of_names_that_are_one_to_the_database_the_second_is_refused(
    project: Team, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), mka.track("twins", log_system_metrics=False) as run:
        run.set_tags({"Tag": "a", "tag": "b"})
        run.log_params({"Rate": 1, "rate": 2})
        run.log_metrics({"batch/Loss": 1.0, "batch/loss": 2.0, "ü": 1.0, "u": 2.0}, step=1)
        run.log_metrics({"after": 1.0}, step=2)
    there = MlflowClient(project.address).get_run(run.run_id)
    assert there.info.status == "FINISHED"
    held = {"batch/Loss": 1.0, "ü": 1.0, "after": 1.0}
    assert there.data.tags["Tag"] == "a"
    assert not any("proof" in tag.lower() for tag in there.data.tags)
    refused = [] if project.name == "postgresql" else ["tag", "rate", "batch/loss", "u"]
    if not refused:
        held |= {"batch/loss": 2.0, "u": 2.0}
        assert there.data.tags["tag"] == "b"
        assert there.data.params == {"Rate": "1", "rate": "2"}
    assert there.data.metrics == held
    assert run.receipt.refused_names == dict.fromkeys(refused, 1)
    assert caplog.text.count(TWIN) == len(refused)
    assert "SQL" not in caplog.text


@pytest.mark.parametrize("artifacts", ["direct"], indirect=True)
@pytest.mark.parametrize("team", ["postgresql"], indirect=True)
def test_a_model_is_promoted(project: Team) -> None:
    experiment_id = MlflowClient().create_experiment("promoted", "s3://team/promoted")
    name = "net"
    for accuracy, outcome, champion in ((0.4, "refused", ""), (0.6, "promoted", "2")):
        candidate = log_numbers(experiment_id, accuracy=accuracy)
        done = registry.promote(
            name, candidate, data=SAMPLES, gates=GATES, measure=read_numbers, reason="a test"
        )
        assert (done.outcome, done.champion) == (outcome, champion)
    client = MlflowClient()
    assert client.get_registered_model(name).aliases == {"challenger": "2", "champion": "2"}
    assert client.get_model_version_by_alias(name, "champion").source == candidate


@pytest.mark.parametrize("artifacts", ["direct"], indirect=True)
@pytest.mark.parametrize("team", ["postgresql"], indirect=True)
def test_runs_are_compared(project: Team) -> None:
    client = MlflowClient()
    experiment_id = client.create_experiment("compared", "s3://team/compared")
    for variant in ("scratch", "distilled"):
        for seed in (0, 1):
            made_runs.log_technique(client, experiment_id, variant, seed, None)
    found = mka.compare(experiments=["compared"])
    assert found.table["variant"].tolist() == ["distilled", "scratch"]
    assert found.table["runs"].tolist() == [2, 2]
    values = [made_runs.finals("distilled", seed)["final/accuracy"] for seed in (0, 1)]
    assert found.table["final/accuracy"][0] == pytest.approx(np.mean(values))

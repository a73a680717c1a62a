"""Programs over a durable address whose server is killed, hangs, refuses or was never there."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.tracking._tracking_service import utils as tracking_service
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV

from mlflow_keras_adv.durable.store import open_store
from mlflow_keras_adv.tracking import outbox, retry
from mlflow_keras_adv.tracking.run import track
from mlflow_keras_adv.tracking.sync import sync
from tests.conftest import Guarded
from tests.durable.programs import PROGRAMS, Program
from tests.durable.record import differing, record_of
from tests.faults.table import Row, rows_of
from tests.mlflow_server import MlflowServer
from tests.warm import BIN, PYTHON


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def server(
    shared_server: MlflowServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[MlflowServer]:
    """A server that may be killed; MLflow is configured with its durable address."""
    monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"durable+{shared_server.address}")
    monkeypatch.setattr(retry, "LONGEST_PAUSE_SECONDS", 0.5)
    monkeypatch.setattr(outbox, "GRACE_SECONDS", 2.0)
    yield shared_server
    if not shared_server.runs:
        shared_server.start()
    while open_store(f"durable+{shared_server.address}").is_away:
        time.sleep(0.1)


@pytest.fixture
def plain(server: MlflowServer) -> MlflowClient:
    """Reads what the server has."""
    return MlflowClient(server.address)


def values_of(client: MlflowClient, run_id: str, key: str) -> list[float]:
    return [point.value for point in client.get_metric_history(run_id, key)]


def named(client: MlflowClient, name: str) -> Run:
    (run,) = client.search_runs(
        [each.experiment_id for each in client.search_experiments()],
        f"attributes.run_name = '{name}'",
    )
    return run


class Loop:
    """A plain loop that logs a value in each step, and what became of it.

    Attributes:
        longest_wait: Seconds that a call took at most.
        step: The next step.
    """

    def __init__(self) -> None:
        self.longest_wait = 0.0
        self.step = 0

    def run(self, steps: int) -> None:
        """Logs the number of each step, by `mlflow.log_metric`."""
        for _ in range(steps):
            began = time.perf_counter()
            mlflow.log_metric("loss", self.step, step=self.step)
            self.longest_wait = max(self.longest_wait, time.perf_counter() - began)
            self.step += 1

    def row(self, fault: str, delivered: list[float], refused: int = 0) -> Row:
        """The line of the table of faults."""
        twice = len(delivered) - len(set(delivered))
        return Row(
            f"`durable+http`: {fault}", self.step, len(delivered), refused, twice, self.longest_wait
        )


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[Row], None]:
    """Adds a line to the table of faults."""
    return rows_of(request.config).append


@pytest.mark.slow
def test_a_server_is_killed_and_comes_back(
    server: MlflowServer, plain: MlflowClient, note: Callable[[Row], None]
) -> None:
    loop = Loop()
    with mlflow.start_run() as run:
        run_id = run.info.run_id
        mlflow.log_params({"before": 1, "same": 2})
        loop.run(50)
        server.kill()
        loop.run(50)
        mlflow.log_params({"during": 3, "same": 2})
        mlflow.set_tag("during", "a tag")
        mlflow.set_tag("for a while", "x")
        mlflow.delete_tag("for a while")
        mlflow.log_text("during", "texts/during.txt")
        mlflow.log_dict({"a": 1}, "during.json")
        seen = mlflow.get_run(run_id)  # what this program has written is what it reads
        assert seen.data.params == {"before": "1", "during": "3", "same": "2"}
        assert seen.data.metrics == {"loss": 99.0}
        assert seen.data.tags["during"] == "a tag"
        assert "for a while" not in seen.data.tags
        server.start()
        loop.run(50)
    assert values_of(plain, run_id, "loss") == list(range(150))
    note(loop.row("a loop of `mlflow.log_metric`, `kill -9`, back", list(range(150))))
    found = plain.get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"before": "1", "during": "3", "same": "2"}
    assert found.data.tags["during"] == "a tag"
    assert "for a while" not in found.data.tags
    assert found.data.tags["points.delivered"] == "150"
    files = {
        each.path for folder in (None, "texts") for each in plain.list_artifacts(run_id, folder)
    }
    assert files == {"during.json", "texts", "texts/during.txt"}


@pytest.mark.slow
def test_a_server_that_stays_away_costs_no_step_and_sync_delivers(
    server: MlflowServer, plain: MlflowClient, note: Callable[[Row], None]
) -> None:
    loop = Loop()
    with mlflow.start_run() as run:
        run_id = run.info.run_id
        loop.run(1)
        server.kill()
        for _ in range(4):
            mlflow.set_tag("at", loop.step - 1)
            loop.run(50)
    server.start()
    assert values_of(plain, run_id, "loss") in ([], [0.0])
    outcome = sync()
    assert outcome.pending == []
    stored = values_of(plain, run_id, "loss")
    assert stored == list(range(201))
    note(loop.row("a loop of `mlflow.log_metric`, never back, `sync`", stored))
    found = plain.get_run(run_id)
    assert (found.info.status, found.data.tags["at"]) == ("FINISHED", "150")
    assert found.data.tags["points.delivered"] == "201"


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "while it is saved"])
def test_models_that_are_logged_while_the_server_is_away(
    server: MlflowServer, plain: MlflowClient, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = LinearRegression().fit(np.eye(3), [1.0, 2.0, 3.0])
    save = mlflow.sklearn.save_model

    def kill_and_save(*arguments: object, **named: object) -> None:
        server.kill()
        save(*arguments, **named)

    with mlflow.start_run() as run:
        mlflow.log_param("alpha", 1)
        mlflow.log_metric("score", 0.5, step=4)
        if moment == "before":
            assert mlflow.get_run(run.info.run_id).data.params == {"alpha": "1"}
            server.kill()
        else:
            monkeypatch.setattr(mlflow.sklearn, "save_model", kill_and_save)
        mlflow.sklearn.log_model(fitted, name="line", step=4, pip_requirements=["scikit-learn"])
        server.start()
    sync()
    (output,) = plain.get_run(run.info.run_id).outputs.model_outputs
    model = plain.get_logged_model(output.model_id)
    assert (model.name, str(model.status), output.step) == ("line", "READY", 4)
    assert model.params == {"alpha": "1"}
    assert [(each.key, each.step, each.value) for each in model.metrics] == [("score", 4, 0.5)]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    loaded = mlflow.sklearn.load_model(f"models:/{output.model_id}")
    np.testing.assert_array_equal(loaded.predict(np.eye(3)), fitted.predict(np.eye(3)))


@pytest.mark.slow
def test_what_the_store_refuses_later_is_refused_by_name(
    server: MlflowServer, plain: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    with mlflow.start_run() as run:
        mlflow.log_param("rate", 0.1)
        server.kill()
        mlflow.log_param("rate", 0.2)
        mlflow.log_metric("loss", 1.0)
        with pytest.raises(mlflow.MlflowException, match="Names may only contain"):
            mlflow.log_param("a@b", 1)
        with pytest.raises(mlflow.MlflowException, match="Names may only contain"):
            mlflow.log_metric("a@b", 1)
        server.start()
    found = plain.get_run(run.info.run_id)
    assert found.data.params == {"rate": "0.1"}
    assert found.data.metrics == {"loss": 1.0}
    assert '"rate": 1' in found.data.tags["points.refused_names"]
    assert any(
        "rate" in r.getMessage() and "not recorded" in r.getMessage() for r in caplog.records
    )


@pytest.mark.slow
def test_a_server_that_hangs_is_waited_for_once(
    server: MlflowServer, plain: MlflowClient, note: Callable[[Row], None]
) -> None:
    loop = Loop()
    with mlflow.start_run() as run:
        loop.run(1)
        server.send(signal.SIGSTOP)
        loop.run(99)
        mlflow.set_tag("a", "1")  # waits until it is known
        store = open_store(mlflow.get_tracking_uri())
        assert store.is_away
        mlflow.set_tag("b", "2")
        mlflow.log_text("text", "text.txt")
        server.send(signal.SIGCONT)
    sync()
    found = plain.get_run(run.info.run_id)
    stored = values_of(plain, run.info.run_id, "loss")
    assert stored == list(range(100))
    note(loop.row("a loop of `mlflow.log_metric`, the server hangs", stored))
    assert (found.data.tags["a"], found.data.tags["b"]) == ("1", "2")


@pytest.mark.slow
def test_a_right_that_is_withdrawn_and_given_back(
    guarded_server: Guarded,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    note: Callable[[Row], None],
) -> None:
    monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"durable+{guarded_server.address}")
    monkeypatch.setattr(retry, "LONGEST_PAUSE_SECONDS", 0.5)
    for name, text in zip(("USERNAME", "PASSWORD"), guarded_server.reader, strict=True):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", text)
    loop = Loop()
    guarded_server.permit_writing(True)
    try:
        with mlflow.start_run() as run:
            loop.run(50)
            guarded_server.permit_writing(False)
            loop.run(50)
            mlflow.set_tag("during", "x")
            guarded_server.permit_writing(True)
            loop.run(50)
        plain = MlflowClient(guarded_server.address)
        stored = values_of(plain, run.info.run_id, "loss")
        assert stored == list(range(150))
        note(loop.row("a loop of `mlflow.log_metric`, 403 for a while", stored))
        found = plain.get_run(run.info.run_id)
        assert (found.info.status, found.data.tags["during"]) == ("FINISHED", "x")
    finally:
        guarded_server.permit_writing(False)


@pytest.mark.slow
def test_a_script_under_autologging_of_scikit_learn(
    server: MlflowServer, plain: MlflowClient, note: Callable[[Row], None]
) -> None:
    x, y = np.eye(12), [0, 1] * 6
    mlflow.sklearn.autolog(log_models=False)
    began = time.perf_counter()
    try:
        with mlflow.start_run() as run:
            server.kill()
            with mlflow.start_run(nested=True, run_name="search"):
                GridSearchCV(LogisticRegression(), {"C": [0.5, 1.0]}, cv=2).fit(x, y)
            longest = time.perf_counter() - began
            server.start()
    finally:
        mlflow.sklearn.autolog(disable=True)
    sync()
    runs = plain.search_runs(["0"], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    (search,) = runs
    points = search.data.metrics
    assert {"best_cv_score", "training_accuracy_score"} <= points.keys()
    assert search.data.params["best_C"] in ("0.5", "1.0")
    assert search.info.status == "FINISHED"
    fault = "a search of scikit-learn under autologging, `kill -9`, back (all of it)"
    note(Row(f"`durable+http`: {fault}", len(points), len(points), 0, 0, longest))


# Without a server at the start: each program in a process of its own, as users have it.


@pytest.mark.slow
def test_in_a_block_of_track_what_mlflow_is_told_is_on_the_journal(
    server: MlflowServer, plain: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    found = tracking_service._get_store
    with track("block", log_system_metrics=False) as run:
        mlflow.log_metric("theirs", 0.0, step=0)
        run.log_metrics({"ours": 0.0}, step=0)
        server.kill()
        for step in range(1, 50):
            mlflow.log_metric("theirs", step, step=step)
            run.log_metrics({"ours": float(step)}, step=step)
        mlflow.log_param("during", 1)
        mlflow.set_tag("during", "x")
        mlflow.log_text("during", "during.txt")
        mlflow.sklearn.log_model(
            LinearRegression().fit(np.eye(3), [1.0, 2.0, 3.0]),
            name="line",
            pip_requirements=["scikit-learn"],
        )
        assert mlflow.get_run(run.run_id).data.params == {"during": "1"}
        assert mlflow.get_tracking_uri() == server.address
        server.start()
    assert tracking_service._get_store is found
    sync()
    stored = plain.get_run(run.run_id)
    assert values_of(plain, run.run_id, "theirs") == list(range(50))
    assert values_of(plain, run.run_id, "ours") == list(range(50))
    assert (stored.data.params, stored.data.tags["during"]) == ({"during": "1"}, "x")
    assert [each.path for each in plain.list_artifacts(run.run_id)] == ["during.txt"]
    (output,) = stored.outputs.model_outputs
    assert plain.get_logged_model(output.model_id).name == "line"
    # Both at step 0 once more, as values of the model: MLflow's `log_model` does so.
    assert stored.data.tags["points.produced"] == stored.data.tags["points.delivered"] == "102"
    assert stored.info.status == "FINISHED"


@pytest.fixture
def dead_uri() -> Iterator[str]:
    """The durable address of a server that is not there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"durable+http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.slow
def test_programs_that_begin_without_a_server_are_carried_over(
    dead_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(tmp_path / "home"))
    programs = [each for each in PROGRAMS if each.__name__ not in ("asynchronous", "autologged")]
    _run_in(tmp_path / "durable", programs, dead_uri)
    delivered = f"sqlite:///{tmp_path / 'durable' / 'mlflow.db'}"
    monkeypatch.chdir(tmp_path / "durable")
    assert sync(delivered).pending == []
    plain_uri = f"sqlite:///{tmp_path / 'plain' / 'mlflow.db'}"
    _run_in(tmp_path / "plain", programs, plain_uri)
    durable = record_of(MlflowClient(delivered))
    monkeypatch.chdir(tmp_path / "plain")
    plain = record_of(MlflowClient(plain_uri))
    assert durable == plain, differing(plain, durable)


def _run_in(folder: Path, programs: list[Program], uri: str) -> None:
    folder.mkdir()
    lines = ["from pathlib import Path"]
    for program in programs:
        name = program.__name__
        lines += [f"from tests.durable.programs import {name}", f"{name}(Path.cwd())"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "MLFLOW_TRACKING_URI": uri,
    }
    done = subprocess.run(
        [PYTHON, "-c", "\n".join(lines)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_run_of_track_over_an_address_without_a_server(
    dead_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead_uri)
    name = f"tracked {time.monotonic_ns()}"
    with track(name, log_system_metrics=False) as run:
        run.log_metrics({"ours": 1.0}, step=1)
        mlflow.log_metric("theirs", 2.0, step=1)
    assert mlflow.get_tracking_uri() == dead_uri
    outcome = sync(store)
    assert len(outcome.delivered) == 1
    found = named(MlflowClient(store), name)
    assert found.data.metrics == {"ours": 1.0, "theirs": 2.0}


@pytest.mark.parametrize("own", [None, "the user's"])
def test_a_run_that_mlflow_run_has_begun_without_a_server_gets_a_name(
    own: str | None, dead_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead_uri)
    begun = MlflowClient().create_run("0", run_name=own)
    monkeypatch.setenv("MLFLOW_RUN_ID", begun.info.run_id)
    with track("mine", log_system_metrics=False) as run:
        run.log_metrics({"m": 1.0}, step=1)
    assert run.run_id == begun.info.run_id
    assert run.name == (own or "mine")
    MlflowClient().set_terminated(begun.info.run_id)


def test_an_experiment_that_is_chosen_without_a_server(
    dead_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead_uri)
    name = f"chosen {time.monotonic_ns()}"
    program = f"""
import mlflow
mlflow.set_experiment({name!r})
with mlflow.start_run(run_name="parent"):
    mlflow.log_param("a", 1)
    with mlflow.start_run(run_name="child", nested=True) as child:
        mlflow.log_metric("m", 1.0, step=1)
        mlflow.log_text("x", "x.txt")
assert mlflow.get_run(child.info.run_id).info.status == "FINISHED"
raise SystemExit(3)
"""
    done = subprocess.run([PYTHON, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 3, done.stderr
    assert len(sync(store).delivered) == 2
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"parent", "child"}
    assert runs["child"].data.tags["mlflow.parentRunId"] == runs["parent"].info.run_id
    assert [each.path for each in client.list_artifacts(runs["child"].info.run_id)] == ["x.txt"]


ENDS = {
    "raise ValueError('no')": ("FAILED", 1),
    "sys.exit(0)": ("FINISHED", 0),
    "raise KeyboardInterrupt": ("KILLED", -2),
    "os.kill(os.getpid(), 9)": ("KILLED", -9),
    "os.kill(os.getpid(), 15)": ("KILLED", -15),
}


@pytest.fixture(params=["there", "away"])
def address(
    request: pytest.FixtureRequest,
    dead_uri: str,
    store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """MLflow is configured with a durable address, of a store that is there or of none."""
    monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    uri = f"durable+{store}" if request.param == "there" else dead_uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_a_script_that_nobody_ends_has_its_true_status(end: str, address: str, store: str) -> None:
    name = f"ends {time.monotonic_ns()}"
    program = f"""
import os, sys, mlflow
mlflow.start_run(run_name={name!r})
for step in range(20):
    mlflow.log_metric("loss", step, step=step)
{end}
"""
    done = subprocess.run([PYTHON, "-c", program], capture_output=True, text=True, timeout=120)
    status, code = ENDS[end]
    assert done.returncode in (code, 128 - code), done.stderr
    sync(store)
    client = MlflowClient(store)
    found = named(client, name)
    assert found.info.status == status
    assert values_of(client, found.info.run_id, "loss") == list(range(20))


@pytest.mark.slow
def test_mlflow_run_needs_no_server(address: str, store: str, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "MLproject").write_text(
        "name: p\nentry_points:\n  main:\n    parameters:\n      a: {type: int, default: 1}\n"
        f"    command: '{PYTHON} script.py {{a}}'\n"
    )
    (tmp_path / "project" / "script.py").write_text(
        "import mlflow\n"
        "with mlflow.start_run():\n"
        "    mlflow.log_metric('inside', 1.0, step=1)\n"
        "    mlflow.log_text('x', 'x.txt')\n"
    )
    name = f"project {time.monotonic_ns()}"
    command = [str(BIN / "mlflow"), "run", str(tmp_path / "project"), "--env-manager", "local"]
    command += ["--run-name", name, "-P", "a=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    sync(store)
    client = MlflowClient(store)
    found = named(client, name)
    assert found.info.status == "FINISHED"
    assert found.data.metrics == {"inside": 1.0}
    assert found.data.params == {"a": "2"}
    assert [each.path for each in client.list_artifacts(found.info.run_id)] == ["x.txt"]

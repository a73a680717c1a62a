"""A process that is killed around the upload of an artifact: `sync` says what became of it."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_keras_adv.tracking.paths import journals_folder
from mlflow_keras_adv.tracking.sync import Outcome, sync

ROOT = Path(__file__).parent.parent.parent

BEGIN = """
import os, signal, sys
from pathlib import Path
import mlflow_keras_adv as mka
from mlflow_keras_adv.tracking.journal import Journal
from mlflow_keras_adv.tracking.pending import Pending
from mlflow_keras_adv.tracking.records import Artifact, Model
from mlflow.models import Model as Folder

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

run = mka.track(log_system_metrics=False).__enter__()
print(run.run_id, flush=True)
run.flush()
"""


@pytest.fixture
def killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experiment: str
) -> Callable[[str], str]:
    """Runs a program that is killed in the middle; returns the id of its run."""
    monkeypatch.setenv("MLFLOW_KERAS_ADV_HOME", str(tmp_path / "home"))

    def run(body: str) -> str:
        command = [sys.executable, "-c", BEGIN + textwrap.dedent(body)]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == -9, done.stderr
        return done.stdout.split()[0]

    return run


def files(client: MlflowClient, run_id: str, folder: str | None = None) -> set[str]:
    return {file.path for file in client.list_artifacts(run_id, folder)}


def refused(outcome: Outcome) -> list[str]:
    assert outcome.pending == []
    return [line.partition("; refused: ")[2] for line in outcome.delivered if "; refused" in line]


# By a version, or on a disk, that could not write down what was settled.
UNNOTED = "Journal.acknowledge_for_good = lambda self, place, settled: None"
MOMENTS = {
    "after all": "",
    "after all, unnoted": UNNOTED,
    "after the upload": "Pending.acknowledge = lambda self, entry: die()",
    "before the copy is deleted": "Artifact.discard = Model.discard = die",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_what_the_store_has_is_delivered(
    moment: str, killed: Callable[[str], str], client: MlflowClient
) -> None:
    run_id = killed(f"""
        {MOMENTS[moment]}
        run.log_text("a", "a.txt")
        run.log_text("b", "folder/b.txt")
        run.flush()
        run.log_metrics({{"m": 1.0}})
        run.flush()
        die()
    """)
    outcome = sync()
    assert refused(outcome) == []
    assert files(client, run_id) == {"a.txt", "folder"}
    assert files(client, run_id, "folder") == {"folder/b.txt"}
    run = client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.data.tags["points.refused"] == "0"
    assert "points.refused_names" not in run.data.tags
    assert not list(journals_folder().iterdir())


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_model_is_there_once(
    moment: str, killed: Callable[[str], str], client: MlflowClient, experiment: str
) -> None:
    run_id = killed(f"""
        {MOMENTS[moment]}
        folder = Path(os.environ["MLFLOW_KERAS_ADV_HOME"], "model")
        folder.mkdir()
        Folder().save(str(folder / "MLmodel"))
        run.internals.writer.log_model_folder(folder, name="net")
        run.flush()
        die()
    """)
    assert refused(sync()) == []
    (model,) = client.search_logged_models([experiment])
    assert (model.name, model.source_run_id, model.status) == ("net", run_id, "READY")


def test_what_was_deleted_later_is_neither_refused_nor_back(
    killed: Callable[[str], str], client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    """As a checkpoint is that a better one has replaced."""
    run_id = killed("""
        run.log_text("a", "checkpoints/a.txt")
        run.log_text("b", "checkpoints/b.txt")
        run.flush()
        run.delete_artifact("checkpoints/a.txt")
        run.flush()
        die()
    """)
    assert refused(sync()) == []
    assert files(client, run_id, "checkpoints") == {"checkpoints/b.txt"}
    assert "should be gone" not in caplog.text


def test_of_what_is_not_written_down_the_store_is_asked(
    killed: Callable[[str], str], client: MlflowClient
) -> None:
    run_id = killed(f"""
        {UNNOTED}
        run.log_text("a", "a.txt")
        run.log_text("b", "folder/b.txt")
        run.log_artifact(Path(mka.__file__).parent / "registry", "sources")
        run.flush()
        die()
    """)
    assert refused(sync()) == []
    assert files(client, run_id) == {"a.txt", "folder", "sources"}


def test_what_nobody_has_is_refused_by_name(
    killed: Callable[[str], str], client: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = killed("""
        Artifact.apply = lambda self, run: (self.discard(), die())
        run.log_text("a", "a.txt")
        run.flush()
    """)
    assert refused(sync()) == ["a.txt (1)"]
    assert "its copy in the journal is gone, and the store has none" in caplog.text
    assert files(client, run_id) == set()

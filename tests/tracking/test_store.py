import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.tracking import store
from mlflow_keras_adv.tracking.run import track
from mlflow_keras_adv.tracking.store import require_store, store_errors_for_users, without_password
from tests.mlflow_run import cold_path


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted: list[socket.socket] = []

        def accept() -> None:
            try:
                while True:
                    accepted.append(listener.accept()[0])
            except OSError:
                return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        for connection in accepted:
            connection.close()


def test_a_server_that_is_down_is_one_clear_error(closed_port: int) -> None:
    with pytest.raises(UserError, match=rf"127.0.0.1:{closed_port} does not serve: .* Start it"):
        require_store(f"http://127.0.0.1:{closed_port}")


def test_a_server_that_never_answers_is_one_clear_error(
    silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PROBE_SECONDS", 0.2)
    with pytest.raises(UserError, match="does not serve"):
        require_store(f"http://127.0.0.1:{silent_port}")


def test_a_server_that_answers_is_reachable(server: str) -> None:
    require_store(server)
    require_store(f"{server}/a/path/that/is/not/there")


def test_passwords_are_not_shown(closed_port: int) -> None:
    with pytest.raises(UserError) as caught:
        require_store(f"http://ann:secret@127.0.0.1:{closed_port}")
    assert "secret" not in str(caught.value)
    assert without_password("to postgresql://ann:s@h/db, and http://b:c@i") == (
        "to postgresql://***@h/db, and http://***@i"
    )


@pytest.mark.parametrize("missing", ["", "made/by/mlflow/"])
def test_an_sqlite_file_that_can_be_written_is_fine(tmp_path: Path, missing: str) -> None:
    require_store(f"sqlite:///{tmp_path}/{missing}mlflow.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:"])
def test_an_sqlite_store_in_memory_is_fine(uri: str) -> None:
    require_store(uri)


def test_the_session_store_is_fine(store: str, client: mlflow.MlflowClient) -> None:
    client.search_experiments(max_results=1)
    require_store(store)
    require_store(store.replace("sqlite:", "sqlite+pysqlite:") + "?timeout=5")


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/mlflow\.db cannot be written: Not a directory"):
        require_store(f"sqlite:///{tmp_path}/file/mlflow.db")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that root cannot write to")
def test_a_read_only_folder_is_named() -> None:
    with pytest.raises(UserError, match=r"/proc/self/mlflow\.db cannot be written.*\(/proc/self\)"):
        require_store("sqlite:////proc/self/mlflow.db")


@contextmanager
def powerless() -> Iterator[None]:
    """Makes a root process an ordinary user's for a moment: root may write everywhere."""
    root = os.geteuid() == 0
    if root:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        if root:
            os.setresuid(0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="needs setresuid")
def test_a_read_only_database_is_named() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        database = Path(folder, "mlflow.db")
        database.touch(mode=0o444)
        with (
            powerless(),
            pytest.raises(UserError, match=r"mlflow\.db cannot be written: Permission denied"),
        ):
            require_store(f"sqlite:///{database}")


def test_a_file_that_is_not_a_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("what I did on Monday")
    with pytest.raises(UserError, match=r"notes\.db is not an SQLite database"):
        require_store(f"sqlite:///{tmp_path}/notes.db")


def test_a_folder_in_the_place_of_the_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").mkdir()
    with pytest.raises(UserError, match=r"mlflow\.db cannot be written: unable to open database"):
        require_store(f"sqlite:///{tmp_path}/mlflow.db")


_WRITE = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"


def test_a_look_at_the_database_leaves_the_locks_of_this_process(tmp_path: Path) -> None:
    """Another process would write beside a thread of ours, and break the file."""
    database = tmp_path / "mlflow.db"
    other = [sys.executable, "-c", _WRITE, str(database)]
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE filled (value)")
        assert subprocess.run(other).returncode == 0
        connection.execute("BEGIN IMMEDIATE")
        require_store(f"sqlite:///{database}")
        refused = subprocess.run(other, capture_output=True, text=True)
    assert "database is locked" in refused.stderr


@pytest.mark.parametrize("lock", ["IMMEDIATE", "EXCLUSIVE"])
def test_a_database_that_is_locked_now_can_be_written_later(tmp_path: Path, lock: str) -> None:
    database = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE filled (value)")
        connection.execute(f"BEGIN {lock}")
        require_store(f"sqlite:///{database}")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_store_of_files_is_refused(
    tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"closed for new runs.*sqlite:///mlflow\.db"):
        require_store(f"{scheme}{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    require_store(f"{scheme}{tmp_path}/mlruns")


def test_what_mlflow_rejects_is_said_with_its_message() -> None:
    with pytest.raises(UserError, match="sqlite:.*no such run") as caught, store_errors_for_users():
        raise MlflowException("no such run")
    assert isinstance(caught.value.__cause__, MlflowException)


PROJECT = """
name: relative
entry_points:
  main:
    command: "python train.py"
"""
TRAIN = """
import mlflow_keras_adv as mka
try:
    with mka.track({arguments}):
        pass
except mka.UserError as error:
    print("SAID", error)
"""


@pytest.mark.slow
def test_a_relative_store_under_mlflow_run_is_said_and_no_other_is_made(tmp_path: Path) -> None:
    project, here = tmp_path / "project", tmp_path / "here"
    project.mkdir()
    here.mkdir()
    (project / "MLproject").write_text(PROJECT)
    (project / "train.py").write_text(TRAIN.format(arguments=""))
    command = [sys.executable, "-m", "mlflow", "run", str(project), "--env-manager", "local"]
    uri = "sqlite:///relative.db"
    source = str(Path(__file__).parents[2])
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "PATH": cold_path()}
    environment["PYTHONPATH"] = source
    environment.pop("MLFLOW_EXPERIMENT_ID", None)
    done = subprocess.run(
        command, cwd=here, env=environment, capture_output=True, text=True, timeout=120
    )
    said = next(line for line in done.stdout.splitlines() if line.startswith("SAID"))
    assert f"{uri} is relative to the folder of each process" in said
    assert f"this one is in {project}" in said
    assert "sqlite:////home/you/relative.db" in said
    assert (here / "relative.db").exists()
    assert not (project / "relative.db").exists()


@pytest.mark.parametrize("arguments", [{"run_id": "0123"}, {"parent_run_id": "0123"}])
@pytest.mark.parametrize("there", [False, True])
def test_a_run_of_a_relative_store_elsewhere_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, str], there: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"{tmp_path.name}.db"  # MLflow keeps the connection that an address had first
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{name}")
    if there:  # of another program
        MlflowClient().search_experiments()
    with (
        pytest.raises(UserError, match=rf"0123.*sqlite:///{name} is relative"),
        track(**arguments),
    ):
        pass
    assert (tmp_path / name).exists() == there

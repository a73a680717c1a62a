"""PostgreSQL and MariaDB, started by tests: on loopback, as an ordinary user, in a fresh folder."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.mlflow_server import free_port

# Debian puts those of PostgreSQL beside the path, by version, and that of MariaDB among root's.
_FOLDERS = [
    *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True),
    Path("/usr/sbin"),
    Path("/usr/local/sbin"),
]
# The databases refuse to work for root.
_USER: dict[str, Any] = {"user": "nobody", "group": "nogroup"} if os.getuid() == 0 else {}


def program(name: str) -> str | None:
    """The path of a program; None if it is not installed."""
    path = os.pathsep.join([os.environ["PATH"], *map(str, _FOLDERS)])
    return shutil.which(name, path=path)


@contextmanager
def postgresql() -> Iterator[str]:
    """The address of an empty database in a PostgreSQL of its own."""
    with _folder("postgresql") as folder:
        port, data = free_port(), folder / "data"
        _do(
            ["initdb", "-D", str(data), "-U", "mlflow", "-A", "trust", "-E", "UTF8", "--no-sync"],
            folder,
        )
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
        }
        command = ["postgres", "-D", str(data), "-p", str(port)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with _running(command, folder, port, end=signal.SIGINT):
            _wait_for_postgresql(port)
            yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"


@contextmanager
def mariadb() -> Iterator[str]:
    """The address of an empty database in a MariaDB of its own, which compares as it does."""
    with _folder("mariadb") as folder:
        port, data, first = free_port(), folder / "data", folder / "first.sql"
        _do(["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--skip-test-db"], folder)
        first.write_text(
            "CREATE DATABASE mlflow CHARACTER SET utf8mb4;\n"
            "CREATE USER mlflow@'127.0.0.1';\n"
            "GRANT ALL ON mlflow.* TO mlflow@'127.0.0.1';\n"
        )
        command = ["mariadbd", "--no-defaults", f"--datadir={data}", f"--port={port}"]
        command += ["--bind-address=127.0.0.1", "--skip-name-resolve", f"--init-file={first}"]
        command += [f"--socket={folder / 'socket'}", "--innodb-flush-log-at-trx-commit=0"]
        with _running(command, folder, port):
            yield f"mysql+pymysql://mlflow@127.0.0.1:{port}/mlflow"


@contextmanager
def _folder(name: str) -> Iterator[Path]:
    """A folder of the user that the database works for, outside of pytest's, which are private."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    if _USER:
        shutil.chown(folder, _USER["user"], _USER["group"])
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _found(command: Sequence[str]) -> list[str]:
    first = program(command[0])
    assert first is not None
    return [first, *command[1:]]


def _do(command: Sequence[str], folder: Path) -> None:
    environment = os.environ | {"TMPDIR": str(folder)}  # another may be closed to the user
    done = subprocess.run(
        _found(command), cwd="/", env=environment, capture_output=True, text=True, check=False,
        **_USER,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def _running(
    command: Sequence[str], folder: Path, port: int, end: signal.Signals = signal.SIGTERM
) -> Iterator[None]:
    """A database that listens, until it is sent a signal."""
    with (folder / "log").open("w+b") as log:
        environment = os.environ | {"TMPDIR": str(folder)}
        process = subprocess.Popen(
            _found(command), cwd=folder, env=environment, stdout=log, stderr=log, **_USER
        )
        try:
            deadline = time.monotonic() + 60
            while not _listens(port):
                ended = process.poll() is not None or time.monotonic() > deadline
                assert not ended, (folder / "log").read_text()
                time.sleep(0.05)
            yield
        finally:
            process.send_signal(end)
            process.wait(timeout=60)


def _listens(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


def _wait_for_postgresql(port: int) -> None:
    """It listens a moment before it lets anybody in."""
    ready = _found(["pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)])
    deadline = time.monotonic() + 60
    while subprocess.run(ready, check=False).returncode != 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)

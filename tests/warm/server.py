"""Forks processes that do what `python` would do with some arguments; see `tests.warm`.

`python tests/warm/server.py DESCRIPTOR`: the descriptor is that of a socket that listens. Ends at
the end of its standard input, and ends what it has forked.
"""

import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

IMPORTED = ("keras", "mlflow", "mlflow.cli", "pandas", "sklearn")


@dataclass(frozen=True)
class Asked:
    """What a process is to do.

    Attributes:
        arguments: Those of `python`.
        folder: The working folder.
        environment: The environment.
    """

    arguments: list[str]
    folder: str
    environment: dict[str, str]


def serve(listening: socket.socket) -> Asked:
    """Answers until standard input ends; returns in each process that it has forked."""
    sons: dict[int, socket.socket] = {}
    woken, wake = os.pipe()
    for descriptor in (woken, wake):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with selectors.DefaultSelector() as ready:
        for source in (listening, sys.stdin, woken):
            ready.register(source, selectors.EVENT_READ)
        while True:
            for source, _ in ready.select():
                if source.fileobj is sys.stdin:
                    for pid in sons:
                        os.kill(pid, signal.SIGKILL)
                    os._exit(0)
                elif source.fileobj is woken:
                    os.read(woken, 4096)
                elif source.fileobj is listening:
                    connection, _ = listening.accept()
                    asked, files = receive(connection)
                    pid = os.fork()
                    if pid == 0:
                        become_the_child(files)
                        for each in (listening, connection, *sons.values()):
                            each.close()
                        for descriptor in (woken, wake):
                            os.close(descriptor)
                        return asked
                    for descriptor in files:
                        os.close(descriptor)
                    connection.sendall(json.dumps(pid).encode() + b"\n")
                    sons[pid] = connection
                    ready.register(connection, selectors.EVENT_READ, pid)
                elif source.data in sons:  # who asked is gone
                    os.kill(source.data, signal.SIGKILL)
                    ready.unregister(source.fileobj)
            for pid in list(sons):
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    connection = sons.pop(pid)
                    if connection in ready.get_map():
                        ready.unregister(connection)
                    with connection:
                        answer(connection, os.waitstatus_to_exitcode(status))


def become_the_child(files: list[int]) -> None:
    """Gives a process that was forked its standard files, and signals as Python has them."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for index, descriptor in enumerate(files):
        os.dup2(descriptor, index)
        os.close(descriptor)


def receive(connection: socket.socket) -> tuple[Asked, list[int]]:
    """What is asked, and the three standard files."""
    size, files, _, _ = socket.recv_fds(connection, 8, 3)
    text = b""
    while len(text) < int.from_bytes(size):
        text += connection.recv(1 << 16)
    return Asked(**json.loads(text)), files


def answer(connection: socket.socket, code: int) -> None:
    """Says an exit code, if anybody is there to hear it."""
    with suppress(OSError):
        connection.sendall(json.dumps(code).encode() + b"\n")


def prepare(asked: Asked) -> None:
    """Makes the folder, the environment and the path those of a command."""
    os.chdir(asked.folder)
    os.environ.clear()
    os.environ.update(asked.environment)
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [*paths, *sys.path[1:]]


def run(arguments: list[str]) -> None:
    """What `python` does with its arguments."""
    main = ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main
    if arguments[0] == "-m":
        sys.argv = ["-m", *arguments[2:]]
        sys.path.insert(0, str(Path.cwd()))
        runpy._run_module_as_main(arguments[1])  # type: ignore[attr-defined]
        return
    if arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        sys.path.insert(0, "")
        program, name = arguments[1], "<string>"
    else:
        sys.argv = arguments
        name = arguments[0]
        program = Path(name).read_text()
        sys.path.insert(0, str(Path(name).absolute().parent))
        main.__dict__["__file__"] = name
    exec(compile(program, name, "exec"), main.__dict__)


if __name__ == "__main__":
    for each in IMPORTED:
        importlib.import_module(each)
    gc.freeze()  # what a child inherits need not be collected when that ends: seconds for each
    asked = serve(socket.socket(fileno=int(sys.argv[1])))
    prepare(asked)
    run(asked.arguments)

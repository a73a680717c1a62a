"""Several processes on loopback addresses that stand for several machines, and what they print."""

import json
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.warm import PYTHON

PROGRAM = Path(__file__).with_name("program.py")
# One core is enough for what they compute, and the machine has few.
_MODEST = {"TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Ended:
    """A process that has ended.

    Attributes:
        code: Its exit code.
        output: All that it has printed.
    """

    code: int
    output: str

    @property
    def found(self) -> Any:
        """What its last line says, in JSON."""
        assert self.code == 0, self.output[-3000:]
        lines = [line for line in self.output.splitlines() if line.startswith("{")]
        return json.loads(lines[-1])


class Started:
    """Processes that are under way; the outputs are in files of a folder.

    Args:
        folder: The folder.
        commands: Arguments and environment of each.
    """

    def __init__(self, folder: Path, commands: Sequence[tuple[list[str], dict[str, str]]]) -> None:
        self.outputs = [folder / f"{len(list(folder.iterdir()))}-{n}" for n in range(len(commands))]
        with ExitStack() as files:
            self.processes = [
                subprocess.Popen(
                    command,
                    env={**os.environ, **_MODEST, **environment},
                    stdout=files.enter_context(output.open("w")),
                    stderr=subprocess.STDOUT,
                )
                for (command, environment), output in zip(commands, self.outputs, strict=True)
            ]

    def ended(self, seconds: float = 120) -> list[Ended]:
        """Waits until all have ended."""
        try:
            codes = [process.wait(seconds) for process in self.processes]
        except subprocess.TimeoutExpired:
            said = "\n".join(output.read_text()[-2000:] for output in self.outputs)
            raise AssertionError(f"still at work:\n{said}") from None
        finally:
            for process in self.processes:
                process.kill() if process.poll() is None else None
        texts = [output.read_text() for output in self.outputs]
        return [Ended(code, text) for code, text in zip(codes, texts, strict=True)]


def addresses(count: int) -> list[str]:
    """Free addresses on this machine."""
    with ExitStack() as taken:
        sockets = [taken.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def workers(
    folder: Path, *settings: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> Started:
    """Starts the program of this folder once for each of the settings, as workers of one cluster.

    Args:
        folder: Where their outputs go.
        *settings: What each worker does; see `program.py`.
        environment: Of all of them.
    """
    cluster = {"worker": addresses(len(settings))}
    commands = []
    for index, each in enumerate(settings):
        config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        told = {"TF_CONFIG": config, **(environment or {})}
        commands.append(([PYTHON, str(PROGRAM), json.dumps(each)], told))
    return Started(folder, commands)


def with_servers(folder: Path, settings: Mapping[str, Any]) -> Ended:
    """Runs `servers.py` with one server of parameters and two workers; what its coordinator did."""
    roles = ["chief", "ps", "worker", "worker"]
    free = iter(addresses(len(roles)))
    cluster = {
        role: [next(free) for _ in range(roles.count(role))] for role in dict.fromkeys(roles)
    }
    commands = []
    for number, role in enumerate(roles):
        task = {"type": role, "index": number - roles.index(role)}
        told = {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}
        program = str(PROGRAM.with_name("servers.py"))
        commands.append(([PYTHON, program, json.dumps(settings)], told))
    started = Started(folder, commands)
    coordinator, *others = started.processes
    try:
        coordinator.wait(120)
    finally:
        for each in others:
            each.terminate()
    return started.ended()[0]


def alone(folder: Path, settings: Mapping[str, Any]) -> Ended:
    """Runs the program of this folder in one process."""
    return Started(folder, [([PYTHON, str(PROGRAM), json.dumps(settings)], {})]).ended()[0]

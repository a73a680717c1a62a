"""Features that an operating system may lack: the locks, forks and priorities of POSIX.

Without them, on Windows say, nothing forks, and values are sent by the training's own process.
"""

import os
from collections.abc import Callable
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def lock(file: IO[bytes]) -> None:
    """Locks a file for this process, until it is closed or the process ends, however it ends.

    Not by a library: those lock for the open file (flock), which a forked child inherits, and the
    lock of a trainer that was killed would live on in its data loaders.

    Raises:
        OSError: If another process holds it.
    """
    if fcntl is not None:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import msvcrt

    file.seek(0)
    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]


def after_fork_in_child(forget: Callable[[], object]) -> None:
    """Has `forget` called in each process that is forked from this one."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forget)


def hands_on_pipes() -> bool:
    """Whether a process can be started with a pipe of this one."""
    return os.name == "posix"


def be_nice(niceness: int) -> None:
    """Lets other processes go first."""
    if hasattr(os, "nice"):
        os.nice(niceness)

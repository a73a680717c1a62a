"""Who holds a lock on an SQLite file: what a test says when it fails because "database is locked".

It looks at no more than the file's number: a process that opens an SQLite file and closes it again
drops its own locks on it.
"""

import gc
import sqlite3
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

_LOCKS = Path("/proc/locks")


def lock_holders(database: Path) -> str:
    """The processes that hold a lock on a file, and what this one is doing.

    Args:
        database: The file.

    Returns:
        A line for each lock of any process; then, of this process, the columns of the queries that
        were not read to their end, and where each thread stands.
    """
    return "\n".join([*_locks(database), *_queries(), *_threads()])


def _locks(database: Path) -> Iterator[str]:
    if not _LOCKS.exists():  # it is Linux that tells
        return
    inode = str(database.stat().st_ino)
    for line in _LOCKS.read_text().splitlines():
        fields = line.replace("-> ", "").split()
        _, _, _, kind, process, file, start, end = fields
        if file.rpartition(":")[2] == inode:
            try:
                command = Path("/proc", process, "cmdline").read_text().replace("\0", " ")
            except OSError as error:  # it has ended
                command = str(error)
            yield f"{kind} lock of process {process} on bytes {start} to {end}: {command}"


def _queries() -> Iterator[str]:
    for thing in gc.get_objects():
        # `isinstance` would ask a lazy module for its class, which imports it.
        if issubclass(type(thing), sqlite3.Cursor) and thing.description is not None:
            holders = [type(each).__qualname__ for each in gc.get_referrers(thing)]
            yield f"cursor over {[name for name, *_ in thing.description]}, held by {holders}"


def _threads() -> Iterator[str]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for number, frame in sys._current_frames().items():
        yield f"thread {names.get(number, number)}:\n{''.join(traceback.format_stack(frame))}"

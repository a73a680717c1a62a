"""MLflow's stacks of active runs, one for each thread; here, one for each asyncio task in it.

Only `mlflow.end_run()` takes a run off a stack, and
it sets the run's status in the same call; what stays on it is ended once more when the process
exits. And MLflow asks for the thread alone, so that of two tasks that take turns in one thread each
would log to the run of the other.
"""

import asyncio
from collections.abc import Iterator, MutableSequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from mlflow.entities import Run
from mlflow.tracking.fluent import ActiveRun

from mlflow_keras_adv.compat.mlflow import (
    active_runs,
    active_runs_of_all_threads,
    note_last_active_run,
    replace_active_runs,
)


@dataclass(eq=False)
class _Entry:
    """A run that was made active, and the task that did it; None outside of asyncio."""

    run: ActiveRun
    task: "asyncio.Task[Any] | None"


class Stack(MutableSequence[ActiveRun]):
    """The active runs of a thread, as far as the task that asks has to do with them.

    Not seen is what another task that goes on made active, unless this one was begun inside. Where
    no task runs, all are seen.

    Args:
        found: Those that are active already.
    """

    def __init__(self, found: list[ActiveRun]) -> None:
        self._entries = [_Entry(run, None) for run in found]

    def everything(self) -> list[ActiveRun]:
        """The runs of all tasks."""
        return [entry.run for entry in self._entries]

    def drop(self, run_id: str) -> bool:
        """Takes a run off, the innermost of this id, whoever made it active."""
        for position in reversed(range(len(self._entries))):
            if self._entries[position].run.info.run_id == run_id:
                del self._entries[position]
                return True
        return False

    def insert(self, index: int, value: ActiveRun) -> None:
        """Makes a run active, in the task that runs."""
        entry, seen = _Entry(value, _task()), self._seen()
        follows = seen[index] if 0 <= index < len(seen) else None
        position = len(self._entries) if follows is None else self._entries.index(follows)
        self._entries.insert(position, entry)
        if entry.task is not None:
            inside = (each for each in _begun_inside.get() if each in self._entries)
            _begun_inside.set((*inside, entry))

    def __getitem__(self, index: Any) -> Any:
        seen = self._seen()[index]
        return [entry.run for entry in seen] if isinstance(seen, list) else seen.run

    def __setitem__(self, index: Any, value: Any) -> None:
        self._seen()[index].run = value

    def __delitem__(self, index: Any) -> None:
        gone = self._seen()[index]
        for entry in gone if isinstance(gone, list) else [gone]:
            self._entries.remove(entry)

    def __len__(self) -> int:
        return len(self._seen())

    def _seen(self) -> list[_Entry]:
        now = _task()
        if now is None:
            return list(self._entries)
        inside = _begun_inside.get()
        return [
            entry
            for entry in self._entries
            if entry.task is None or entry.task is now or entry.task.done() or entry in inside
        ]


# A task that is begun inherits it, and so sees what was active where it was begun.
_begun_inside: ContextVar[tuple[_Entry, ...]] = ContextVar("begun_inside", default=())


def stack_of_this_thread() -> Stack:
    """MLflow's own, made one that tells tasks apart."""
    found = active_runs()
    if not isinstance(found, Stack):
        found = Stack(list(found))
        replace_active_runs(found)
    return found


def activate(run: Run) -> None:
    """Makes a run of the store that MLflow uses now the active one of this thread.

    What `mlflow.start_run` does after it has opened a run.
    """
    stack_of_this_thread().append(ActiveRun(run))


def deactivate(run_id: str, stack: Stack) -> None:
    """Makes the run no longer MLflow's active run, and leaves its status alone.

    Args:
        run_id: The run.
        stack: That of the thread which made it active.
    """
    if stack.drop(run_id):
        note_last_active_run(run_id)  # for `mlflow.last_active_run()`


def is_active(run_id: str | None) -> bool:
    """Whether the run is active in some thread, by `mlflow.start_run()` or by `track`."""
    return any(run.info.run_id == run_id for stack in _stacks() for run in _all_of(stack))


def all_active() -> list[str]:
    """The ids of all runs that are active in some thread, the innermost of each first."""
    return [run.info.run_id for stack in _stacks() for run in reversed(_all_of(stack))]


def forget(run_id: str) -> None:
    """Takes a run off every stack: somebody has ended it."""
    for stack in _stacks():
        if isinstance(stack, Stack):
            stack.drop(run_id)
        else:
            stack[:] = [run for run in stack if run.info.run_id != run_id]


def _stacks() -> Iterator[Any]:
    yield from active_runs_of_all_threads()


def _all_of(stack: Any) -> list[ActiveRun]:
    return stack.everything() if isinstance(stack, Stack) else list(stack)


def _task() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return None

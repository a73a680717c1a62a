"""How a run ends: with the true status, and in bounded time.

`mlflow.end_run()` sets the status by a call that is retried for minutes when the store is away, and
then waits for the system metrics. Here both happen on other threads, within a grace.
"""

import logging
import traceback
from collections import deque
from threading import Thread

from mlflow.entities import Run
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import fluent

from mlflow_keras_adv.random_state import keeps_random_state
from mlflow_keras_adv.tracking.sigterm import Terminated
from mlflow_keras_adv.tracking.writer import RunWriter

_logger = logging.getLogger(__name__)

# Of the tag `error`; the artifact holds the whole.
MAX_ERROR_LENGTH = 500


@keeps_random_state()
def end(writer: RunWriter, error: BaseException | None, seconds: float | None) -> bool:
    """Delivers what is left of a run, and then its status.

    Args:
        writer: Of the run.
        error: What its block raised.
        seconds: How long to wait for a store that takes nothing. None does not wait:
            `settle_ended` does.

    Returns:
        Whether everything is in the store, and is known to be.
    """
    finishing = _finish_system_metrics(writer.run_id)
    status = status_of(error)
    try:
        if error is not None and status == "FAILED":
            writer.set_tags({"error": f"{type(error).__name__}: {error}"[:MAX_ERROR_LENGTH]})
            writer.log_text("".join(traceback.format_exception(error)), "traceback.txt")
    finally:
        writer.hand_in_end(status)
        if seconds is None:
            _unsettled.append(writer)
        delivered = seconds is not None and _settle(writer, seconds)
        if finishing is not None:
            finishing.join(seconds if delivered else 0)
    return delivered


def settle_ended(seconds: float, *, but: int = 0) -> None:
    """Waits until the runs are in the store whose end was not waited for; the oldest first.

    Args:
        seconds: How long to wait for a store that takes nothing.
        but: How many of them may still be on their way.
    """
    while len(_unsettled) > but:
        _settle(_unsettled.popleft(), seconds)


_unsettled: deque[RunWriter] = deque()


def _settle(writer: RunWriter, seconds: float) -> bool:
    delivered = writer.close(seconds)
    if delivered:
        receipt = writer.receipt
        say = _logger.warning if receipt.refused_names else _logger.info
        say("Run %s: %s", writer.run_id, receipt)
    return delivered


def status_of(error: BaseException | None) -> str:
    """The status of a run whose block raised `error`: FINISHED, FAILED or KILLED."""
    match error:
        case None:
            return "FINISHED"
        case KeyboardInterrupt() | Terminated():
            return "KILLED"
        case SystemExit(code=None | 0):
            return "FINISHED"
        case _:
            return "FAILED"


# Private, and used here alone: MLflow's stacks of active runs, one for each thread. Only
# `mlflow.end_run()` takes a run off them, and it sets the run's status in the same call; what stays
# on them is ended once more when the process exits.


def is_active(run_id: str | None) -> bool:
    """Whether the run is active in some thread, by `mlflow.start_run()` or by `track`."""
    stacks = fluent._active_run_stack.get_all_thread_values().values()
    return any(run.info.run_id == run_id for stack in stacks for run in stack)


def activate(run: Run, *, log_system_metrics: bool) -> None:
    """Makes a run of the store that MLflow uses now the active one of this thread.

    What `mlflow.start_run` does after it has opened a run.
    """
    run_id = run.info.run_id
    if log_system_metrics:
        monitor = SystemMetricsMonitor(run_id)
        fluent.run_id_to_system_metrics_monitor[run_id] = monitor
        monitor.start()
    fluent._active_run_stack.get().append(fluent.ActiveRun(run))


def deactivate(run_id: str) -> None:
    """Makes the run no longer MLflow's active run of this thread, and leaves its status alone."""
    stack = fluent._active_run_stack.get()
    for position in reversed(range(len(stack))):
        if stack[position].info.run_id == run_id:
            del stack[position]
            fluent._last_active_run_id.set(run_id)  # for `mlflow.last_active_run()`
            return


def _finish_system_metrics(run_id: str) -> Thread | None:
    """Stops MLflow's monitor of the run, if it has one, on a thread that need not be waited for."""
    monitor = fluent.run_id_to_system_metrics_monitor.pop(run_id, None)
    if monitor is None:
        return None
    thread = Thread(target=monitor.finish, name=f"system-metrics-{run_id}", daemon=True)
    thread.start()
    return thread

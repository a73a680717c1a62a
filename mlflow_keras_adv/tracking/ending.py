"""How a run ends: FINISHED, FAILED or KILLED as it was, and in bounded time.

`mlflow.end_run()` sets the status by a call that is retried for minutes when the store is away, and
then waits for the system metrics. Here both happen on other threads, within a grace.
"""

import asyncio
import logging
import traceback
from collections import deque

from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.compat.system import after_fork_in_child
from mlflow_keras_adv.tracking.paths import offline_uri
from mlflow_keras_adv.tracking.sigterm import Terminated
from mlflow_keras_adv.tracking.system_metrics import stop_watching
from mlflow_keras_adv.tracking.texts import storable
from mlflow_keras_adv.tracking.writer import RunWriter

_logger = logging.getLogger(__name__)

# The longest tag `error`; the artifact holds the whole.
MAX_ERROR_LENGTH = 500


@keeps_random_state()
def end(
    writer: RunWriter,
    error: BaseException | None,
    seconds: float | None,
    *,
    status: str | None = None,
) -> bool:
    """Delivers what is left of a run, and then its status.

    Args:
        writer: Writer of the run.
        error: What its block raised.
        seconds: How long to wait for a store that takes nothing. None does not wait:
            `settle_ended` does.
        status: The status; default: that which `error` means.

    Returns:
        Whether everything is in the store, and is known to be.
    """
    finishing = None
    status = status or status_of(error)
    try:
        finishing = stop_watching(writer.run_id)
        if error is not None and status == "FAILED":
            _record_error(writer, error)
    finally:
        writer.log_status(status)
        if seconds is None:
            _unsettled.append(writer)
        delivered = seconds is not None and _settle(writer, seconds)
        if finishing is not None:
            finishing.join(seconds if delivered else 0)
    return delivered


def _record_error(writer: RunWriter, error: BaseException) -> None:
    try:
        said = str(error)
    except Exception as failure:  # it is raised on, whatever it is
        said = f"<its text cannot be had: {failure!r}>"
    writer.set_tags({"error": storable(f"{type(error).__name__}: {said}")[:MAX_ERROR_LENGTH]})
    trace = "".join(traceback.format_exception(error))
    writer.log_text(storable(trace), "traceback.txt")


def settle_ended(seconds: float, *, but: int = 0) -> None:
    """Waits until the runs are in the store whose end was not waited for; the oldest first.

    Args:
        seconds: How long to wait for a store that takes nothing.
        but: How many of them may still be on their way.
    """
    while len(_unsettled) > but:
        _settle(_unsettled.popleft(), seconds)


_unsettled: deque[RunWriter] = deque()
after_fork_in_child(_unsettled.clear)


def _settle(writer: RunWriter, seconds: float) -> bool:
    delivered = writer.close(seconds)
    if delivered:
        receipt = writer.receipt
        say = _logger.warning if receipt.refused_names else _logger.info
        here = writer.tracking_uri == offline_uri()
        place = " in the store on this machine, for `mlflow-keras-adv sync`" if here else ""
        say("Run %s%s: %s", writer.run_id, place, receipt)
    return delivered


def status_of(error: BaseException | None) -> str:
    """The status of a run whose block raised `error`: FINISHED, FAILED or KILLED."""
    match error:
        case None:
            return "FINISHED"
        case KeyboardInterrupt() | Terminated() | asyncio.CancelledError():
            return "KILLED"
        case SystemExit(code=None | 0) | GeneratorExit():  # nobody asks a generator for more
            return "FINISHED"
        case _:
            return "FAILED"

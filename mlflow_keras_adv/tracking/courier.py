"""Courier: a process of its own that sends metric values to the store.

To turn a value into a request or a row takes MLflow about 0.1 ms of Python. On a thread of the
trainer it takes them from the training, whose own Python waits for the interpreter meanwhile: a
small model with five values a step becomes half as fast. So a trainer that sends many gets a
courier; it ends with the trainer, or when nobody needs it any more.
"""

import atexit
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe
from threading import Lock

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    TEMPORARILY_UNAVAILABLE,
    ErrorCode,
)

from mlflow_keras_adv.tracking.store import may_succeed_later

_logger = logging.getLogger(__name__)

# A run that has sent so many values will send more. A courier takes seconds of CPU time to start.
POINTS_BEFORE = 5000

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from mlflow_keras_adv.tracking.courier import serve; serve(int(sys.argv[1]))"
)


class Courier:
    """A process that writes to one store. Its calls return when the store has answered.

    Args:
        tracking_uri: The store.

    Raises:
        OSError: If the process cannot be started.
    """

    def __init__(self, tracking_uri: str) -> None:
        self._calling = Lock()
        self._pipe, theirs = Pipe()
        with theirs:
            command = [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), json.dumps(sys.path)]
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the trainer
            )
        self._pipe.send(tracking_uri)  # not as an argument, which everybody could read

    def log_metrics(self, run_id: str, metrics: Sequence[Metric]) -> None:
        """Logs metric values in one call.

        Raises:
            MlflowException: What the store, or the connection to it, has raised.
            OSError: If the courier is gone.
        """
        with self._calling:
            try:
                self._pipe.send((run_id, [_fields(metric) for metric in metrics]))
                answer = self._pipe.recv()
            except EOFError as error:
                raise BrokenPipeError("the courier has ended") from error
        if answer is not None:
            message, error_code = answer
            raise MlflowException(message, error_code=error_code)

    def close(self) -> None:
        """Ends the process, whatever it is doing: what it was sending is still in the journal."""
        self._pipe.close()
        self._process.kill()
        self._process.wait()


def courier_to(tracking_uri: str) -> Courier | None:
    """The courier of this process to a store; None if there can be none."""
    with _starting:
        if tracking_uri not in _couriers:
            try:
                _couriers[tracking_uri] = Courier(tracking_uri)
            except OSError as error:
                _logger.debug("no courier: %r", error)
                _couriers[tracking_uri] = None
        return _couriers[tracking_uri]


def dismiss(courier: Courier) -> None:
    """Ends a courier that has failed; its values are sent without one from now on."""
    with _starting:
        for uri, known in _couriers.items():
            if known is courier:
                _couriers[uri] = None
                courier.close()


def serve(file_descriptor: int) -> None:
    """The work of the process: takes calls until the trainer is gone."""
    with Connection(file_descriptor) as pipe:
        try:
            client = MlflowClient(pipe.recv())
            while True:
                run_id, fields = pipe.recv()
                pipe.send(_answer(client, run_id, [Metric(*each) for each in fields]))
        except (EOFError, OSError):
            return


def _answer(client: MlflowClient, run_id: str, metrics: Sequence[Metric]) -> tuple[str, int] | None:
    try:
        client.log_batch(run_id, metrics=metrics, synchronous=True)
    except MlflowException as error:
        return error.message, ErrorCode.Value(error.error_code)
    except Exception as error:
        passing = may_succeed_later(error)
        return str(error), TEMPORARILY_UNAVAILABLE if passing else INVALID_PARAMETER_VALUE
    return None


def _fields(metric: Metric) -> tuple[object, ...]:
    moment = (metric.key, metric.value, metric.timestamp, metric.step)
    return (*moment, metric.model_id, metric.dataset_name, metric.dataset_digest)


_couriers: dict[str, Courier | None] = {}
_starting = Lock()


@atexit.register
def _end_all() -> None:
    with _starting:
        for courier in _couriers.values():
            if courier is not None:
                courier.close()
        _couriers.clear()

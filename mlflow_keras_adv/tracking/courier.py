"""Courier: a process of its own that sends values to the store.

To turn a value into a request or a row takes MLflow about 0.1 ms of Python. On a thread of the
trainer it takes them from the training, whose own Python waits for the interpreter meanwhile: a
small model with five values a step becomes half as fast. So a trainer that sends many gets a
courier, which is handed them as they stand in the journal; it ends with the trainer, or when nobody
needs it any more.
"""

import json
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from threading import Lock

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    TEMPORARILY_UNAVAILABLE,
    ErrorCode,
)
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

from mlflow_keras_adv.compat.system import after_fork_in_child, be_nice, hands_on_pipes
from mlflow_keras_adv.tracking.process_end import Stage, at
from mlflow_keras_adv.tracking.records import Points, Series, decode, encode
from mlflow_keras_adv.tracking.store import probe
from mlflow_keras_adv.tracking.verdict import may_succeed_later

_logger = logging.getLogger(__name__)

# A process that has sent so many values to a store will send more. A courier takes seconds of CPU
# time to start.
POINTS_BEFORE = 5000

# The training goes first where there are fewer processors than work.
NICENESS = 19

# What a courier answers after each batch but the last thing it does.
_TAKEN = "taken"

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

    def log(
        self,
        run_id: str,
        values: Sequence[Points | Series],
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
        *,
        progress: Callable[[], object] = lambda: None,
    ) -> None:
        """Logs metric values, then params and tags, after a look whether the store answers.

        Args:
            run_id: The run.
            values: However many: they are sent in batches.
            params: At most 100.
            tags: At most 100.
            progress: Called after each batch that the store has taken.

        Raises:
            MlflowException: What the store, or the connection to it, has raised.
            OSError: If the courier is gone.
        """
        texts = ([(each.key, each.value) for each in entities] for entities in (params, tags))
        with self._calling:
            try:
                self._pipe.send((run_id, [encode(each, Path()) for each in values], *texts))
                while (answer := self._pipe.recv()) == _TAKEN:
                    progress()
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


def count(tracking_uri: str, points: int) -> None:
    """Notes that a store is about to be sent metric values."""
    _sent[tracking_uri] += points


def courier_to(tracking_uri: str) -> Courier | None:
    """The courier of this process to a store that has had many values; None without."""
    if _sent[tracking_uri] <= POINTS_BEFORE or not hands_on_pipes():
        return None
    with _starting:
        if tracking_uri not in _couriers:
            try:
                _couriers[tracking_uri] = Courier(tracking_uri)
            except (OSError, RuntimeError) as error:  # Python ends, and starts none any more
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
    be_nice(NICENESS)
    with Connection(file_descriptor) as pipe:
        try:
            client = MlflowClient(pipe.recv())
            while True:
                pipe.send(_answer(client, pipe, *pipe.recv()))
        except (EOFError, OSError):
            return


def _answer(
    client: MlflowClient,
    pipe: Connection,
    run_id: str,
    records: Sequence[bytes],
    params: Sequence[tuple[str, str]],
    tags: Sequence[tuple[str, str]],
) -> tuple[str, int] | None:
    try:
        probe(client.tracking_uri)
        for batch in batches(_values(records)):
            client.log_batch(run_id, metrics=batch, synchronous=True)
            pipe.send(_TAKEN)
        if params or tags:
            texts = [Param(*each) for each in params], [RunTag(*each) for each in tags]
            client.log_batch(run_id, (), *texts, synchronous=True)
    except MlflowException as error:
        return error.message, ErrorCode.Value(error.error_code)
    except OSError as error:
        return str(error), TEMPORARILY_UNAVAILABLE
    except Exception as error:
        passing = may_succeed_later(error)
        return str(error), TEMPORARILY_UNAVAILABLE if passing else INVALID_PARAMETER_VALUE
    return None


def batches(values: Iterator[Metric]) -> Iterator[list[Metric]]:
    """Metric values in lists that MLflow takes in one call."""
    while batch := list(islice(values, MAX_METRICS_PER_BATCH)):
        yield batch


def _values(records: Sequence[bytes]) -> Iterator[Metric]:
    items = (decode(record, Path()) for record in records)
    return chain.from_iterable(item for item in items if isinstance(item, Points | Series))


_couriers: dict[str, Courier | None] = {}
_sent: Counter[str] = Counter()
_starting = Lock()


# Of the parent process, in a forked child: not ours to end, nor to write to.
_of_the_parent: list[Courier | None] = []


def _end_all() -> None:
    with _starting:
        for courier in _couriers.values():
            if courier is not None:
                courier.close()
        _couriers.clear()
        _sent.clear()


@at(Stage.COURIERS)
def _at_the_end(_: BaseException | None) -> None:
    _end_all()


def _in_a_child() -> None:
    global _starting
    _starting = Lock()
    _of_the_parent.extend(_couriers.values())
    _couriers.clear()


after_fork_in_child(_in_a_child)

"""A process of its own that sends metric values to the store, from the journal where they stand.

MLflow spends about 0.1 ms of Python on each value. On a thread this competes with the training for
the interpreter: a small model with five values a step becomes half as fast. So a process that sends
many gets a sender process, which is told where they begin and end in the journal, and delivers them
as the thread would. It ends with the trainer, or when nobody needs it any more.
"""

import json
import logging
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import chain
from multiprocessing.connection import Connection, Pipe
from threading import Lock
from typing import Any

from mlflow import MlflowClient
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

from mlflow_keras_adv.compat.mlflow import asking_once
from mlflow_keras_adv.compat.system import after_fork_in_child, be_nice, hands_on_pipes
from mlflow_keras_adv.tracking.delivery import Delivery, batches
from mlflow_keras_adv.tracking.journal import Cursor
from mlflow_keras_adv.tracking.process_end import Stage, at
from mlflow_keras_adv.tracking.records import Values, decode
from mlflow_keras_adv.tracking.retry import Retry
from mlflow_keras_adv.tracking.store import PROBE_SECONDS
from mlflow_keras_adv.tracking.target import Target
from mlflow_keras_adv.tracking.verdict import (
    RejectedError,
    StoreError,
    Verdict,
    may_succeed_later,
    verdict_of,
)

_logger = logging.getLogger(__name__)

# A process that has sent so many values to a store will send more. A sender process takes seconds
# of CPU time to start.
POINTS_BEFORE = 5000

# The training goes first where there are fewer processors than work. Where others have work for all
# of them, the process may get next to none: no end of a run may depend on it.
NICENESS = 19

# While somebody waits for the values, a process that has not said a word for so long is given up.
SILENT_SECONDS = 5.0
# So often it is looked whether somebody waits.
LOOK_SECONDS = 0.1

# What it says once, when it is at work; and after each batch. Its last answer to a call is None, or
# an error.
_READY, _TAKEN = "ready", "taken"

_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from mlflow_keras_adv.tracking.sender_process import serve; serve(int(sys.argv[1]))"
)


class SenderProcess:
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
                stdout=subprocess.DEVNULL,  # the trainer's is not for what packages print again
                start_new_session=True,  # Ctrl-C is for the trainer
            )
        self._pipe.send(tracking_uri)  # not as an argument, which everybody could read
        self._is_ready = False

    def send(
        self,
        run_id: str,
        cursor: Cursor,
        *,
        progress: Callable[[], object] = lambda: None,
        urgent: Callable[[], bool] = lambda: False,
    ) -> None:
        """Delivers the metric values of a part of a journal.

        Args:
            run_id: The run.
            cursor: The part, in which all records are metric values.
            progress: Called after each batch that the store has taken.
            urgent: Whether somebody waits for them meanwhile.

        Raises:
            RejectedError: Some of them cannot be delivered so; who calls has to find out which.
                Or they are urgent, and the process is not at work yet, or at other work.
            StoreError: They may be later.
            OSError: The process is gone, or says nothing while they are urgent.
        """
        while not self._calling.acquire(timeout=LOOK_SECONDS):
            if urgent():
                raise RejectedError("the sender process is at other work")
        try:
            while not self._is_ready:
                if self._pipe.poll(LOOK_SECONDS):
                    self._is_ready = self._pipe.recv() == _READY
                elif urgent():
                    raise RejectedError("the sender process is not at work yet")
            self._pipe.send((run_id, cursor))
            while (answer := self._heard(urgent)) == _TAKEN:
                progress()
        except EOFError as error:
            raise BrokenPipeError("the sender process has ended") from error
        finally:
            self._calling.release()
        if answer is None:
            return
        raised = StoreError(*answer)
        if may_succeed_later(raised):
            raise raised
        raise RejectedError(str(raised))

    def _heard(self, urgent: Callable[[], bool]) -> Any:
        """The next word of the process."""
        since = time.monotonic()
        while not self._pipe.poll(LOOK_SECONDS):
            if time.monotonic() - since > SILENT_SECONDS and urgent():
                raise BrokenPipeError("the sender process says nothing")
        return self._pipe.recv()

    def close(self) -> None:
        """Ends the process, whatever it is doing: what it was sending is still in the journal."""
        self._pipe.close()
        self._process.kill()
        self._process.wait()


def note_sent(tracking_uri: str, points: int) -> None:
    """Notes that a store is about to be sent metric values."""
    _sent[tracking_uri] += points


def sender_to(tracking_uri: str) -> SenderProcess | None:
    """The sender process of this one to a store that has had many values; None without."""
    if _sent[tracking_uri] <= POINTS_BEFORE or not hands_on_pipes():
        return None
    with _starting:
        if tracking_uri not in _senders:
            try:
                _senders[tracking_uri] = SenderProcess(tracking_uri)
            except (OSError, RuntimeError) as error:  # Python ends, and starts none any more
                _logger.debug("no sender process: %r", error)
                _senders[tracking_uri] = None
        return _senders[tracking_uri]


def stop(sender: SenderProcess) -> None:
    """Ends a sender process that has failed; its values are sent without one from now on."""
    with _starting:
        for uri, known in _senders.items():
            if known is sender:
                _senders[uri] = None
                sender.close()


def serve(file_descriptor: int) -> None:
    """The work of the process: takes calls until the trainer is gone."""
    with Connection(file_descriptor) as pipe:
        try:
            target = Target(MlflowClient(pipe.recv()), {})
            be_nice(NICENESS)
            pipe.send(_READY)
            while True:
                pipe.send(_answer(target, pipe, *pipe.recv()))
        except (EOFError, OSError):
            return


def _answer(
    target: Target, pipe: Connection, run_id: str, cursor: Cursor
) -> tuple[str, Verdict] | None:
    # All calls are made once: the trainer sees to it that they are made again.
    retry = Retry(run_id, None, progress=lambda: None, patient=False)
    delivery = Delivery(run_id, target, retry, refuse=lambda *_: None)
    try:
        with asking_once(PROBE_SECONDS):
            records = (decode(text, cursor.folder) for text in cursor.records())
            values = (record for record in records if isinstance(record, Values))
            for batch in batches(chain.from_iterable(values), MAX_METRICS_PER_BATCH):
                delivery.log_batch(batch)
                pipe.send(_TAKEN)
    except Exception as error:
        return str(error), verdict_of(error)
    return None


_senders: dict[str, SenderProcess | None] = {}
_sent: Counter[str] = Counter()
_starting = Lock()


# Of the parent process, in a forked child: not ours to end, nor to write to.
_of_the_parent: list[SenderProcess | None] = []


def end_all() -> None:
    """Ends all of them, and forgets what was sent."""
    with _starting:
        for sender in _senders.values():
            if sender is not None:
                sender.close()
        _senders.clear()
        _sent.clear()


@at(Stage.SENDERS)
def _at_the_end(_: BaseException | None) -> None:
    end_all()


def _in_a_child() -> None:
    global _starting
    _starting = Lock()
    _of_the_parent.extend(_senders.values())
    _senders.clear()


after_fork_in_child(_in_a_child)

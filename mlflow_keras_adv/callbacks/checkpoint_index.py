"""The checkpoints of a run: their list, their files, and the deletion of the worse ones."""

import hashlib
import logging
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread

import mlflow

from mlflow_keras_adv.tracking.run import Run

FOLDER = "checkpoints"
INDEX_FILE = f"{FOLDER}/index.json"
# How long a training that begins may wait for the store.
GRACE_SECONDS = 10.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """One entry of `checkpoints/index.json`.

    Attributes:
        monitor: Name of the value by which it was chosen.
        value: That value.
        step: Training batches consumed in the run.
        epoch: The epoch, counted from 1 as in `train/epoch`.
        file: Its path among the run's artifacts.
        size_bytes: Size of the file.
        sha256: Digest of the file, hexadecimal.
        dtype_policy: Keras' dtype policy of the model, which its file does not hold.
    """

    monitor: str
    value: float
    step: int
    epoch: int
    file: str
    size_bytes: int
    sha256: str
    dtype_policy: str


class CheckpointIndex:
    """The checkpoints of a run, on which all its trainings in this process count.

    Args:
        run_id: The run. What an earlier process stored of it is read, if the store answers within
            `GRACE_SECONDS`.
        reads: Whether it is; on a rank that does not write there is nothing to go on with.
    """

    def __init__(self, run_id: str, *, reads: bool = True) -> None:
        self._entries: list[Checkpoint] = []
        if not reads:
            return
        stored: list[Checkpoint] = []

        def read() -> None:
            try:
                stored.extend(stored_checkpoints(run_id))
            except Exception as error:
                _logger.warning("Earlier checkpoints of run %s are unknown: %r", run_id, error)

        reading = Thread(target=read, daemon=True)
        reading.start()
        reading.join(GRACE_SECONDS)
        self._entries = stored.copy()

    def of(self, monitor: str) -> list[Checkpoint]:
        """Those that were chosen by one value, best first."""
        return [each for each in self._entries if each.monitor == monitor]

    def replace(self, run: Run, monitor: str, kept: list[Checkpoint]) -> None:
        """Puts `kept` in the place of those chosen by `monitor`, whose other files are deleted."""
        dropped = [each for each in self.of(monitor) if each not in kept]
        self._entries = [*(each for each in self._entries if each.monitor != monitor), *kept]
        run.log_dict({FOLDER: [asdict(each) for each in self._entries]}, INDEX_FILE)
        for each in dropped:
            run.delete_artifact(each.file)


_indexes: "weakref.WeakKeyDictionary[Run, CheckpointIndex]" = weakref.WeakKeyDictionary()


def index_of(run: Run) -> CheckpointIndex:
    """The index of a run, one for all callbacks and trainings of this process."""
    if run not in _indexes:
        _indexes[run] = CheckpointIndex(run.run_id, reads=not run.internals.writer.is_quiet)
    return _indexes[run]


def stored_checkpoints(run_id: str) -> list[Checkpoint]:
    """The checkpoints of a run that the store knows, best first; of each monitor."""
    files = [file.path for file in mlflow.MlflowClient().list_artifacts(run_id, FOLDER)]
    if INDEX_FILE not in files:
        return []
    stored = mlflow.artifacts.load_dict(f"runs:/{run_id}/{INDEX_FILE}")
    return [Checkpoint(**entry) for entry in stored[FOLDER]]


def sha256(path: Path) -> str:
    """Digest of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

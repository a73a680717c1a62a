"""doctor: tries the tracking store, and says what works, how fast, and why not."""

import os
import platform
import tempfile
import time
from _thread import start_new_thread
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from queue import Empty, SimpleQueue

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.uri import is_http_uri

from mlflow_keras_adv.compat.mlflow import answer_of_server
from mlflow_keras_adv.diagnostics.store_check import Check, StoreCheck
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.tracking.durable_address import plain_uri
from mlflow_keras_adv.tracking.sigterm import raises_terminated
from mlflow_keras_adv.tracking.store import PROBE_SECONDS, probe, require_store, without_password

# How long one step may take, which is several requests, before the store counts as away.
STEP_SECONDS = 20.0

_PACKAGES = ("mlflow-keras-adv", "mlflow", "tensorflow", "keras", "keras-tuner")
_LONGEST_REASON = 200
# A doctor wants the first answer; by default MLflow asks eight times, for minutes.
_ONE_ATTEMPT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def examine(uri: str | None = None, *, say: Callable[[str], None]) -> bool:
    """Tries a store with a tiny run, model and version, deletes them, and prints a table of steps.

    The run is recorded where a training would be: in the experiment of MLFLOW_EXPERIMENT_NAME or
    MLFLOW_EXPERIMENT_ID, or in the default one if that does not exist yet. Everything is deleted
    also after Ctrl-C, SIGTERM or a failed step. If the store does not answer, the examination ends
    within seconds.

    Args:
        uri: A tracking URI; by default the store and the registry that MLflow is configured with.
        say: Receives each line.

    Returns:
        Whether everything works that a training needs. A failed deletion is only a warning.
    """
    client = MlflowClient(uri, uri) if uri else MlflowClient()
    say(f"store     {without_password(client.tracking_uri)}")
    say(f"versions  {', '.join(_versions(client.tracking_uri))}")
    with raises_terminated(), _one_attempt(), tempfile.TemporaryDirectory() as folder:
        examination = _Examination(client.tracking_uri, say)
        trial = StoreCheck(client, Path(folder))
        try:
            for step in trial.steps():
                examination.try_step(step)
        finally:
            for step in trial.deletions():
                examination.try_step(step)
    return examination.healthy


class _Examination:
    """Tries steps as long as the store answers, and prints a row of the table for each.

    Args:
        uri: The store, which is asked after a failure whether it still answers.
        say: Receives each line.

    Attributes:
        healthy: Whether nothing failed that is required.
    """

    def __init__(self, uri: str, say: Callable[[str], None]) -> None:
        self.healthy = True
        self._uri = plain_uri(uri)
        self._say = say
        self._worked: set[str] = set()
        self._gone = False
        say(f"\n{'step':<26}{'result':<11}{'ms':>6}  why")
        self.try_step(Check("reach the store", self._reach, None, ""))

    def try_step(self, step: Check) -> None:
        """Tries a step if the step that it needs has worked."""
        if self._gone:
            return
        if step.needs is not None and step.needs not in self._worked:
            self._row(step.name, "not tried", "", f"needs: {step.needs}")
            return
        begin = time.perf_counter()
        try:
            _within(STEP_SECONDS, step.call)
            result, reason = "ok", ""
            self._worked.add(step.name)
        except Exception as error:
            result, reason = "failed" if step.required else "warning", _reason(error, step.right)
            self.healthy &= not step.required
        self._row(step.name, result, f"{1000 * (time.perf_counter() - begin):.0f}", reason)
        if reason and not self._answers():
            self._gone = True
            self._say("The store does not answer: nothing more is tried.")

    def _reach(self) -> None:
        if not is_http_uri(self._uri):
            require_store(self._uri)
            return
        try:
            probe(self._uri)
        except MlflowException as error:
            if error.get_http_status_code() < 500:
                raise
            raise UserError(
                "The server does not answer. Start it (`mlflow server`) or correct "
                f"MLFLOW_TRACKING_URI: {error.message}"
            ) from error

    def _answers(self) -> bool:
        try:
            _within(2 * PROBE_SECONDS, self._reach)
        except (UserError, MlflowException, TimeoutError):
            return False
        return True

    def _row(self, name: str, result: str, milliseconds: str, reason: str) -> None:
        self._say(f"{name:<26}{result:<11}{milliseconds:>6}  {reason}".rstrip())


def _within(seconds: float, call: Callable[[], object]) -> None:
    """Makes a call on a thread, and waits for it for a limited time.

    After Ctrl-C it still waits, so that whatever the call creates is known and can be deleted.

    Raises:
        TimeoutError: If it takes longer.
    """
    outcome: list[Exception | None] = []
    done: SimpleQueue[None] = SimpleQueue()

    def work() -> None:
        try:
            call()
            outcome.append(None)
        except Exception as error:
            outcome.append(error)
        done.put(None)

    try:
        # Not by Thread.start(), which waits for the thread: Ctrl-C would find it half started.
        start_new_thread(work, ())
        done.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None
    except BaseException:
        with suppress(Empty):
            if not outcome:
                done.get(timeout=seconds)
        raise
    if outcome[0] is not None:
        raise outcome[0]


def _reason(error: Exception, right: str) -> str:
    """One line: for a login the variable or right that is missing, else the store's message."""
    if isinstance(error, MlflowException):
        status, text = error.get_http_status_code(), error.message
    else:
        status, text = getattr(getattr(error, "response", None), "status_code", 0), str(error)
    if status == 401:
        return (
            "401, the login is missing or wrong: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if status == 403:
        return f"403, this login lacks {right}"
    text = " ".join(without_password(text).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 1]}…"


def _versions(uri: str) -> Iterator[str]:
    yield f"python {platform.python_version()}"
    for package in _PACKAGES:
        try:
            yield f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            yield f"{package} not installed"
    if is_http_uri(plain_uri(uri)):
        try:
            answer = answer_of_server(uri, "/version", seconds=PROBE_SECONDS)
            yield f"server mlflow {answer.text}" if answer.ok else "server unknown"
        except MlflowException:
            yield "server unknown"


@contextmanager
def _one_attempt() -> Iterator[None]:
    """Turns off MLflow's retries within the block."""
    before = {name: os.environ.get(name) for name in _ONE_ATTEMPT}
    os.environ.update(_ONE_ATTEMPT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

"""Whether the tracking store can take a run: said at once, where MLflow would retry for minutes."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow.environment_variables import MLFLOW_ALLOW_FILE_STORE
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from mlflow.utils.uri import get_uri_scheme, is_http_uri

from mlflow_keras_adv.errors import UserError

PROBE_SECONDS = 5.0

_SQLITE_HEADER = b"SQLite format 3\0"
_ADVICE = (
    "Set MLFLOW_TRACKING_URI to a store that can be written: sqlite:///mlflow.db, or the address "
    "of an `mlflow server`."
)


def require_store(uri: str) -> None:
    """Checks that a store can be reached or written, within seconds.

    A server is asked once; any answer counts. Of an SQLite file, the file and its folder are tried.
    Other databases and plugins are left to MLflow.

    Args:
        uri: A tracking URI, as `mlflow.get_tracking_uri()` gives it.

    Raises:
        UserError: If it cannot.
    """
    if is_http_uri(uri):
        _require_server(uri)
    elif path := re.fullmatch(r"sqlite(?:\+\w+)?:///(?!:memory:|file:)([^?]+).*", uri):
        _require_writable(Path(path[1]))
    elif get_uri_scheme(uri) in ("", "file") and not MLFLOW_ALLOW_FILE_STORE.get():
        raise UserError(
            f"The tracking store {uri} is a folder of files, which MLflow has closed for new runs "
            "(a folder mlruns/ of older runs makes it the default). "
            f"{_ADVICE} `mlflow migrate-filestore` moves the old runs."
        )


@contextmanager
def opening_runs() -> Iterator[None]:
    """For calls to the store before a training: what goes wrong is said in one sentence.

    Raises:
        UserError: If the store cannot be reached or written, or rejects a call of the block.
    """
    uri = mlflow.get_tracking_uri()
    require_store(uri)
    try:
        yield
    except MlflowException as error:
        raise UserError(
            f"The run cannot be opened in the tracking store {without_password(uri)}: "
            f"{without_password(error.message)}"
        ) from error


def without_password(text: str) -> str:
    """A text in which the user and password of every address are hidden."""
    return re.sub(r"//[^/\s@]+@", "//***@", text)


def _require_server(uri: str) -> None:
    try:
        http_request(
            get_default_host_creds(uri),
            "/health",
            "GET",
            max_retries=0,
            timeout=PROBE_SECONDS,
            raise_on_status=False,
        )
    except MlflowException as error:
        raise UserError(
            f"The tracking server {without_password(uri)} does not answer. Start it "
            "(`mlflow server`), correct MLFLOW_TRACKING_URI, or unset it to record in ./mlflow.db."
        ) from error


def _require_writable(path: Path) -> None:
    """Tries what SQLite will do: write the file, and a journal beside it."""
    folder = path.absolute().parent
    while not folder.exists():  # MLflow makes those that are missing
        folder = folder.parent
    try:
        tempfile.TemporaryFile(dir=folder).close()
        if path.exists():
            with path.open("r+b") as file:
                header = file.read(len(_SQLITE_HEADER))
            if header not in (b"", _SQLITE_HEADER):
                raise UserError(f"The tracking store {path} is not an SQLite database. {_ADVICE}")
    except OSError as error:
        raise UserError(
            f"The tracking store {path} cannot be written: {error.strerror} ({folder}). {_ADVICE}"
        ) from error

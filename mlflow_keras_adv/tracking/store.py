"""Whether the tracking store answers: said at once, where MLflow would retry for minutes."""

import errno
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.utils.uri import get_uri_scheme, is_http_uri

from mlflow_keras_adv.compat.mlflow import (
    answer_of_server,
    file_store_is_closed,
    raise_what_it_says,
)
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.tracking.durable_address import configured_uri, plain_uri
from mlflow_keras_adv.tracking.verdict import may_pass

PROBE_SECONDS = 5.0

_ADVICE = (
    "Set MLFLOW_TRACKING_URI to a store that can be written: sqlite:///mlflow.db, or the address "
    "of an `mlflow server`."
)


def require_store(uri: str) -> None:
    """Checks that a store can be reached or written, within seconds.

    A server is asked by `probe`. An SQLite file and its folder are tried. Other
    databases and plugins are left to MLflow.

    Args:
        uri: A tracking URI, as `mlflow.get_tracking_uri()` gives it.

    Raises:
        UserError: If it cannot.
    """
    uri = plain_uri(uri)
    _check_spelling(uri)
    if is_http_uri(uri):
        try:
            probe(uri)
        except MlflowException as error:
            raise UserError(
                f"The tracking server {without_password(uri)} does not serve: "
                f"{without_password(error.message)} Start it (`mlflow server`), correct "
                "MLFLOW_TRACKING_URI or the login, or unset it to record in ./mlflow.db."
            ) from error
    elif path := re.fullmatch(r"sqlite(?:\+\w+)?:///(?!:memory:|file:)([^?]+).*", uri):
        _require_writable(Path(path[1]))
    elif get_uri_scheme(uri) in ("", "file") and file_store_is_closed():
        raise UserError(
            f"The tracking store {uri} is a folder of files, which MLflow has closed for new runs "
            "(a folder mlruns/ of older runs makes it the default). "
            f"{_ADVICE} `mlflow migrate-filestore` moves the old runs."
        )


def _check_spelling(uri: str) -> None:
    """MLflow takes what is no address for a folder, or names 15 schemes."""
    shown = without_password(uri)
    if typo := re.match(r"(?!https?://)h?t?tps?[:/]+(?=[\w\[])", uri, re.IGNORECASE):
        scheme = "https" if "s" in typo[0].lower() else "http"
        meant = f"{scheme}://{uri[typo.end() :]}"
    elif re.fullmatch(r"[\w.-]+:\d+/?", uri):
        meant = f"http://{uri}"
    elif typo := re.match(r"(sqlite(?:\+\w+)?):/{0,2}(?=[^/])", uri):
        meant = f"{typo[1]}:///{uri[typo.end() :]}"
    else:
        return
    raise UserError(
        f"The tracking URI {shown} is not spelled as an address or a database: did you mean "
        f"{without_password(meant)}? Correct MLFLOW_TRACKING_URI, or mlflow.set_tracking_uri()."
    )


def probe(uri: str) -> None:
    """Asks a tracking server once, within seconds; does nothing for other stores.

    Args:
        uri: A tracking URI.

    Raises:
        MlflowException: If it does not answer, or that it cannot serve for now, or not us.
    """
    uri = plain_uri(uri)
    if not is_http_uri(uri):
        return
    endpoint = "/api/2.0/mlflow/experiments/search"
    response = answer_of_server(uri, endpoint, seconds=PROBE_SECONDS, params={"max_results": 1})
    if may_pass(response.status_code):
        raise_what_it_says(response, endpoint)


def answers(uri: str) -> bool:
    """Whether a tracking server serves us now; True for other stores."""
    try:
        probe(uri)
    except MlflowException:
        return False
    return True


@contextmanager
def store_errors_for_users(existing: str | None = None) -> Iterator[None]:
    """For calls to the store before a training: what goes wrong is said in one sentence.

    Args:
        existing: Id of a run that the store has to have. Where there is no database, none is made.

    Raises:
        UserError: If the store cannot be reached or written, or rejects a call of the block.
    """
    uri = configured_uri()
    require_store(uri)
    relative = re.fullmatch(r"sqlite(?:\+\w+)?:///(?!/|:memory:|file:)([^?]+).*", uri)
    elsewhere = ""
    if existing is not None and relative:
        elsewhere = (
            f"{uri} is relative to the folder of each process, and this one is in {Path.cwd()}: "
            "`mlflow run` starts a project in the project's folder. Set MLFLOW_TRACKING_URI to an "
            f"absolute path, such as sqlite:////home/you/{Path(relative[1]).name}, or to the "
            "address of an `mlflow server`."
        )
        if not Path(relative[1]).exists():
            raise UserError(
                f"The run {existing} cannot be opened: no database is there. {elsewhere}"
            )
    try:
        yield
    except MlflowException as error:
        advice = elsewhere or _advice(error.message, existing)
        raise UserError(
            f"The run cannot be opened in the tracking store {without_password(uri)}: "
            f"{without_password(error.message).rstrip('. ')}. {advice}".rstrip()
        ) from error


def _advice(message: str, existing: str | None) -> str:
    """What to do about some of MLflow's refusals."""
    if existing is not None and not re.fullmatch(r"[0-9a-f]{32}", existing):
        return (
            "The id of a run has 32 hexadecimal digits: it is `run.run_id`, and stands at the end "
            "of the address of the run's page. A name opens a new run: track(name)."
        )
    if experiment := re.search(r"experiment (\w+) must be in the 'active' state", message):
        return (
            f"`mlflow experiments restore --experiment-id {experiment[1]}` brings it back; or "
            "choose another in MLFLOW_EXPERIMENT_NAME or by mlflow.set_experiment()."
        )
    if existing is not None and "deleted state" in message:
        return f"`mlflow runs restore --run-id {existing}` brings it back; or open a new run."
    if "MLFLOW_EXPERIMENT_ID" in message:
        return "An experiment's name goes into MLFLOW_EXPERIMENT_NAME, which makes it if need be."
    return ""


def without_password(text: str) -> str:
    """A text in which the user and password of every address are hidden."""
    return re.sub(r"//[^/\s@]+@", "//***@", text)


def normalized_uri(uri: str) -> str:
    """The plain tracking URI that holds in another folder too, without user and password."""
    uri = re.sub(r"//[^/\s@]+@", "//", plain_uri(uri))
    if path := re.fullmatch(r"(sqlite(?:\+\w+)?:///)(?!/|:memory:|file:)(.+)", uri):
        return f"{path[1]}{Path(path[2]).absolute()}"
    return uri


def _require_writable(path: Path) -> None:
    """Tries what SQLite will do: write the file, and a journal beside it."""
    folder = path.absolute().parent
    while not folder.exists():  # MLflow makes those that are missing
        folder = folder.parent
    try:
        tempfile.TemporaryFile(dir=folder).close()
        if path.exists():
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            if not _is_database(path):
                raise UserError(f"The tracking store {path} is not an SQLite database. {_ADVICE}")
    except (OSError, sqlite3.OperationalError) as error:
        reason = getattr(error, "strerror", error)
        raise UserError(
            f"The tracking store {path} cannot be written: {reason} ({folder}). {_ADVICE}"
        ) from error


def _is_database(path: Path) -> bool:
    """Asks SQLite. To open the file and close it again would drop the locks this process has on it.

    POSIX gives the locks of a file to the process, not to who opened it
    (https://sqlite.org/howtocorrupt.html, section 2.2): the connections that deliver other runs
    would go on without theirs, beside other processes that write.
    """
    address = f"{path.absolute().as_uri()}?mode=rw"
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=0)) as connection:
            connection.execute("PRAGMA schema_version")
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_CANTOPEN:
            raise
        return error.sqlite_errorcode != sqlite3.SQLITE_NOTADB  # it may be locked
    return True

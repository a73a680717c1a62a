"""Where to look: the one line that can be opened, with which a run, a comparison and a page end."""

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from mlflow.environment_variables import MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.utils.uri import get_uri_scheme, is_databricks_uri, is_http_uri, is_local_uri

from mlflow_keras_adv.tracking.durable_address import plain_uri
from mlflow_keras_adv.tracking.paths import offline_uri
from mlflow_keras_adv.tracking.store import normalized_uri

# Where `mlflow ui` serves unless it is told otherwise.
UI_ADDRESS = "http://127.0.0.1:5000"


def run_page(experiment_id: str, run_id: str) -> str:
    """What follows the address of MLflow's UI, for the page of a run."""
    return f"/#/experiments/{experiment_id}/runs/{run_id}"


def chart_page(experiment_id: str) -> str:
    """What follows the address of MLflow's UI, for the charts of an experiment."""
    return (
        f"/#/experiments/{experiment_id}/runs?compareRunsMode=CHART&workflowType=machine_learning"
    )


def absolute_uri(uri: str) -> str:
    """A tracking URI that holds in another folder too, and still has its user and password."""
    if uri.startswith("sqlite"):
        return normalized_uri(uri)  # a file has no password
    if get_uri_scheme(uri) in ("", "file"):
        path = url2pathname(unquote(urlsplit(uri).path)) if uri.startswith("file:") else uri
        return str(Path(path).absolute())
    return uri


def how_to_open(uri: str, pages: Mapping[str, str]) -> str:
    """Says how to open pages of MLflow's UI.

    Args:
        uri: The tracking URI of the store.
        pages: By what they show (nothing: what the line is about) what follows the address of the
            UI, `/#/…`. Whole addresses and paths of files stay as they are, and come first.

    Returns:
        The addresses; before them, for a store that is no server, the command that serves it.
        Users and passwords are left out.
    """
    uri = plain_uri(uri)
    if is_databricks_uri(uri):  # its UI is elsewhere
        return f"in the store {uri}"
    shown = normalized_uri(absolute_uri(uri))
    if is_http_uri(uri):
        served, command = shown.rstrip("/"), ""
    elif get_uri_scheme(uri) in DATABASE_ENGINES or is_local_uri(uri):
        served, command = UI_ADDRESS, f"`mlflow ui --backend-store-uri {shlex.quote(shown)}`, then "
    else:
        return f"in the store {shown}"
    files: list[str] = []
    inside: list[str] = []
    for what, page in pages.items():
        if page.startswith("/#/"):
            inside.append(f"{what} {served}{page}".strip())
        else:
            (inside if is_http_uri(page) else files).append(f"{what} {page}")
    return "; ".join([*files, *([command + ", ".join(inside)] if inside else [])])


def say_where(title: str, uri: str, pages: Mapping[str, str], *, target: str = "") -> str:
    """Prints a line: what there is to see, and where.

    Nothing is printed in a block of `left_to_the_caller`, or if the user has set MLflow's variable
    MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT, which silences MLflow's own such lines.

    Args:
        title: Begins the line: the name of a run, for example.
        uri: The tracking URI of the store.
        pages: See `how_to_open`.
        target: The store that an offline run is meant for.

    Returns:
        The line; empty without pages.
    """
    if not pages:
        return ""
    where = how_to_open(uri, pages)
    if uri == offline_uri():
        meant = f" to {normalized_uri(target)}" if target else ""
        where = (
            f"recorded on this machine, `mlflow-keras-adv sync` delivers it{meant}; until then: "
            + where
        )
    line = f"{title}: {where}"
    say(line)
    return line


def say(line: str) -> None:
    """Prints a line for the person at the console, unless such lines are not wanted."""
    if MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.get() or _left.get():
        return
    with suppress(OSError, ValueError):  # nobody reads, it is closed, or it cannot spell the name
        print(line, flush=True)


@contextmanager
def left_to_the_caller() -> Iterator[None]:
    """A block whose lines are not printed: what is around it says where to look."""
    before = _left.set(True)
    try:
        yield
    finally:
        _left.reset(before)


_left: ContextVar[bool] = ContextVar("left", default=False)


def artifact_page(artifact_uri: str, experiment_id: str, run_id: str, path: str) -> str:
    """Where an artifact of a run can be opened: its file on this machine, else its page in the UI.

    Args:
        artifact_uri: Where the artifacts of the run are.
        experiment_id: The run's experiment.
        run_id: The run.
        path: Path of the artifact in the run.
    """
    if is_local_uri(artifact_uri):
        return str(Path(absolute_uri(artifact_uri), path))
    return f"{run_page(experiment_id, run_id)}/artifacts/{path}"

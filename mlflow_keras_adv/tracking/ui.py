"""`mlflow ui` on the store that runs are recorded in, and the address of the page for them."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO
from urllib.request import urlopen

from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.environment_variables import MLFLOW_EXPERIMENT_ID, MLFLOW_EXPERIMENT_NAME
from mlflow.tracking.default_experiment import DEFAULT_EXPERIMENT_ID
from mlflow.utils.uri import is_http_uri

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.tracking.addresses import absolute_uri, chart_page
from mlflow_keras_adv.tracking.durable_address import configured_uri
from mlflow_keras_adv.tracking.sigterm import raises_terminated
from mlflow_keras_adv.tracking.store import normalized_uri, require_store, without_password

START_SECONDS = 120
_STOP_SECONDS = 15


def serve(
    experiment: str | None, port: int, say: Callable[[str], None], *, browse: bool = False
) -> None:
    """Shows the store in MLflow's UI until Ctrl-C or SIGTERM; one that is a server is only named.

    Args:
        experiment: Name or id of the experiment whose charts are shown. Default: that of
            MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID, else that of the newest run.
        port: Where to serve, on 127.0.0.1; a free one if it is taken.
        say: Takes the lines to print.
        browse: Whether to open the page in a browser, too.

    Raises:
        UserError: The store or the experiment does not exist, or `mlflow ui` does not start.
    """
    uri = absolute_uri(configured_uri())
    require_store(uri)
    file = Path(uri.partition(":///")[2])
    if uri.startswith("sqlite:///") and not file.exists():
        raise UserError(
            f"There is no store {file}: nothing was recorded there. Go to the folder in which the "
            "runs were made, or set MLFLOW_TRACKING_URI to their store."
        )
    page = chart_page(_experiment_id(MlflowClient(uri), experiment))
    if is_http_uri(uri):
        _show(f"{normalized_uri(uri).rstrip('/')}{page}", say, browse=browse)
        return
    port = port if _is_free(port) else _free_port()
    address = f"http://127.0.0.1:{port}"
    # In the environment, where no other user reads a password.
    environment = os.environ | {"MLFLOW_BACKEND_STORE_URI": uri}
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port)]
    with raises_terminated(), tempfile.TemporaryFile() as log:
        # A session of its own: MLflow starts processes that would stay when it is ended alone.
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _await(address, process, log)
            _show(f"{address}{page}", say, browse=browse)
            say(f"It shows {normalized_uri(uri)} until Ctrl-C.")
            process.wait()
        except KeyboardInterrupt:
            pass
        finally:
            _end(process)


def _experiment_id(client: MlflowClient, wanted: str | None) -> str:
    wanted = wanted or MLFLOW_EXPERIMENT_NAME.get() or MLFLOW_EXPERIMENT_ID.get()
    known = client.search_experiments(view_type=ViewType.ACTIVE_ONLY)
    if wanted:
        for each in known:
            if wanted in (each.name, each.experiment_id):
                return str(each.experiment_id)
        names = ", ".join(repr(each.name) for each in known[:20]) or "none"
        raise UserError(f"There is no experiment {wanted!r}. The store has: {names}.")
    newest = client.search_runs(
        [each.experiment_id for each in known], max_results=1, order_by=["start_time DESC"]
    )
    return str(newest[0].info.experiment_id) if newest else DEFAULT_EXPERIMENT_ID


def _show(address: str, say: Callable[[str], None], *, browse: bool) -> None:
    say(address)
    if browse and not webbrowser.open(address):
        say("No browser could be opened here: open the address yourself.")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the server will: a port that another has just left is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await(address: str, process: "subprocess.Popen[bytes]", log: IO[bytes]) -> None:
    until = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        try:
            with urlopen(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    log.seek(0)
    said = log.read().decode(errors="replace").strip().splitlines()[-5:]
    raise UserError(
        f"`mlflow ui` does not serve {address}. It said: {without_password(' '.join(said))}"
    )


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends the server and what it has started; kills what does not listen."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
            return

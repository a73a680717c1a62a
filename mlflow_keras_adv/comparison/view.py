"""Prepares MLflow's chart page: the compared runs in one list, the relevant charts first.

The state of that page is an experiment tag that MLflow 3.17 reads for `?viewStateShareKey=…`. It is
undocumented: a browser test checks it, and without the tag the address still opens the charts of
these runs. A tag cannot say which rows are expanded; but with a filter, and sorted by anything but
the start time, the page shows nested runs in one list with the others.
"""

import base64
import hashlib
import json
import logging
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.uri import is_http_uri

from mlflow_keras_adv.comparison.groups import differing
from mlflow_keras_adv.comparison.view_charts import chart_state
from mlflow_keras_adv.tracking.directions import Mode, direction
from mlflow_keras_adv.tracking.offline import is_offline
from mlflow_keras_adv.tracking.store import answers, normalized_uri, without_password

_logger = logging.getLogger(__name__)

_TAG = "mlflow.sharedViewState."
_PREFIX = "mka-"
# The page loads all tags of an experiment: views that we made before are deleted beyond so many.
KEPT_VIEWS = 50
# What the page lists at first.
_MAX_LISTED = 100


def view_address(
    runs: Sequence[Run],
    *,
    name: str,
    score: str | None,
    directions: Mapping[str, Mode],
    parent_run_id: str | None = None,
) -> str | None:
    """Prepares the chart page, and returns its address.

    Args:
        runs: The compared runs, as read from the store.
        name: Name of the view, in the list of saved views.
        score: Metric to sort by, the best first.
        directions: Whether metrics are better lower or higher.
        parent_run_id: If given, all runs nested in this one are shown; else the first 100.

    Returns:
        The address on a server, else the part of it that follows the address of an `mlflow ui`:
        `/#/…`. None if no store answers.
    """
    client = MlflowClient()
    if not runs or is_offline() or not answers(client.tracking_uri):
        return None
    experiments = list(dict.fromkeys(run.info.experiment_id for run in runs))
    if parent_run_id is not None:
        query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent_run_id}'"
    else:
        listed = ",".join(f"'{run.info.run_id}'" for run in runs[:_MAX_LISTED])
        query = f"attributes.run_id IN ({listed})"
    facets = {
        "searchFilter": query,
        "orderByKey": f"metrics.`{score}`" if score else "tags.`mlflow.runName`",
        "orderByAsc": not score or direction(score, directions) == "min",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
    }
    store = normalized_uri(client.tracking_uri)
    server = store if is_http_uri(store) else ""
    if len(experiments) > 1:
        page = f"compare-experiments/s?experiments={quote(json.dumps(experiments))}"
        return f"{server}/#/{page}&{_plain(facets)}"
    page = f"experiments/{experiments[0]}/runs?compareRunsMode=CHART&workflowType=machine_learning"
    key = _PREFIX + (parent_run_id or hashlib.sha256(query.encode()).hexdigest()[:32])
    params = differing([dict(run.data.params) for run in runs])
    state = facets | chart_state({k for run in runs for k in run.data.metrics}, params, score)
    try:
        _save(client, experiments[0], key, name, state)
    except MlflowException as error:  # who may read may not always write
        _logger.debug("No saved view: %s", without_password(error.message))
        return f"{server}/#/{page}&{_plain(facets)}"
    return f"{server}/#/{page}&viewStateShareKey={key}"


def _plain(facets: Mapping[str, Any]) -> str:
    """The part of a view that fits into an address: which runs, in which order."""
    told = ("searchFilter", "orderByKey", "orderByAsc")
    values = {key: facets[key] for key in told}
    texts = {k: str(v).lower() if isinstance(v, bool) else v for k, v in values.items()}
    pairs = "&".join(f"{key}={quote(value, safe='')}" for key, value in texts.items())
    return f"{pairs}&compareRunsMode=CHART"


def _save(
    client: MlflowClient, experiment_id: str, key: str, name: str, state: Mapping[str, Any]
) -> None:
    packed = zlib.compress(json.dumps(state).encode(), 9)
    now = time.time_ns() // 1_000_000
    view = {
        "name": name[:80],
        "createdAt": now,
        "updatedAt": now,
        "state": f"deflate;{base64.b64encode(packed).decode()}",
    }
    client.set_experiment_tag(experiment_id, _TAG + key, json.dumps(view))
    tags = client.get_experiment(experiment_id).tags
    ours = [each for each in tags if each.startswith(_TAG + _PREFIX)]
    for old in sorted(ours, key=lambda each: _created(tags[each]))[:-KEPT_VIEWS]:
        client.delete_experiment_tag(experiment_id, old)


def _created(text: str) -> int:
    try:
        return int(json.loads(text)["createdAt"])
    except (ValueError, KeyError, TypeError):  # anybody may have written there
        return 0

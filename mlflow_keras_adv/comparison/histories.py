"""Reads curves of many runs with few calls: evenly sampled points, as in MLflow's charts."""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from mlflow import MlflowClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request, verify_rest_response
from mlflow.utils.uri import is_http_uri

from mlflow_keras_adv.compat.mlflow import metric_intervals, picked
from mlflow_keras_adv.tracking.durable_address import plain_uri

# Points per curve; a chart of this size cannot show more.
POINTS = 200

# MLflow's own limit of one request.
_RUNS_PER_REQUEST = 100
_PATH = "/ajax-api/2.0/mlflow/metrics/get-history-bulk-interval"

Curves = dict[str, dict[str, "pd.Series[float]"]]


def read_curves(run_ids: Sequence[str], keys: Sequence[str]) -> Curves:
    """Reads the histories of metrics.

    Args:
        run_ids: Ids of runs.
        keys: Names of metrics.

    Returns:
        By metric, by run: at most `POINTS` values by step, the first and the last among them, in
        the order of the steps. A run with fewer than two has no curve.
    """
    curves: Curves = {}
    for key in keys:
        found: dict[str, dict[int, float]] = {}
        for run_id, step, value in _points(run_ids, key):
            found.setdefault(run_id, {})[step] = value
        curves[key] = {
            run_id: pd.Series(picked(values, POINTS), dtype=float)
            for run_id, values in found.items()
            if len(values) > 1
        }
    return curves


def _points(run_ids: Sequence[str], key: str) -> Iterable[tuple[str, int, float]]:
    uri = plain_uri(MlflowClient().tracking_uri)
    if not is_http_uri(uri):
        for point in metric_intervals(run_ids, key, POINTS):
            yield point.run_id, point.step, point.value
        return
    for start in range(0, len(run_ids), _RUNS_PER_REQUEST):
        some = run_ids[start : start + _RUNS_PER_REQUEST]
        # The Python client has no such call: it would ask for each run twice.
        response = http_request(
            get_default_host_creds(uri),
            _PATH,
            "GET",
            params={"run_ids": list(some), "metric_key": key, "max_results": POINTS},
        )
        for row in _metrics(verify_rest_response(response, _PATH).json()):
            yield str(row["run_id"]), int(row.get("step", 0)), float(row["value"])


def _metrics(answer: Mapping[str, list[dict[str, str]]]) -> list[dict[str, str]]:
    return answer.get("metrics", [])

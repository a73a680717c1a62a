"""What a store holds of the runs of an experiment, so that two stores can be compared."""

import math
import re
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

# What is ours beside, and what is of the moment: a receipt, an id by which a run is found again.
_OWN = ("points.", "mlflow_keras_adv.")
_OF_THE_MOMENT = {"mlflow.log-model.history", "mlflow.loggedArtifacts.ids"}


def record_of(client: MlflowClient, experiment_id: str = "0") -> dict[str, Any]:
    """All that stands in the runs of an experiment, by their names, but times and ids."""
    runs = client.search_runs([experiment_id], max_results=1000)
    names = {run.info.run_id: run.info.run_name for run in runs}
    return {run.info.run_name: _run(client, run, names) for run in runs}


def _run(client: MlflowClient, run: Run, names: Mapping[str, str]) -> dict[str, Any]:
    run_id = run.info.run_id
    curves = {
        key: sorted((p.step, str(p.value), p.dataset_name) for p in history)
        for key in run.data.metrics
        for history in [client.get_metric_history(run_id, key)]
    }
    tags = {
        key: names.get(value, value)
        for key, value in run.data.tags.items()
        if not key.startswith(_OWN) and key not in _OF_THE_MOMENT
    }
    inputs = run.inputs.dataset_inputs if run.inputs else []
    outputs = run.outputs.model_outputs if run.outputs else []
    return {
        "status": run.info.status,
        "params": run.data.params,
        "tags": tags,
        "curves": curves,
        "inputs": [(each.dataset.name, each.dataset.digest) for each in inputs],
        "files": _files(client, run_id),
        "models": [(_model(client, each.model_id), each.step) for each in outputs],
    }


def _files(client: MlflowClient, run_id: str, folder: str | None = None) -> list[Any]:
    found: list[Any] = []
    for file in client.list_artifacts(run_id, folder):
        if file.is_dir:
            found += _files(client, run_id, file.path)
        elif file.path.startswith("images/"):  # the time is in the name
            found.append((re.sub(r"timestamp.*(?=\.|\W)", "", file.path), file.file_size))
        else:
            found.append((file.path, file.file_size))
    return sorted(found)


def _model(client: MlflowClient, model_id: str) -> Any:
    model = client.get_logged_model(model_id)
    metrics = sorted(
        (each.key, each.step, each.value)
        for each in model.metrics or []
        if not math.isnan(each.value)
    )
    files = sorted(each.path for each in client.list_logged_model_artifacts(model_id))
    tags = {k: v for k, v in model.tags.items() if not k.startswith(("mlflow.", *_OWN))}
    return model.name, str(model.status), model.params, tags, metrics, files


def differing(one: object, other: object, path: str = "") -> list[str]:
    """Where two records differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [*one, *(key for key in other if key not in one)]
        found = [differing(one.get(key), other.get(key), f"{path}/{key}") for key in keys]
        return [line for lines in found for line in lines]
    return [] if one == other else [f"{path}: {one!r} != {other!r}"]

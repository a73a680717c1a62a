"""What a short run of `compress` leaves; test_catalogue.py holds it to what all scripts leave."""

import numpy as np
import pytest
from mlflow import MlflowClient

import mlflow_keras_adv as mka
from mlflow_keras_adv.tflite.weights import file_weights
from projects.compress import main
from tests.projects.small_net import log_small_net

LINEAGE = {
    "pruned": "baseline",
    "clustered": "pruned",
    "float32": "baseline",
    "int8": "baseline",
    "pruned_int8": "pruned",
    "clustered_int8": "clustered",
    "pcqat": "clustered",
}


@pytest.mark.slow
def test_each_step_starts_from_the_one_before_and_keeps_what_it_has_won(experiment: str) -> None:
    main(model_uri=log_small_net(), prune_epochs=1, tune_epochs=1, max_accuracy_drop=1.0)
    client = MlflowClient()
    logged = {model.name: model for model in client.search_logged_models([experiment])}
    assert set(logged) == {"small_net", "baseline", *LINEAGE}
    assert logged["baseline"].tags["parent_model_id"] == logged.pop("small_net").model_id
    for name, parent in LINEAGE.items():
        assert logged[name].tags["parent_model_id"] == logged[parent].model_id, name
    content = mka.litert.load_model(logged["pcqat"].model_uri).content
    for weight in file_weights(content):
        if weight.values.ndim >= 2 and weight.values.size > 1000:
            assert weight.zeros / weight.values.size >= 0.79, weight.name
            channels = weight.values.reshape(len(weight.values), -1)
            assert max(len(np.unique(channel)) for channel in channels) <= 16, weight.name
    runs = {run.info.run_name: run.data for run in client.search_runs([experiment])}
    gzip_bytes = {name: runs[name].metrics["final/gzip_bytes"] for name in logged if "int8" in name}
    assert gzip_bytes["clustered_int8"] < gzip_bytes["pruned_int8"] < gzip_bytes["int8"]
    (parent,) = [data for data in runs.values() if "winner" in data.tags]
    chosen = parent.metrics["final/gzip_bytes"]
    assert chosen == min(runs[name].metrics["final/gzip_bytes"] for name in logged)
    whole = runs["float32"].metrics["final/size_bytes"]
    assert parent.metrics["final/times_smaller"] == whole / chosen
    made = {run.info.run_name: run.info.run_id for run in client.search_runs([experiment])}
    tables = {name: {file.path for file in client.list_artifacts(made[name])} for name in logged}
    assert all("weights.json" in files for files in tables.values())
    assert all("layers.json" in tables[name] for name in ("pruned", "clustered"))

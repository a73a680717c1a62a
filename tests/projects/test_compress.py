"""What a short run of `compress` leaves; test_catalogue.py holds it to what all scripts leave."""

import numpy as np
import pytest
from mlflow import MlflowClient

import mlflow_keras_adv as mka
from mlflow_keras_adv.compression.file_weights import file_weights
from projects.compress import main

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
    main(epochs=1, prune_epochs=1, tune_epochs=1, max_accuracy_drop=1.0)
    client = MlflowClient()
    logged = {model.name: model for model in client.search_logged_models([experiment])}
    assert set(logged) == {"baseline", *LINEAGE}
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


@pytest.mark.soak
def test_the_anchors_on_digits(experiment: str) -> None:
    shares: dict[str, list[float]] = {"pruned_int8": [], "pcqat": []}
    for seed in range(3):
        with mka.track(f"seed-{seed}") as run:
            main(seed=seed)
        children = MlflowClient().search_runs(
            [experiment], f"tags.`mlflow.parentRunId` = '{run.run_id}'"
        )
        final = {child.info.run_name: child.data.metrics for child in children}
        for name, found in shares.items():
            whole = final["float32"]["final/gzip_bytes"]
            found.append(final[name]["final/gzip_bytes"] / whole)
    assert np.mean(shares["pruned_int8"]) <= 0.13
    assert np.mean(shares["pcqat"]) <= 0.10

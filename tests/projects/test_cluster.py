"""What a short run of `cluster` leaves; test_catalogue.py holds it to what all scripts leave."""

import json

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

import mlflow_keras_adv as mka
from projects.cluster import counts, main, shared
from tests.projects.small_net import log_small_net


@pytest.mark.slow
def test_a_run_leaves_table_lineage_and_models_of_few_values(experiment: str) -> None:
    main(clusters="4", model_uri=log_small_net(), cluster_epochs=1, max_accuracy_drop=1.0)
    client = MlflowClient()
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    logged = {model.name: model for model in client.search_logged_models([experiment])}
    table = json.loads(
        mlflow.artifacts.load_text(f"runs:/{runs['4-values'].info.run_id}/layers.json")
    )
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert len(rows) == 3
    assert all(row["clusters"] == 4 and row["distinct"] <= 4 for row in rows)
    assert logged["4-values"].tags["parent_model_id"] == logged["baseline"].model_id

    model = mka.load_model(f"models:/{logged['4-values'].model_id}")
    kernels = [np.asarray(weight) for weight in model.weights if len(weight.shape) > 1]
    assert len(kernels) == 3
    assert all(len(np.unique(kernel)) <= 4 for kernel in kernels)
    small, large = (
        runs[name].data.metrics["final/gzip_bytes"] for name in ("4-values", "baseline")
    )
    assert small < large / 2


def test_each_weight_becomes_the_mean_of_those_near_it() -> None:
    kernel = np.array([[0.0, 1.0], [10.0, 11.0]])
    np.testing.assert_allclose(shared(kernel, 2), [[0.5, 0.5], [10.5, 10.5]])
    np.testing.assert_allclose(shared(kernel, 9), kernel)  # no more clusters than weights


def test_numbers_are_named_for_their_runs() -> None:
    assert counts("4, 16") == {"4-values": 4, "16-values": 16}


@pytest.mark.parametrize("text", ["", "16,", "2", "4.5", "many"])
def test_what_is_no_number_of_values_is_refused(text: str) -> None:
    with pytest.raises(mka.UserError, match="clusters"):
        counts(text)

"""A table of somebody's own, from the file to a served row, and to the registry."""

from pathlib import Path

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from sklearn.datasets import load_wine
from sklearn.metrics import mean_absolute_error

import mlflow_keras_adv as mka
from projects import promote, tabular
from projects.data import load

COLUMNS = {"kinds": ("columns",), "goals": ("classes", "numbers")}


@pytest.mark.slow
def test_a_file_of_texts_and_numbers_ends_as_a_model_that_takes_its_rows(
    experiment: str, tmp_path: Path
) -> None:
    rows, rng = np.arange(48), np.random.default_rng(0)
    street = np.array(["elm", "oak", "ash"])[rows % 3]
    table = pd.DataFrame({"living area": rng.normal(80, 20, 48), "street": street})
    table["price"] = 3000 * table["living area"] + 9000 * (rows % 3)
    path = tmp_path / "houses.parquet"
    table.to_parquet(path)

    tabular.main(data=str(path), target="price", epochs=1)

    client = MlflowClient()
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    claims = mka.logged_claims(runs["tabular"].info.run_id)
    held = {claim.name: claim.holds for claim in claims}
    assert held["elsewhere"]
    assert held["unseen"]
    models = {model.name: model for model in client.search_logged_models([experiment])}
    data = load(str(path), target="price", **COLUMNS)
    served = mlflow.pyfunc.load_model(models["prepared"].model_uri)
    answers = served.predict(pd.DataFrame({k: v[:, 0] for k, v in data.x_test.items()}))
    expected = mean_absolute_error(data.y_test, np.ravel(answers))
    # float32, of prices about 3e5
    assert runs["prepared"].data.metrics["final/mae"] == pytest.approx(expected, rel=1e-5)


def test_a_column_of_one_kind_alone_is_enough(tmp_path: Path) -> None:
    for name, column in {
        "x": np.arange(40.0),
        "word": np.array(["a", "b"])[np.arange(40) % 2],
    }.items():
        path = tmp_path / f"{name}.csv"
        pd.DataFrame({name: column, "y": np.arange(40) % 2}).to_csv(path, index=False)
        rows = load(str(path), target="y", **COLUMNS)

        assert tabular.net(rows, 4, prepared=True)(rows.x_test).shape == (10, 2)


@pytest.mark.slow
def test_its_model_is_promoted_on_a_table_of_numbers_alone(experiment: str, tmp_path: Path) -> None:
    table = tmp_path / "wine.csv"
    frame = load_wine(as_frame=True).frame
    frame.rename(columns=lambda name: name.replace("/", "_")).to_csv(table, index=False)
    rows = load(str(table), target="target", **COLUMNS)
    keras.utils.set_random_seed(0)
    with mka.track("tabular", log_system_metrics=False):
        model = tabular.compiled(tabular.net(rows, 16, prepared=True), rows, 0.02)
        model.fit(rows.batches(16), epochs=5, shuffle=False, verbose=0)
        done = mka.log_finished_model(model, *rows.test, name="prepared", dataset=rows.dataset)

    promote.main(
        model="promote.wine", data=str(table), target="target", inputs="columns", limit=0.7
    )

    version = MlflowClient().get_model_version_by_alias("promote.wine", "champion")
    assert version.source == done.info.model_uri
    assert "FAIL" not in "".join(version.tags.values())

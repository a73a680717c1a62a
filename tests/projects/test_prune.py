"""What a short run of `prune` leaves; test_catalogue.py holds it to what all scripts leave."""

import json
from collections.abc import Callable

import keras
import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

import mlflow_keras_adv as mka
from projects.compressing import answers_with
from projects.data import load
from projects.prune import cubic, main, targets, without_smallest

SPARSITIES = "0.8, 2:4"
NAMES = {"baseline", "80-percent", "2-of-4"}

Curves = dict[str, dict[int, float]]


def runs_of(experiment: str) -> dict[str, Run]:
    """By name; the one without a parent is `parent`."""
    found = MlflowClient().search_runs([experiment])
    return {
        run.info.run_name if "mlflow.parentRunId" in run.data.tags else "parent": run
        for run in found
    }


def layers_of(run: Run) -> dict[str, dict[str, float]]:
    table = json.loads(mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/layers.json"))
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    return {row["name"]: row for row in rows}


@pytest.mark.slow
def test_a_run_leaves_curve_table_lineage_and_picture_and_its_model_can_be_pruned(
    experiment: str, curves: Callable[[str], Curves]
) -> None:
    main(sparsities=SPARSITIES, epochs=1, max_accuracy_drop=1.0)
    runs = runs_of(experiment)
    assert set(runs) == {"parent", *NAMES}
    steps = -(-len(load().x_train) // 32)

    for name, sparsity in (("80-percent", 0.8), ("2-of-4", 0.5)):
        run = runs[name]
        curve = curves(run.info.run_id)["batch/sparsity"]
        assert sorted(curve) == list(range(1, steps + 1)), name
        assert curve[steps] == pytest.approx(sparsity, abs=1e-3)
        chosen = [row for row in layers_of(run).values() if row["target"] is not None]
        for row in chosen:
            assert row["target"] == sparsity
            assert abs(row["sparsity"] - sparsity) * row["weights"] <= 1
        assert len(chosen) == (5 if name == "80-percent" else 4)  # one channel makes no groups
        logged = {m.name: m for m in MlflowClient().search_logged_models([experiment])}
        assert logged[name].tags["parent_model_id"] == logged["baseline"].model_id
        assert "final/agreement" in run.data.metrics
        assert 0 <= run.data.metrics["final/accuracy_at_once"] <= 1

    parent = runs["parent"]
    assert parent.data.tags["winner"] in NAMES
    smallest = min(NAMES, key=lambda name: runs[name].data.metrics["final/gzip_bytes"])
    assert parent.data.tags["winner"] == smallest, "all of them are within the drop allowed"
    files = {file.path for file in MlflowClient().list_artifacts(parent.info.run_id)}
    assert {"accuracy_against_size.png", "learning_curves.png", "comparison.json"} <= files

    name = f"digits-{experiment}"
    mlflow.register_model(f"models:/{logged['2-of-4'].model_id}", name)
    MlflowClient().set_registered_model_alias(name, "champion", "1")
    with mka.track("again") as run:
        main(sparsities="0.9", epochs=1, model_uri=f"models:/{name}@champion")
    children = MlflowClient().search_runs(
        [experiment], f"tags.`mlflow.parentRunId` = '{run.run_id}'"
    )
    again = {child.info.run_name: child for child in children}
    assert again["baseline"].data.tags["parent_model_id"] == logged["2-of-4"].model_id
    before, after = (
        runs["2-of-4"].data.metrics["final/accuracy"],
        again["baseline"].data.metrics["final/accuracy"],
    )
    assert after == before
    assert again["90-percent"].data.metrics["final/sparsity"] == pytest.approx(0.9, abs=1e-3)


def test_the_smallest_weights_are_set_to_zero_and_the_curve_ends_at_the_target() -> None:
    kernel = np.array([[1.0, -4.0], [3.0, -2.0]])
    np.testing.assert_array_equal(without_smallest(kernel, 0.5), [[0, -4], [3, 0]])
    assert (cubic(0), cubic(1)) == (0, 1)


def test_a_model_answers_with_changed_kernels_and_keeps_its_own() -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, bias_initializer="ones")])
    before = model.get_weights()

    answers = answers_with(model, np.ones((4, 3)), np.zeros_like)

    np.testing.assert_array_equal(answers, np.ones((4, 2)))  # the bias alone
    for weight, own in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, own)


def test_shares_and_patterns_are_named_for_their_runs() -> None:
    assert targets("0.8,2:4 , 0.875") == {
        "80-percent": 0.8,
        "2-of-4": (2, 4),
        "87_5-percent": 0.875,
    }


@pytest.mark.parametrize("text", ["", "0.8,", "much", "2:", "1:2:3", "0", "1", "1.5", "4:4", "0:4"])
def test_what_is_no_sparsity_is_refused(text: str) -> None:
    with pytest.raises(mka.UserError, match="sparsities"):
        targets(text)

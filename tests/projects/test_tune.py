"""`mlflow run . -e tune` in a folder of its own, and what a search by several processes leaves."""

from collections.abc import Callable
from pathlib import Path

import keras
import keras_tuner
import mlflow
import pytest
from mlflow.entities import Run

from projects import tune
from projects.data import load

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:currentThread:DeprecationWarning", "ignore:getName:DeprecationWarning"
    ),
]

SMALL = {"max_epochs": 2, "max_trials": 2, "seeds": 2}


@pytest.fixture
def runs(experiment: str, client: mlflow.MlflowClient) -> Callable[[], dict[str, Run]]:
    def read() -> dict[str, Run]:
        return {run.info.run_name: run for run in client.search_runs([experiment])}

    return read


def test_the_best_is_trained_anew_and_compared_with_the_default(
    runs: Callable[[], dict[str, Run]],
    client: mlflow.MlflowClient,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    tune.main(tuner="hyperband", directory=str(tmp_path), **SMALL)

    found = runs()
    compared = {f"{name}-{number}" for name in ("best", "default") for number in range(2)}
    trials = {name for name in found if name.startswith("trial-")}
    assert found.keys() == {"tune", "search"} | compared | trials
    assert trials
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    below = {name: run.data.tags.get("mlflow.parentRunId") for name, run in found.items()}
    assert {below[name] for name in compared | {"search"}} == {found["tune"].info.run_id}
    assert {below[name] for name in trials} == {found["search"].info.run_id}
    # Hyperband's bound is said and recorded.
    bound = "Hyperband is bounded by max_epochs=2; max_trials does not count."
    assert bound in capsys.readouterr().out
    assert found["tune"].data.tags["tune.budget"] == bound
    gains = [
        found[f"best-{n}"].data.metrics["final/accuracy"]
        - found[f"default-{n}"].data.metrics["final/accuracy"]
        for n in range(2)
    ]
    metrics = found["tune"].data.metrics
    assert metrics["final/claim/tuned_gain"] == pytest.approx(sum(gains) / 2, abs=1e-12)
    assert metrics["final/accuracy"] == found["best-0"].data.metrics["final/accuracy"]
    models = client.search_logged_models([found["tune"].info.experiment_id])
    assert {model.name for model in models} == {"best", "default"}
    first = found["tune"].data.tags["mlflow.note.content"].splitlines()[0]
    assert first.startswith(f"The best of {len(trials)} trials reaches ")


def test_workers_search_under_the_same_run(
    runs: Callable[[], dict[str, Run]], tmp_path: Path
) -> None:
    tune.main(workers=2, directory=str(tmp_path), **SMALL)

    found = runs()
    search = found["search"]
    assert search.data.tags["mlflow.parentRunId"] == found["tune"].info.run_id
    for name in ("trial-000", "trial-001"):
        assert found[name].data.tags["mlflow.parentRunId"] == search.info.run_id
        assert found[name].data.tags["tuner.worker"].startswith("worker-")
    assert {run.info.status for run in found.values()} == {"FINISHED"}


def test_a_conditional_scope_counts_only_where_it_is_entered() -> None:
    hp = keras_tuner.HyperParameters()
    net = tune.Net(load("digits"))
    assert net.build(hp).count_params() == 64 * 32 + 32 + 32 * 10 + 10
    assert set(hp.values) == {"layers", "dropout", "units_1", "learning_rate", "optimizer"}
    hp.values |= {"layers": 2, "dropout": True, "optimizer": "sgd"}
    model = net.build(hp)
    assert {"units_2", "dropout_rate", "momentum"} <= set(hp.values)
    assert "units_3" not in hp.values
    assert isinstance(model.optimizer, keras.optimizers.SGD)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds == ["Flatten", "Dense", "Dropout", "Dense", "Dropout", "Dense"]

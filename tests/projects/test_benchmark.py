"""Each part runs, small, and its result is in the store; how long anything takes is not tested."""

import json
import math
from pathlib import Path
from typing import Any

import mlflow
import pytest

from projects import benchmark
from projects.measuring import loggers, searches, subjects
from projects.measuring.endurance import Delivery, Growth
from projects.measuring.prices import Price

TINY = {"epochs": 2, "steps": 5, "growth_steps": 100, "points": 1000}


@pytest.fixture
def no_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "missing", lambda name: ["wandb"])


def runs_of(client: mlflow.MlflowClient, experiment: str) -> dict[str, mlflow.entities.Run]:
    return {run.info.run_name: run for run in client.search_runs([experiment])}


def artifact(client: mlflow.MlflowClient, run: mlflow.entities.Run, name: str) -> str:
    return Path(client.download_artifacts(run.info.run_id, name)).read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("no_wandb")
def test_each_logger_is_compared_with_bare_fit(
    experiment: str,
    client: mlflow.MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delitem(subjects.MODELS, "cnn")
    monkeypatch.delitem(subjects.MODELS, "large")

    benchmark.main(what="fit", **TINY)
    printed = capsys.readouterr().out

    runs = runs_of(client, experiment)
    assert runs.keys() == {"benchmark", "mlp"}
    assert runs["mlp"].data.tags["mlflow.parentRunId"] == runs["benchmark"].info.run_id
    names = list(loggers.loggers())
    assert {"ours", "ours_layers", "mlflow_epoch", "mlflow_step", "tensorboard_step"} <= set(names)
    final = runs["mlp"].data.metrics
    for name in names:
        for key in (f"ratio_{name}_to_bare", f"{name}_step_ms", f"{name}_settling_ms"):
            assert 0 < final[f"final/{key}"] < math.inf
    assert (
        runs["benchmark"].data.metrics["final/mlp_ratio_ours_to_bare"]
        == (final["final/ratio_ours_to_bare"])
    )
    table = json.loads(artifact(client, runs["benchmark"], "benchmark.json"))
    variant, rounds = (table["columns"].index(name) for name in ("variant", "rounds"))
    assert [row[variant] for row in table["data"]] == names
    assert {row[rounds] for row in table["data"]} == {TINY["epochs"]}
    text = artifact(client, runs["benchmark"], "benchmark.md")
    assert text in printed
    assert text.count("\n") == 3 + len(names)
    assert text in runs["benchmark"].data.tags["mlflow.note.content"] + "\n"


@pytest.mark.usefixtures("no_wandb")
def test_it_is_said_that_wandb_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert "wandb_step" not in loggers.loggers()
    assert 'pip install "mlflow-keras-adv[benchmark]"' in capsys.readouterr().out


@pytest.mark.slow
def test_wandb_is_measured_where_it_is_installed(
    experiment: str, client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delitem(subjects.MODELS, "cnn")
    monkeypatch.delitem(subjects.MODELS, "large")
    monkeypatch.setattr(subjects, "loggers", lambda: {"wandb_step": loggers.wandb_step})

    benchmark.main(what="fit", **TINY)

    final = runs_of(client, experiment)["mlp"].data.metrics
    assert 0 < final["final/ratio_wandb_step_to_bare"] < math.inf


@pytest.mark.slow
def test_a_server_is_started_measured_and_stopped(
    experiment: str, client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = []

    def only_ours() -> dict[str, loggers.Logger]:
        addresses.append(mlflow.get_tracking_uri())
        return {"ours": loggers.ours}

    monkeypatch.delitem(subjects.MODELS, "cnn")
    monkeypatch.delitem(subjects.MODELS, "large")
    monkeypatch.setattr(subjects, "loggers", only_ours)

    benchmark.main(what="fit", store="http", **TINY)

    assert addresses[0].startswith("http://127.0.0.1:")
    assert runs_of(client, experiment).keys() == {"benchmark", "mlp"}


@pytest.mark.slow
def test_loop_is_compared_with_fit_and_with_the_guide(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    benchmark.main(what="loop", **TINY)

    final = runs_of(client, experiment)["loop"].data.metrics
    for comparison in ("guide_to_fit", "loop_to_fit", "loop_8_to_fit_8", "loop_8_logged_to_guide"):
        assert 0 < final[f"final/ratio_{comparison}"] < math.inf


def test_growth_is_that_of_the_whole_training(experiment: str, client: mlflow.MlflowClient) -> None:
    benchmark.main(what="growth", **TINY)

    final = runs_of(client, experiment)["growth"].data.metrics
    assert final["final/steps"] == TINY["growth_steps"] + 1  # one epoch of one step comes before
    assert 0 < final["final/time_ratio"] < math.inf
    assert math.isfinite(final["final/memory_bytes"])


def test_all_points_are_delivered(
    experiment: str, client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark.main(what="delivery", **TINY)

    final = runs_of(client, experiment)["delivery"].data.metrics
    assert final["final/points"] == TINY["points"]
    assert 0 < final["final/points_per_second"] < math.inf
    assert 0 < final["final/step_ratio"] < math.inf


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:currentThread:DeprecationWarning", "ignore:getName:DeprecationWarning"
)
def test_trials_are_compared_with_their_twins(
    experiment: str, client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "SAMPLES", 64)
    monkeypatch.setattr(searches, "TURN", 2)
    benchmark.main(what="search", trials=4, simulated_trials=20, **TINY)

    final = runs_of(client, experiment)["searches"].data.metrics
    assert final["final/trials"] == 4 - 2  # the first turn traces what the others need
    assert final["final/simulated"] == 20 - 2
    assert 0 < final["final/trial_ratio"] < math.inf
    assert final["final/growth_ms"] == pytest.approx(
        final["final/last_ms"] - final["final/first_ms"]
    )


@pytest.mark.slow
def test_what_the_record_adds_to_a_step_of_several_workers(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    benchmark.main(what="machines", **TINY)

    runs = runs_of(client, experiment)
    final = runs["machines"].data.metrics
    assert final["final/workers"] == 2
    assert final["final/collectives"] == final["final/bare_collectives"] == 2
    assert 0 < final["final/lower_quartile"] <= final["final/ratio"] < math.inf
    assert "machines_collectives" in artifact(client, runs["benchmark"], "claims.json")


@pytest.mark.filterwarnings(
    "ignore:currentThread:DeprecationWarning", "ignore:getName:DeprecationWarning"
)
def test_a_search_that_fails_does_not_leave_its_twin_waiting(experiment: str) -> None:
    class Fails(searches.Simulated):
        def on_trial_begin(self, trial: Any) -> None:
            raise MemoryError

    with pytest.raises(MemoryError):
        searches._twins(Fails, 3, 0)


def price(ratio: float) -> Price:
    return Price("cnn", "ours", "bare", ratio, ratio, ratio, 1, 1.0, 1.0, 0.0)


@pytest.mark.parametrize(("ratio", "holds"), [(1.03, True), (1.031, False)])
def test_a_claim_about_a_price_is_checked(ratio: float, holds: bool) -> None:
    assert [claim.holds for claim in benchmark.claims([price(ratio)])] == [holds]


def test_claims_about_long_trainings_are_checked() -> None:
    growing = Growth(steps=1000, step_ms=1.0, time_ratio=1.5, memory_bytes=1e9)
    waiting = Delivery(
        1000,
        1.0,
        longest_handover_ms=900.0,
        longest_step_ms=1.0,
        longest_idle_step_ms=1.0,
        step_ratio=1.0,
    )

    assert [claim.holds for claim in benchmark.claims([], growing, waiting)] == [False] * 3


@pytest.mark.parametrize(("ratio", "growth_ms", "holds"), [(1.05, 5.0, True), (1.06, 5.1, False)])
def test_claims_about_searches_are_checked(ratio: float, growth_ms: float, holds: bool) -> None:
    measured = searches.Searches(48, 1e3, ratio, 50.0, 998, 50.0, 50.0 + growth_ms, growth_ms)
    found = benchmark.claims([], searches=measured)
    assert [claim.holds for claim in found] == [holds, holds]

"""The table, the figures and the importance of what was searched, and how often they are made."""

from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
import pandas as pd
import pytest
from keras_tuner.src.engine.trial import Trial

import mlflow_keras_adv as mka
from mlflow_keras_adv.tuner import search_record
from mlflow_keras_adv.tuner.figures import (
    history_figure,
    importance_figure,
    parallel_coordinates_figure,
)
from mlflow_keras_adv.tuner.importance import MIN_TRIALS, hyperparameter_importance
from mlflow_keras_adv.tuner.search_record import REPORT_SECONDS, REPORT_SHARE, SearchRecord
from mlflow_keras_adv.tuner.trial_table import (
    active_values,
    described_space,
    trial_name,
    trials_table,
)
from tests.tuner.searches import formula, formula_search

pytestmark = pytest.mark.filterwarnings(
    "ignore:currentThread:DeprecationWarning", "ignore:getName:DeprecationWarning"
)
RNG = np.random.default_rng(0)


def searched_values(count: int) -> pd.DataFrame:
    kind = RNG.choice(["sgd", "adam"], count)
    return pd.DataFrame(
        {
            "x": RNG.uniform(size=count),
            "noise": RNG.integers(0, 9, count),
            "kind": kind,
            "momentum": np.where(kind == "sgd", RNG.uniform(size=count), np.nan),
            "flag": RNG.choice([True, False], count),
            "constant": 3,
        }
    )


def test_what_the_score_depends_on_is_important() -> None:
    values = searched_values(80)
    scores = 3 * values["x"] + (values["kind"] == "sgd")
    found = hyperparameter_importance(values, scores)
    assert sum(found.values()) == pytest.approx(1)
    assert next(iter(found)) == "x"
    assert found["x"] > 10 * found["noise"]
    assert found.get("kind", 0) + found["momentum"] > 10 * found["noise"]
    assert "constant" not in found
    assert list(found.values()) == sorted(found.values(), reverse=True)


@pytest.mark.parametrize(
    ("values", "scores"),
    [
        (searched_values(MIN_TRIALS - 1), pd.Series(range(MIN_TRIALS - 1))),
        (searched_values(20), pd.Series([1.0] * 20)),
        (pd.DataFrame({"constant": [3] * 20}), pd.Series(range(20))),
    ],
    ids=["few", "equal scores", "nothing varies"],
)
def test_where_nothing_can_be_told_there_is_no_importance(
    values: pd.DataFrame, scores: pd.Series
) -> None:
    assert hyperparameter_importance(values, scores) == {}


@pytest.mark.parametrize("direction", ["min", "max"])
def test_the_history_keeps_the_best(direction: str) -> None:
    scores = pd.Series([3.0, 1.0, 2.0, 4.0], index=[0, 1, 3, 4])
    trials, best = history_figure(scores, "val_loss", direction).axes[0].lines
    assert list(trials.get_xdata()) == [0, 1, 3, 4]
    assert list(best.get_ydata()) == ([3, 1, 1, 1] if direction == "min" else [3, 3, 3, 4])


def test_a_line_per_trial_that_breaks_where_nothing_is_active() -> None:
    values = searched_values(12)
    figure = parallel_coordinates_figure(values, values["x"], "val_loss", "min")
    axes = figure.axes[0]
    labels = [each.get_text() for each in axes.get_xticklabels()]
    assert labels == ["x", "noise", "kind", "momentum", "flag", "val_loss"]
    lines = [line for line in axes.lines if len(line.get_xdata()) == len(labels)]
    assert len(lines) == 12
    broken = sum(np.isnan(line.get_ydata()[3]) for line in lines)
    assert broken == values["momentum"].isna().sum()
    heights = np.concatenate([line.get_ydata() for line in lines])
    assert np.nanmin(heights) >= 0
    assert np.nanmax(heights) <= 1
    best = lines[-1]  # drawn last, on top
    assert best.get_ydata()[0] == min(line.get_ydata()[0] for line in lines)


def test_bars_with_their_shares() -> None:
    axes = importance_figure({"x": 0.75, "kind": 0.25}).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.25, 0.75]
    assert [text.get_text() for text in axes.texts] == ["25%", "75%"]


def test_the_space_in_words() -> None:
    hp = keras_tuner.HyperParameters()
    hp.Int("units", 16, 64, step=16)
    hp.Float("rate", 1e-4, 1e-1, sampling="log")
    hp.Boolean("dropout")
    with hp.conditional_scope("dropout", [True]):
        hp.Choice("share", [0.1, 0.5])
    hp.Fixed("depth", 3)
    assert described_space(hp) == {
        "units": "int from 16 to 64 by 16",
        "rate": "float from 0.0001 to 0.1, log",
        "dropout": "true or false",
        "share": "0.1 or 0.5 if dropout is True",
        "depth": "3",
    }
    hp.values |= {"share": 0.5, "tuner/epochs": 3, "unknown": 1}
    assert active_values(hp).keys() == {"units", "rate", "dropout", "depth", "unknown"}


def test_names_follow_the_ids() -> None:
    assert [trial_name(each) for each in ("0", "07", "1234")] == [
        "trial-000",
        "trial-007",
        "trial-1234",
    ]
    assert trial_name("a3f9c2d17e") == "trial-a3f9c2d1"


def ended_trial(oracle: Any, number: int, score: float) -> Trial:
    hp = keras_tuner.HyperParameters()
    formula(hp)
    trial = Trial(hp, trial_id=str(number), status="COMPLETED")
    trial.score = score
    oracle.trials[trial.trial_id] = trial
    oracle.start_order.append(trial.trial_id)
    oracle.end_order.append(trial.trial_id)
    return trial


def test_reports_take_a_bounded_share_of_the_time(
    experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, reported, cost = [0.0], [], 2.0
    tuner = formula_search(tmp_path)

    def report(self: SearchRecord) -> None:
        reported.append(now[0])
        now[0] += cost

    monkeypatch.setattr(search_record.SearchRecord, "_report", report)
    with mka.track("search", log_system_metrics=False) as run:
        record = SearchRecord(run, tuner, clock=lambda: now[0])
        for number in range(60):
            now[0] += 10
            record.trial_ended(ended_trial(tuner.oracle, number, float(number)))
    assert reported[0] == REPORT_SECONDS
    assert np.diff(reported).min() >= cost / REPORT_SHARE
    assert len(reported) == 3


def test_the_table_has_all_trials_and_only_active_values(tmp_path: Path) -> None:
    oracle = formula_search(tmp_path).oracle
    assert trials_table(oracle).empty
    for number, score in enumerate([2.0, 1.0]):
        ended_trial(oracle, number, score)
    table = trials_table(oracle)
    assert list(table["trial"]) == ["trial-000", "trial-001"]
    assert list(table["score"]) == [2.0, 1.0]
    assert {"x", "kind", "momentum"} <= set(table)
    assert "decay" not in table


def test_hyperparameters_that_are_called_as_columns_stay_apart(tmp_path: Path) -> None:
    oracle = formula_search(tmp_path).oracle
    names = ("trial", "status", "score", "best_step")
    for number, score in enumerate([2.0, 1.0]):
        trial = ended_trial(oracle, number, score)
        for name in names:
            trial.hyperparameters.Choice(name, ["a", "b"])
    table = trials_table(oracle)
    assert list(table["trial"]) == ["trial-000", "trial-001"]
    assert list(table["score"]) == [2.0, 1.0]
    assert set(table["status"]) == {"COMPLETED"}
    assert {f"hyperparameter {name}" for name in names} <= set(table)
    assert set(table["hyperparameter score"]) == {"a"}
    assert table.columns.is_unique

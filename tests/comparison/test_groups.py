"""Variants: runs that differ in nothing but the seed."""

import math

import pytest
from mlflow.entities import Run

from mlflow_keras_adv.comparison.groups import differing, group_by_seed
from mlflow_keras_adv.comparison.selection import Selection
from mlflow_keras_adv.comparison.table import comparison_frame, deciding_metric, sort_groups
from tests.comparison import made_runs


def run(number: int, name: str, accuracy: float | None = None, **params: object) -> Run:
    metrics = {} if accuracy is None else {"final/accuracy": accuracy}
    texts = {key: str(value) for key, value in params.items()}
    return made_runs.entity(f"{number:032x}", name, metrics, texts)


def grouped(*runs: Run, by: tuple[str, ...] = ()) -> dict[str, int]:
    return {group.name: len(group.runs) for group in group_by_seed(Selection(list(runs)), by)}


def test_seeds_are_one_variant_by_param_and_by_name() -> None:
    runs = [run(0, "adam", lr=0.1, seed=0), run(1, "adam", lr=0.1, seed=1)]
    assert grouped(*runs) == {"adam": 2}
    assert grouped(run(0, "adam-seed0"), run(1, "adam seed=1"), run(2, "sgd")) == {
        "adam": 2,
        "sgd": 1,
    }
    assert grouped(run(0, "seed1"), run(1, "seed2")) == {"seed1": 1, "seed2": 1}  # nothing is left


def test_made_up_names_count_only_where_there_is_no_seed() -> None:
    seeded = run(0, "bold-cat-12", lr=1, seed=0), run(1, "shy-fox-700", lr=1, seed=1)
    assert grouped(*seeded) == {"shy-fox-700": 2}
    assert len(grouped(run(0, "bold-cat-12", lr=1), run(1, "shy-fox-700", lr=1))) == 2


def test_variants_of_one_name_are_told_apart_by_params_then_by_id() -> None:
    assert grouped(run(0, "adam", lr=0.1), run(1, "adam", lr=0.2)) == {
        "adam (lr=0.1)": 1,
        "adam (lr=0.2)": 1,
    }
    same = [
        made_runs.entity("a" * 32, "adam", {}, tags={"technique": "optimizers"}),
        made_runs.entity("b" * 32, "adam", {}, tags={"technique": "schedules"}),
    ]
    assert set(grouped(*same)) == {"adam aaaaaaaa", "adam bbbbbbbb"}


def test_a_user_says_what_makes_a_variant() -> None:
    runs = [run(0, "a", lr=0.1, width=8), run(1, "b", lr=0.1, width=16), run(2, "a", lr=0.2)]
    assert sorted(grouped(*runs, by=("lr",)).values()) == [1, 2]
    assert grouped(*runs, by=("name",)) == {"a": 2, "b": 1}


def test_params_of_the_parent_hold_for_its_nested_runs() -> None:
    parents = {name: run(9, name, epochs=5, seed=name) for name in ("p0", "p1")}
    nested = [
        made_runs.entity(f"{n:032x}", "adam", {}, tags={"mlflow.parentRunId": name})
        for n, name in enumerate(parents)
    ]
    (group,) = group_by_seed(Selection(nested, parents=parents))
    assert len(group.runs) == 2
    assert group.params == {"epochs": "5"}


def test_mean_and_spread_and_what_is_missing() -> None:
    (group,) = group_by_seed(
        Selection([run(n, "a", each, seed=n) for n, each in enumerate((0.5, 0.7, None))])
    )
    value = group.value("final/accuracy")
    assert value is not None
    assert (value.mean, value.count) == (pytest.approx(0.6), 2)
    assert value.std == pytest.approx(math.sqrt(0.02))  # of a sample: divided by n - 1
    assert group.value("absent") is None
    (diverged,) = group_by_seed(
        Selection([run(n, "a", v, seed=n) for n, v in ((0, 0.5), (1, math.nan))])
    )
    assert math.isnan(diverged.value("final/accuracy").mean)  # one seed that diverged is seen


def test_only_what_differs_and_never_a_seed() -> None:
    params = [{"lr": "1", "seed": "0", "data.seed": "1", "epochs": "5"}, {"lr": "2", "seed": "1"}]
    assert differing(params) == ["epochs", "lr"]
    assert differing([{"lr": "1"}, {"lr": "1"}]) == []


def test_the_table_is_sorted_the_best_first_and_has_what_is_missing_last() -> None:
    runs = [run(0, "worse", 0.5), run(1, "none"), run(2, "best", 0.9), run(3, "nan", math.nan)]
    groups = group_by_seed(Selection(runs))
    score = deciding_metric(groups, {})
    assert score == "final/accuracy"
    table = comparison_frame(sort_groups(groups, score, {}))
    assert table["variant"].tolist()[:2] == ["best", "worse"]
    assert table["final/accuracy"].isna().tolist() == [False, False, True, True]
    assert list(table) == ["variant", "runs", "final/accuracy", "run_ids"]  # no ± of single runs


def test_losses_are_sorted_the_other_way_round() -> None:
    runs = [
        made_runs.entity(f"{n:032x}", name, {"final/loss": loss})
        for n, (name, loss) in enumerate({"worse": 0.5, "best": 0.1}.items())
    ]
    groups = sort_groups(group_by_seed(Selection(runs)), "final/loss", {})
    assert [group.name for group in groups] == ["best", "worse"]

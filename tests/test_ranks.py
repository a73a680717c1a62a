"""Which process of a training this is, by what launchers tell it."""

import json

import pytest

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.ranks import this_rank

PAIR = {"worker": ["a:1", "b:1"]}


def config(cluster: dict[str, list[str]], kind: str, index: int) -> str:
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_KERAS_ADV_RANK", "TF_CONFIG", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("told", "number", "by"),
    [
        ({}, 0, ""),
        ({"TF_CONFIG": config(PAIR, "worker", 0)}, 0, "TF_CONFIG"),
        ({"TF_CONFIG": config(PAIR, "worker", 1)}, 1, "TF_CONFIG"),
        ({"TF_CONFIG": config({"chief": ["c:1"], **PAIR}, "chief", 0)}, 0, "TF_CONFIG"),
        ({"TF_CONFIG": config({"chief": ["c:1"], **PAIR}, "worker", 0)}, 1, "TF_CONFIG"),
        ({"TF_CONFIG": config({"ps": ["p:1"], **PAIR}, "worker", 1)}, 0, "TF_CONFIG"),
        ({"TF_CONFIG": config(PAIR, "evaluator", 0)}, 0, "TF_CONFIG"),
        ({"TF_CONFIG": "{}"}, 0, "TF_CONFIG"),
        ({"RANK": "3", "WORLD_SIZE": "4"}, 3, "RANK"),
        ({"RANK": "3"}, 0, ""),  # a name that anybody may use
        ({"RANK": "0", "WORLD_SIZE": "1"}, 0, ""),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "8"}, 2, "SLURM_PROCID"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, 0, ""),
        (
            {"MLFLOW_KERAS_ADV_RANK": "0", "SLURM_PROCID": "2", "SLURM_NTASKS": "8"},
            0,
            "MLFLOW_KERAS_ADV_RANK",
        ),
        ({"TF_CONFIG": config(PAIR, "worker", 1), "RANK": "0", "WORLD_SIZE": "2"}, 1, "TF_CONFIG"),
    ],
    ids=str,
)
def test_a_rank_is_what_the_first_of_them_says(
    told: dict[str, str], number: int, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    rank = this_rank()
    assert (rank.number, rank.told_by, rank.is_chief) == (number, by, number == 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("MLFLOW_KERAS_ADV_RANK", "first"), ("TF_CONFIG", "{"), ("TF_CONFIG", "[1]")],
)
def test_what_cannot_be_read_is_said(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=name):
        this_rank()

"""`mlflow-keras-adv promote`, `rollback` and `history`."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient

from mlflow_keras_adv import cli
from mlflow_keras_adv.evaluation import measure_models as side_by_side
from mlflow_keras_adv.registry import Measurements
from tests.registry.conftest import log_numbers, read_numbers


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, list(arguments))


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file of samples, for models that are numbers."""

    def measure(*arguments: object) -> list[Measurements]:
        numbers = read_numbers(*arguments)
        return [Measurements(each.metrics, serve=lambda: "") for each in numbers]

    monkeypatch.setattr(side_by_side, "measure_models", measure)
    file = tmp_path / "test.npz"
    np.savez(file, x_test=np.zeros((5, 2)), y_test=np.zeros(5, int))
    return str(file)


def test_it_is_dry_until_it_is_told_yes(
    samples: str, name: str, log: Callable[..., str], client: MlflowClient
) -> None:
    uri = log(accuracy=0.8, size_bytes=10)
    options = ["--data", samples, "--min", "accuracy=0.5", "--max", "size_bytes=10"]
    dry = call("promote", name, uri, *options)
    assert dry.exit_code == 0, dry.output
    assert "pass  accuracy at least 0.5" in dry.output
    assert "Add --yes" in dry.output
    assert client.search_registered_models(f"name = '{name}'") == []
    done = call("promote", name, uri, *options, "--yes", "--reason", "first")
    assert done.exit_code == 0, done.output
    assert done.output.endswith(f"Promoted: {name}@champion is version 1 now.\n")

    worse = log(accuracy=0.7, size_bytes=1)
    refused = call("promote", name, worse, *options, "--yes")
    assert refused.exit_code == 1
    assert "FAIL  the deciding metric worse by at most 0.01" in refused.output
    options += ["--margin", "0.2", "--max-size-bytes", "5", "--yes"]
    assert call("promote", name, worse, *options).exit_code == 0
    back = call("rollback", name, "--reason", "it was worse")
    assert back.exit_code == 0
    assert "rolled back" in back.output
    lines = call("history", name).output.splitlines()
    assert [line.split("  ")[1].strip() for line in lines] == [
        "promoted",
        "refused",
        "promoted",
        "rolled back",
    ]


def test_the_best_of_a_named_experiment(
    samples: str, name: str, log: Callable[..., str], client: MlflowClient, experiment: str
) -> None:
    uri = log(accuracy=0.8)
    where = client.get_experiment(experiment).name
    os.environ.pop("MLFLOW_EXPERIMENT_ID")  # which the fixture puts back
    options = ["--data", samples, "--digest", "d1", "--same-dataset"]
    found = call("promote", name, "best-of-experiment", *options, "--experiment", where)
    assert found.exit_code == 0, found.output
    assert uri in found.output


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--min", "accuracy"], "expected METRIC=NUMBER"),
        (["--min", "accuracy=high"], "expected METRIC=NUMBER"),
        (["--margin", "-1"], "margin: received -1"),
        (["--confidence", "95"], "confidence: received 95"),
        (["--experiment", "nowhere"], "There is no experiment 'nowhere'"),
        (["--reason", "x" * 2001], "at most 2000"),
    ],
)
def test_a_value_that_is_none_is_one_line(
    samples: str, name: str, experiment: str, more: list[str], message: str
) -> None:
    said = call("promote", name, "models:/m-0", "--data", samples, *more)
    assert said.exit_code == 1
    assert message in said.stderr
    assert len(said.stderr.splitlines()) == 1


def test_log_numbers_is_what_the_store_holds(experiment: str, client: MlflowClient) -> None:
    uri = log_numbers(experiment, accuracy=0.25)
    (metric,) = client.get_logged_model(uri.removeprefix("models:/")).metrics
    assert (metric.key, metric.value, metric.dataset_digest) == ("final/accuracy", 0.25, "d1")

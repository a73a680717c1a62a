"""Models that are nothing but numbers: made in no time, promoted like any other."""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Metric
from mlflow.models import Model

from mlflow_keras_adv.registry import Measurements, Promotion, Samples, floor, promote

SAMPLES = Samples(np.zeros((100, 2)), np.zeros(100, int), "toy", "d1")
GATES = [floor("accuracy", 0.5)]


def log_numbers(
    experiment: str,
    name: str = "net",
    *,
    digest: str = "d1",
    recorded: dict[str, float] | None = None,
    **numbers: float,
) -> str:
    """Logs a model whose measurements are given, with `final/…` metrics; returns its URI."""
    client = MlflowClient()
    run = client.create_run(experiment, run_name=name, tags={"technique": "toy"}).info.run_id
    model = client.create_logged_model(experiment, name, source_run_id=run, tags={"variant": name})
    with tempfile.TemporaryDirectory() as temporary:
        (folder := Path(temporary, "data")).mkdir()
        (folder / "numbers.json").write_text(json.dumps(numbers))
        Model(run_id=run, model_id=model.model_id).save(str(Path(temporary, "MLmodel")))
        client.log_model_artifacts(model.model_id, temporary)
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    metrics = [
        Metric(
            f"final/{key}",
            value,
            int(1000 * time.time()),
            0,
            model_id=model.model_id,
            dataset_name="toy",
            dataset_digest=digest,
            run_id=run,
        )
        for key, value in (numbers if recorded is None else recorded).items()
    ]
    client.log_batch(run, metrics)
    return f"models:/{model.model_id}"


def read_numbers(folders: Sequence[Path], samples: Samples) -> list[Measurements]:
    """Measures such models."""
    return [
        Measurements(json.loads((each / "data" / "numbers.json").read_text())) for each in folders
    ]


def promoted(name: str, candidate: str, **changed: object) -> Promotion:
    arguments = {"data": SAMPLES, "gates": GATES, "measure": read_numbers} | changed
    return promote(name, candidate, **arguments)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A registered model of the test's own: the store is shared."""
    return f"toy.{request.node.name[:60].replace('[', '-').replace(']', '')}"


@pytest.fixture
def log(experiment: str) -> Callable[..., str]:
    """`log_numbers` in the experiment of the test."""

    def logged(name: str = "net", **options: object) -> str:
        return log_numbers(experiment, name, **options)

    return logged

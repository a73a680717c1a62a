"""One road for Keras models and `.tflite` files, with and without their store."""

import time
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

import mlflow_keras_adv as mka
from mlflow_keras_adv.compression.conversion import convert
from mlflow_keras_adv.flavors.keras import log_model
from mlflow_keras_adv.tracking.run import track
from tests.mlflow_server import MlflowServer

X = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")


def classifier() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


@pytest.mark.parametrize("kind", ["keras", "file"])
def test_what_a_run_was_given_before_its_model_is_the_models_too(
    experiment: str, client: MlflowClient, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    model, batch = classifier(), MlflowClient.log_batch
    file = convert(model, X).content

    def slow(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        time.sleep(1)
        return batch(self, *args, **kwargs)

    with track(log_system_metrics=False) as run:
        monkeypatch.setattr(MlflowClient, "log_batch", slow)
        run.log_params({"sparsity": 0.8})
        run.log_metrics({"val/loss": 0.5}, step=7)
        if kind == "keras":
            info = log_model(model, name="m", input_example=X[:2], step=7)
        else:
            info = mka.litert.log_model(file, name="m", step=7)
    logged = client.get_logged_model(info.model_id)
    assert logged.params == {"sparsity": "0.8"}
    assert [(each.key, each.value) for each in logged.metrics] == [("val/loss", 0.5)]


class Toy:
    """Labels that the model chooses."""

    def __init__(self, model: keras.Model) -> None:
        y = np.asarray(model(X)).argmax(axis=-1)
        self.validation = X[:10], y[:10]
        self.test = X[10:], y[10:]


@pytest.mark.slow
def test_no_model_is_lost_and_nothing_is_raised_while_the_server_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    model = classifier()
    data, file = Toy(model), convert(model, X)
    folder = tmp_path / "server"
    folder.mkdir()
    with MlflowServer(folder) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", mlflow.create_experiment("outage"))
        with mka.technique("shrink", {"seed": 3}) as technique:
            trade = mka.TradeOff(technique, data)
            with technique.variant("baseline") as first, technique.variant("file") as second:
                second.log_params({"scheme": "float32"})
                server.kill()
                trade.add(model, run=first)
                trade.add(file, run=second)
                third = mka.litert.log_model(
                    file.content, name="third", run=second, step=4, tags={"a": "b"}
                )
                second.log_metrics({"later": 1.0}, model_id=third.model_id)
                chosen = trade.choose(margin=0.1)
                server.start()
        assert third.model_id.startswith("pending-")
        client = MlflowClient()
        found = client.search_logged_models([technique.run.experiment_id])
        logged = {each.name: each for each in found}
        assert {each.name: each.status for each in found} == {
            "baseline": "READY",
            "file": "READY",
            "third": "READY",
        }
        assert logged["file"].tags["parent_model_id"] == logged["baseline"].model_id
        assert logged["file"].params == logged["third"].params == {"scheme": "float32"}
        assert {each.key: each.value for each in logged["third"].metrics} == {"later": 1.0}
        assert "final/size_bytes" in {each.key for each in logged["file"].metrics}
        assert client.get_run(technique.run.run_id).data.tags["winner"] == chosen
        uri = f"models:/{logged['third'].model_id}"
        np.testing.assert_allclose(
            mlflow.pyfunc.load_model(uri).predict(X), model(X), rtol=0, atol=1e-5
        )


def test_a_model_that_goes_to_a_journal_has_the_metrics_of_its_step(
    experiment: str, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow_keras_adv.flavors import logging as model_logging

    with track(log_system_metrics=False) as run:
        run.log_metrics({"val/loss": 0.25}, step=6)
        run.log_metrics({"val/loss": 0.5}, step=7)
        monkeypatch.setattr(model_logging, "answers", lambda uri: False)
        log_model(classifier(), name="m", input_example=X[:2], step=7)
    [logged] = client.search_logged_models([experiment])
    assert [(each.key, each.value) for each in logged.metrics] == [("val/loss", 0.5)]
    points = client.get_metric_history(run.run_id, "val/loss")
    assert sorted((each.step, each.value) for each in points) == [(6, 0.25), (7, 0.5)]

"""TradeOff: what a variant leaves, and which one is chosen."""

import json
from dataclasses import dataclass
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

import mlflow_keras_adv as mka
from mlflow_keras_adv.compression.conversion import convert
from mlflow_keras_adv.errors import UserError

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(40, 4)).astype("float32")


class Toy:
    """Labels that the first model always chooses."""

    def __init__(self, model: keras.Model) -> None:
        y = np.asarray(model(X)).argmax(axis=-1)
        self.validation = X[:20], y[:20]
        self.test = X[20:], y[20:]


@dataclass(frozen=True)
class Row:
    name: str
    sparsity: float


@dataclass(frozen=True)
class Pruned:
    model: keras.Model
    layers: tuple[Row, ...] = (Row("dense", 0.5),)
    steps: tuple[int, ...] = (1, 2)
    sparsity: tuple[float, ...] = (0.25, 0.5)


def classifier(units: int) -> keras.Model:
    keras.utils.set_random_seed(units)
    hidden = keras.layers.Dense(units, activation="relu")
    return keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(3)])


def table(run: mka.Run, name: str) -> dict[str, list[object]]:
    found = json.loads(mlflow.artifacts.load_text(f"runs:/{run.run_id}/{name}"))
    return {
        key: [row[place] for row in found["data"]] for place, key in enumerate(found["columns"])
    }


@pytest.mark.slow
def test_each_variant_is_on_record_and_the_smallest_good_one_is_chosen(
    experiment: str, client: MlflowClient, tmp_path: Path
) -> None:
    model = classifier(64)
    others = keras.models.clone_model(model)
    *hidden, kernel, bias = model.get_weights()
    others.set_weights([*hidden, -kernel, bias])  # where the one has the highest score, the lowest
    dataset = mka.Dataset("toy", "0123abcd")
    with mka.technique("shrink", {}, dataset=dataset) as technique:
        trade = mka.TradeOff(technique, Toy(model))
        made = {"baseline": model, "wrong": Pruned(others), "file": convert(model, X)}
        runs = {}
        for name, each in made.items():
            with technique.variant(name) as runs[name]:
                trade.add(each, parent="wrong" if name == "file" else None)
        assert trade.validation["baseline"] == trade.validation["file"] == 1
        assert trade.validation["wrong"] == 0
        assert trade.choose(margin=0.1) == "file"
        assert trade.smallest(0.1, ["wrong"]) == "baseline"
        assert trade.smallest(1.0, ["wrong"]) == "wrong"

    logged = {each.name: each for each in client.search_logged_models([experiment])}
    assert "parent_model_id" not in logged["baseline"].tags
    assert logged["wrong"].tags["parent_model_id"] == logged["baseline"].model_id
    assert logged["file"].tags["parent_model_id"] == logged["wrong"].model_id
    for name, each in logged.items():
        linked = {metric.key: metric for metric in each.metrics}
        assert linked["final/accuracy"].dataset_digest == "0123abcd"
        assert sum(table(runs[name], "weights.json")["numbers"]) == linked["final/parameters"].value
        assert ("final/agreement" in linked) == (name != "baseline")
        predicted = client.get_run(runs[name].run_id).data.metrics.get(
            "final/latency_predict_ms_p50"
        )
        assert (predicted is not None and predicted > 0) == (name == "baseline")
    curve = client.get_metric_history(runs["wrong"].run_id, "batch/sparsity")
    assert [(point.step, point.value) for point in curve] == [(1, 0.25), (2, 0.5)]
    assert table(runs["wrong"], "layers.json") == {"name": ["dense"], "sparsity": [0.5]}
    (point,) = client.get_metric_history(runs["file"].run_id, "val/accuracy")
    assert (point.step, point.value) == (0, 1.0)

    parent = client.get_run(technique.run.run_id)
    assert parent.data.tags["winner"] == "file"
    assert (
        parent.data.metrics["final/size_bytes"]
        == technique.finished["file"].final["size_bytes"]
        < technique.finished["baseline"].final["size_bytes"]
    )
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"accuracy_against_size.png", "comparison.json"} <= files


@pytest.mark.slow
def test_what_is_to_be_small_may_be_the_flops(experiment: str, client: MlflowClient) -> None:
    model, smaller = classifier(8), classifier(4)
    with mka.technique("slim", {}) as technique:
        trade = mka.TradeOff(technique, Toy(model), cost="flops")
        for name, each in (("baseline", model), ("smaller", smaller)):
            with technique.variant(name) as run:
                trade.add(each)
                run.log_metrics({"val/accuracy": trade.validation[name]}, step=0)
        assert trade.choose(margin=1.0) == "smaller"
    assert technique.final("flops") == {
        name: 2 * 4 * units + units + units + 2 * units * 3 + 3
        for name, units in (("baseline", 8), ("smaller", 4))
    }
    parent = client.get_run(technique.run.run_id)
    assert parent.data.metrics["final/flops"] == technique.final("flops")["smaller"]
    assert '"final/flops":"min"' in client.get_run(run.run_id).data.tags["directions.final"]
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert "accuracy_against_flops.png" in files

    unknown = pytest.raises(UserError, match="No variant has the cost 'flop'; they have: .*flops")
    with unknown, mka.technique("misspelled", {}) as technique:
        trade = mka.TradeOff(technique, Toy(model), cost="flop")
        with technique.variant("baseline"):
            trade.add(model)
        trade.choose(margin=1.0)


@pytest.mark.slow
def test_a_model_on_record_already_is_the_baseline(experiment: str, client: MlflowClient) -> None:
    teacher, student = classifier(8), classifier(4)
    data = Toy(teacher)
    with mka.technique("distill", {}) as technique:
        with technique.variant("teacher"):
            technique.finish(teacher, *data.test)
        trade = mka.TradeOff(technique, data, baseline=teacher, name="teacher")
        with technique.variant("student"):
            finished = trade.add(student)
    assert trade.validation["teacher"] == 1
    agreed = np.mean(np.asarray(student(X[20:])).argmax(axis=-1) == data.test[1])
    assert finished.final["agreement"] == finished.final["accuracy"] == agreed
    logged = {each.name: each for each in client.search_logged_models([experiment])}
    assert logged["student"].tags["parent_model_id"] == logged["teacher"].model_id

    refused = pytest.raises(ValueError, match="has to be a Keras model; got: Artifact")
    with refused, mka.technique("file", {}) as technique, technique.variant("float32"):
        mka.TradeOff(technique, data).add(convert(student, X))

"""What a short run of `quantize` leaves; test_catalogue.py holds it to what all scripts leave."""

import json

import keras
import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

import mlflow_keras_adv as mka
from mlflow_keras_adv.tflite.runtime import LiteRTModel
from projects.compressing import answers_with, net
from projects.data import load
from projects.quantize import SCHEMES, kinds, main, rounded
from tests.projects.small_net import log_small_net


def runs_of(experiment: str) -> dict[str, Run]:
    """By name; the one without a parent is `parent`."""
    found = MlflowClient().search_runs([experiment])
    return {
        run.info.run_name if "mlflow.parentRunId" in run.data.tags else "parent": run
        for run in found
    }


@pytest.mark.slow
def test_a_run_leaves_a_model_for_each_scheme_that_scores_what_the_record_says(
    experiment: str,
) -> None:
    uri = log_small_net()
    main(schemes="int8,weight_only_int4,qat", model_uri=uri, qat_epochs=1, max_accuracy_drop=1.0)
    runs = runs_of(experiment)
    names = {"float32", "int8", "weight_only_int4", "qat"}
    assert set(runs) == {"parent", "baseline", *names}
    logged = {model.name: model for model in MlflowClient().search_logged_models([experiment])}
    images = load()
    for name in names:
        metrics, model = runs[name].data.metrics, logged[name]
        assert model.tags["parent_model_id"] == logged["baseline"].model_id
        scores = mlflow.pyfunc.load_model(f"models:/{model.model_id}").predict(images.x_test)
        accuracy = np.mean(scores.argmax(axis=-1) == images.y_test)
        assert metrics["final/accuracy"] == pytest.approx(accuracy, rel=0, abs=1e-6)
        assert metrics["final/size_bytes"] == len(mka.litert.load_model(model.model_uri).content)
        linked = {metric.key: metric.value for metric in model.metrics}
        final = {key: value for key, value in metrics.items() if key.startswith("final/")}
        assert final.items() <= linked.items()
        table = json.loads(
            mlflow.artifacts.load_text(f"runs:/{runs[name].info.run_id}/weights.json")
        )
        column = table["columns"].index("numbers")
        assert sum(row[column] for row in table["data"]) == metrics["final/parameters"]
    assert runs["float32"].data.metrics["final/agreement"] == 1
    share = (
        runs["int8"].data.metrics["final/size_bytes"]
        / runs["float32"].data.metrics["final/size_bytes"]
    )
    assert share <= 0.4  # of 10,000 weights; what else is in the file stays as it is
    parent = runs["parent"]
    assert parent.data.metrics["final/claim/int8_size_share"] == pytest.approx(share)
    assert parent.data.tags["winner"] == "weight_only_int4", "the smallest within the drop allowed"
    files = {file.path for file in MlflowClient().list_artifacts(parent.info.run_id)}
    assert {"accuracy_against_size.png", "comparison.json", "claims.json"} <= files
    assert parent.data.metrics["final/latency_keras_predict_ms_p50"] > 0


@pytest.mark.slow
def test_weights_alone_are_rounded_as_the_formula_says() -> None:
    keras.utils.set_random_seed(0)
    images = load()
    model, x = net(images), images.x_test
    floats = mka.compression.convert(model, x[:20])
    for bits in (8, 4):
        scheme = getattr(mka.compression, f"weight_only_int{bits}")
        file = mka.compression.quantize(floats, scheme, min_agreement=0.0, max_difference=1.0)

        by_hand = answers_with(model, x, lambda kernel, n=bits: rounded(kernel, n))

        in_file = LiteRTModel(file.content).predict(x)
        # float32 in another order; a step of the integers would be a hundredth
        np.testing.assert_allclose(in_file, by_hand, rtol=0, atol=1e-5)


def test_schemes_are_called_by_name() -> None:
    assert kinds("all") == [*SCHEMES, "qat"]
    assert kinds("int8, qat,int8") == ["int8", "qat"]
    for text in ("", "int8,", "int7"):
        with pytest.raises(mka.UserError, match="schemes"):
            kinds(text)

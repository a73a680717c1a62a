"""A finished model on record: its numbers, its links, its lineage."""

import keras
import mlflow
import numpy as np
import pytest

import mlflow_keras_adv as mka


@pytest.mark.quick
def test_the_numbers_belong_to_the_model_the_run_and_the_dataset(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    y = np.argmax(model(x), axis=1)
    y[:10] = (y[:10] + 1) % 3  # so that the model is right on 40 of 50
    dataset = mka.Dataset("toy", "0123abcd")
    with mka.track("finished", log_system_metrics=False) as run:
        finished = mka.log_finished_model(
            model, x, y, name="toy", dataset=dataset, reference=model, parent_model_id="m-0"
        )
    assert finished.final["accuracy"] == 0.8
    assert finished.final["agreement"] == 1.0
    assert finished.final["parameters"] == 15
    assert finished.final["flops"] == 2 * 4 * 3 + 3

    data = client.get_run(run.run_id).data
    assert {f"final/{key}" for key in finished.final} == set(data.metrics)
    assert data.tags["parent_model_id"] == "m-0"
    logged = client.get_logged_model(finished.info.model_id)
    assert logged.source_run_id == run.run_id
    assert logged.tags["parent_model_id"] == "m-0"
    linked = {metric.key: metric for metric in logged.metrics}
    assert linked.keys() == data.metrics.keys()
    accuracy = linked["final/accuracy"]
    assert (accuracy.value, accuracy.step) == (0.8, 0)
    assert (accuracy.dataset_name, accuracy.dataset_digest) == ("toy", "0123abcd")


def test_what_of_the_flops_is_not_counted_is_said_on_the_run_and_on_the_model(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.UpSampling2D(2, interpolation="bilinear")]
    )
    x = np.ones((3, 4, 4, 1), np.float32)
    with mka.track("upsampled", log_system_metrics=False) as run:
        finished = mka.log_finished_model(model, x, name="up")
    assert finished.final["flops"] == 0
    said = "flops is without 1 x ResizeBilinear."
    assert client.get_run(run.run_id).data.tags["flops.final"] == said
    assert client.get_logged_model(finished.info.model_id).tags["flops.final"] == said


def test_a_model_without_classes_is_scored_by_its_maker(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    first, second = keras.Input((2,), name="first"), keras.Input((3,), name="second")
    heads = [keras.layers.Dense(1)(first), keras.layers.Dense(4)(second)]
    model = keras.Model([first, second], heads)
    x = [np.ones((5, 2), np.float32), np.ones((5, 3), np.float32)]
    with mka.track("generator", log_system_metrics=False) as run:
        finished = mka.log_finished_model(model, x, name="two", scores={"spread": 0.25})

    assert finished.final["spread"] == 0.25
    assert "accuracy" not in finished.final
    found = client.get_run(run.run_id).data.metrics
    assert found["final/spread"] == 0.25
    assert found["final/parameters"] == 3 + 16
    linked = {metric.key for metric in client.get_logged_model(finished.info.model_id).metrics}
    assert "final/spread" in linked

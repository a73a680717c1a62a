"""technique(): what a lesson leaves on record, without a training."""

import keras
import mlflow
import numpy as np
import pytest

import mlflow_keras_adv as mka

X, Y = np.zeros((4, 3), np.float32), np.array([0, 1, 0, 1])


def model() -> keras.Model:
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])


@pytest.fixture(scope="module")
def finished() -> keras.Model:
    return model()


def test_a_comparison_and_its_claims_are_on_the_parent(
    experiment: str,
    client: mlflow.MlflowClient,
    finished: keras.Model,
    capsys: pytest.CaptureFixture[str],
) -> None:
    claim = mka.Claim("gain", "what is gained", 1.0, at_least=0.5)
    dataset = mka.Dataset("zeros", "0" * 32)
    with mka.technique("toy", {"lr": 0.5}, dataset=dataset, variants=2) as technique:
        for name, accuracy in {"worse": 0.25, "better": 0.75}.items():
            with technique.variant(name, params={"kind": name}) as run:
                run.log_metrics({"val/accuracy": accuracy}, step=1)
                technique.finish(finished, X, Y, scores={"wished": accuracy})
        assert technique.compare() == "better"
        assert technique.final("wished") == {"worse": 0.25, "better": 0.75}
        assert technique.final("absent") == {}
        technique.conclude("It gains.", claim, note="A note.")

    parent = client.get_run(technique.run.run_id)
    children = client.search_runs(
        [experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    by_name = {run.info.run_name: run for run in children}
    assert set(by_name) == {"worse", "better"}
    assert {run.info.status for run in [parent, *children]} == {"FINISHED"}
    assert {run.data.tags["technique"] for run in [parent, *children]} == {"toy"}
    assert parent.data.params["lr"] == "0.5"
    assert by_name["worse"].data.params["kind"] == "worse"
    assert parent.data.tags["winner"] == "better"
    assert parent.data.metrics["final/wished"] == 0.75
    assert parent.data.metrics["final/claim/gain"] == 1
    note = f"It gains.\n\n- {claim}\n\nBest by val/accuracy: better.\n\nA note."
    assert parent.data.tags["mlflow.note.content"] == note
    said = capsys.readouterr().out
    assert said.startswith("[1/2] worse\n[2/2] better\n")
    assert f"It gains.\n- {claim}\nRun toy: " in said
    models = {each.name: each for each in client.search_logged_models([experiment])}
    assert models["worse"].source_run_id == by_name["worse"].info.run_id
    assert {each.dataset_name for each in models["worse"].metrics} == {"zeros"}


def test_each_variant_begins_at_the_seed(experiment: str) -> None:
    weights = []
    with mka.technique("seeds", {}, seed=3) as technique:
        alone = model().get_weights()
        for name in ("first", "second"):
            with technique.variant(name):
                weights.append(model().get_weights())
                np.random.random()

    assert mka.largest_difference(weights[0], weights[1]) == 0
    assert mka.largest_difference(weights[0], alone) == 0


def test_the_seed_and_the_data_are_those_given(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    data = mka.registry.Samples(X, Y, name="zeros")
    with mka.technique("given", {"seed": 5}, dataset=data) as technique:
        assert technique.seed == 5
        drawn = np.random.random()
    keras.utils.set_random_seed(5)
    assert np.random.random() == drawn
    (given,) = client.get_run(technique.run.run_id).inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("zeros", data.dataset.digest)


def test_a_variant_that_breaks_is_failed_and_so_is_its_parent(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        mka.technique("broken", {}) as technique,
        technique.variant("bad"),
    ):
        raise ZeroDivisionError
    assert technique.variants == {}
    assert {run.info.status for run in client.search_runs([experiment])} == {"FAILED"}

"""The entry point: says what to run first, promotes the first, keeps the champion, acts or not."""

import keras
import pytest
from mlflow import MlflowClient

import mlflow_keras_adv as mka
from mlflow_keras_adv.compression.conversion import convert
from mlflow_keras_adv.errors import UserError
from projects.data import load
from projects.promote import main


def test_in_an_empty_experiment_it_says_what_to_run_first(experiment: str) -> None:
    with pytest.raises(UserError, match="has 0 models .*mlflow run . -e compress"):
        main(model="promote.empty")
    (run,) = MlflowClient().search_runs([experiment])
    assert run.info.status == "FAILED"


@pytest.mark.slow
def test_the_best_becomes_champion_and_a_worse_one_does_not(experiment: str) -> None:
    client, images = MlflowClient(), load("digits")
    with mka.track("nets", log_system_metrics=False):
        for name, epochs in (("good", 3), ("worse", 1)):
            keras.utils.set_random_seed(0)
            model = keras.Sequential(
                [keras.Input(images.input_shape), keras.layers.Flatten(), keras.layers.Dense(10)]
            )
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(keras.optimizers.Adam(0.01), loss)
            model.fit(*images.train, epochs=epochs, verbose=0)
            if name == "good":
                mka.log_finished_model(model, *images.test, name=name, dataset=images.dataset)
        content = convert(model, images.x_train[:100]).content  # a file against a Keras model
        mka.log_finished_file(content, *images.test, name="worse", dataset=images.dataset)

    name = "promote.digits"
    main(model=name, limit=0.5, reason="the first")
    version = client.get_model_version_by_alias(name, "champion")
    good, worse = (
        next(m for m in client.search_logged_models([experiment]) if m.name == each)
        for each in ("good", "worse")
    )
    assert version.source == good.model_uri
    assert "FAIL" not in "".join(version.tags.values())

    main(model=name, candidate=worse.model_uri, limit=0.5, margin=0.001)
    assert client.get_model_version_by_alias(name, "champion").version == version.version
    runs = [
        r for r in client.search_runs([experiment]) if r.data.tags.get("technique") == "promote"
    ]
    outcomes = [run.data.tags["promotion"] for run in runs]
    assert outcomes == ["refused", "promoted"]  # the last first
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert runs[1].data.tags["claims"] == "hold"
    assert runs[0].data.tags["claims"] == "missed: worse"
    lost = runs[0].data.metrics["champion/accuracy"] - runs[0].data.metrics["final/accuracy"]
    assert runs[0].data.metrics["final/claim/worse"] == pytest.approx(lost)
    assert lost > 0.001
    assert [entry.reason for entry in mka.registry.history(name)] == ["the first", ""]


@pytest.mark.slow
def test_a_regressor_is_promoted_by_its_error(experiment: str) -> None:
    rows = load("diabetes", kinds=("features",), goals=("numbers",))
    with mka.track("regressors", log_system_metrics=False):
        for name, epochs in (("better", 30), ("worse", 1)):
            keras.utils.set_random_seed(0)
            model = keras.Sequential([*rows.entrance(), keras.layers.Dense(1)])
            model.compile(keras.optimizers.Adam(1.0), "mse", metrics=["mae"])
            model.fit(*rows.train, epochs=epochs, verbose=0)
            mka.log_finished_model(model, *rows.test, name=name, dataset=rows.dataset)
    name, asked = "promote.diabetes", {"data": "diabetes", "predicts": "numbers"}
    main(model=name, **asked, monitor="mae", mode="min", limit=1000.0)
    version = MlflowClient().get_model_version_by_alias(name, "champion")
    better, worse = (
        next(m for m in MlflowClient().search_logged_models([experiment]) if m.name == each)
        for each in ("better", "worse")
    )
    assert version.source == better.model_uri
    main(model=name, **asked, candidate=worse.model_uri, monitor="mae", mode="min", limit=1000.0)
    assert MlflowClient().get_model_version_by_alias(name, "champion").version == version.version
    assert [entry.what for entry in mka.registry.history(name)] == ["promoted", "refused"]

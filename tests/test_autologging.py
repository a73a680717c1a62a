"""autolog(): every fit on record, beside MLflow's own, and `fit` put back afterwards."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import mlflow
import numpy as np
import pytest

import mlflow_keras_adv as mka

X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
Y = np.zeros(32, np.int64)
Curves = Callable[[str], dict[str, dict[int, float]]]


@pytest.fixture(autouse=True)
def disabled_afterwards() -> Iterator[None]:
    yield
    mka.autolog(disable=True)
    mlflow.keras.autolog(disable=True)


def model() -> keras.Model:
    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    made.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return made


FIT: dict[str, Any] = {"x": X, "y": Y, "batch_size": 16, "epochs": 2, "verbose": 0}


@pytest.mark.parametrize("callbacks", [{}, {"callbacks": None}, {"callbacks": []}], ids=str)
def test_a_fit_without_a_run_gets_one(
    callbacks: dict[str, Any], experiment: str, client: mlflow.MlflowClient, curves: Curves
) -> None:
    mka.autolog()
    model().fit(**FIT, **callbacks)
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    found = curves(run.info.run_id)
    assert list(found["batch/loss"]) == list(found["gradient/norm"]) == [1, 2, 3, 4]
    assert callbacks.get("callbacks") in (None, [])


def test_callbacks_given_by_position(experiment: str, client: mlflow.MlflowClient) -> None:
    mka.autolog()
    stop = keras.callbacks.TerminateOnNaN()
    given = [stop]
    model().fit(X, Y, 16, 1, 0, given)
    assert given == [stop]
    (run,) = client.search_runs([experiment])
    assert "batch/loss" in run.data.metrics


def test_a_fit_that_raises_is_a_failed_run_and_leaves_the_model_alone(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    class Breaks(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            raise ValueError("broken")

    mka.autolog()
    made = model()
    with pytest.raises(ValueError, match="broken"):
        made.fit(**FIT, callbacks=[Breaks()])
    assert "train_step" not in vars(made)
    assert mlflow.active_run() is None
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FAILED"


def test_inside_a_run_it_records_there_and_a_given_logger_is_enough(
    experiment: str, client: mlflow.MlflowClient, curves: Curves
) -> None:
    mka.autolog()
    with mka.track("outer", log_system_metrics=False) as run:
        model().fit(**FIT)
        model().fit(**FIT, callbacks=[mka.MlflowLogger()])
    assert len(client.search_runs([experiment])) == 1
    assert list(curves(run.run_id)["batch/loss"]) == list(range(1, 9))


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.filterwarnings("ignore::UserWarning:mlflow")  # of its own signature inference
def test_beside_mlflow_autolog_neither_doubles_nor_disturbs_the_other(
    ours_first: bool, experiment: str, client: mlflow.MlflowClient, curves: Curves
) -> None:
    def enable_theirs() -> None:
        mlflow.keras.autolog(log_models=False, log_datasets=False)

    enable_theirs()
    with mlflow.start_run() as alone:
        model().fit(**FIT, callbacks=[])
    mlflow.keras.autolog(disable=True)

    for enable in [mka.autolog, enable_theirs] if ours_first else [enable_theirs, mka.autolog]:
        enable()
    given: list[Any] = []
    with mlflow.start_run() as both:
        model().fit(**FIT, callbacks=given)
        run = mka.current_run()
        assert run is not None
        run.flush(60)
    theirs, found = curves(alone.info.run_id), curves(both.info.run_id)
    assert list(found["batch/loss"]) == [1, 2, 3, 4]
    assert {key: list(found[key]) for key in theirs} == {key: list(theirs[key]) for key in theirs}
    mka.autolog(disable=True)
    mlflow.keras.autolog(disable=True)


def test_disable_ends_it_and_may_be_repeated(experiment: str, client: mlflow.MlflowClient) -> None:
    before, attributes = keras.Model.fit, set(vars(keras.Model))
    for _ in range(2):
        mka.autolog()
        mka.autolog()
        mka.autolog(disable=True)
        mka.autolog(disable=True)
        assert keras.Model.fit is before
        assert set(vars(keras.Model)) == attributes
    model().fit(**FIT)
    assert client.search_runs([experiment]) == []


def test_disabled_beneath_another_wrapper_it_passes_the_call_on(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    mka.autolog()
    ours = keras.Model.fit
    keras.Model.fit = lambda self, *args, **kwargs: ours(self, *args, **kwargs)
    try:
        mka.autolog(disable=True)
        model().fit(**FIT)
        assert client.search_runs([experiment]) == []
    finally:
        keras.Model.fit = ours


def test_five_fits_in_one_run_are_nested_if_asked(
    experiment: str, client: mlflow.MlflowClient, curves: Curves
) -> None:
    mka.autolog(nested=True)
    with mka.track("folds", log_system_metrics=False) as run:
        for _ in range(5):
            model().fit(**FIT)
    found = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run.run_id}'")
    assert sorted(each.info.run_name for each in found) == [f"fit-{n}" for n in range(1, 6)]
    for each in found:
        assert list(curves(each.info.run_id)["batch/loss"]) == [1, 2, 3, 4]
    assert "batch/loss" not in curves(run.run_id)

"""Mistakes that somebody makes in the first hour, and what they are told."""

import inspect
import logging
import pickle
from typing import Any

import keras
import numpy as np
import pytest

import mlflow_keras_adv as mka
from mlflow_keras_adv.callbacks.monitor import Monitor
from mlflow_keras_adv.errors import UserError

X = np.zeros((4, 2), "float32")


def net() -> keras.Model:
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])


def test_track_without_with_says_how() -> None:
    run = mka.track("mine")
    with pytest.raises(AttributeError, match=r"`with mka.track\(...\) as run:`.*`run.log_metrics`"):
        run.log_metrics({"a": 1.0})
    assert not hasattr(run, "__deepcopy__")


def test_a_single_name_is_not_taken_apart_and_an_experiment_is_no_run(experiment: str) -> None:
    from mlflow import MlflowClient

    name = MlflowClient().get_experiment(experiment).name
    for run_name in ("a", "b"):
        with mka.track(run_name, log_system_metrics=False) as run:
            run.log_metrics({"final/loss": 1.0}, step=0)
    assert len(mka.compare(experiments=name, log=False).table) == 2
    assert len(mka.compare(experiments=experiment, log=False).table) == 2  # by its id
    assert len(mka.compare(run.run_id, log=False).table) == 1
    with pytest.raises(UserError, match=r"is an experiment, not the id of a run: .*-e "):
        mka.compare(name, log=False)
    with pytest.raises(UserError, match="There is no experiment 'nope'. The store has: .*'"):
        mka.compare(experiments=["nope"], log=False)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("val/loss", "val_loss"), ("train/loss", "loss"), ("val_los", "val_loss"), ("xyz", None)],
)
def test_a_value_that_the_logs_call_otherwise_is_named(
    name: str, meant: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert Monitor(name, "min").read({"loss": 1.0, "val_loss": 2.0}, None) is None
    said = caplog.records[-1].getMessage()
    assert (f"did you mean {meant!r}?" in said) == (meant is not None)


def test_a_callback_has_to_be_an_instance() -> None:
    with pytest.raises(TypeError, match=r"the class EarlyStopping .* instance: EarlyStopping\("):
        mka.Loop(
            net(), optimizers=keras.optimizers.SGD(), callbacks=[keras.callbacks.EarlyStopping]
        )


def test_a_loop_that_records_nothing_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    loop = mka.Loop(net(), optimizers=keras.optimizers.SGD(), verbose=0)
    with caplog.at_level(logging.WARNING):
        for _ in loop.epochs(2):
            for _ in loop.batches([X]):
                pass
    said = [each for each in caplog.messages if "has recorded no value" in each]
    assert len(said) == 1
    assert "loop.record(loss=loss)" in said[0]


def test_a_model_that_is_logged_outside_of_a_run_says_so(
    experiment: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        mka.log_model(net(), name="alone", input_example=X)
    assert any("'alone' belongs to no run" in each for each in caplog.messages)
    caplog.clear()
    with caplog.at_level(logging.WARNING), mka.track("mine"):
        mka.log_model(net(), name="owned", input_example=X)
    assert not any("belongs to no run" in each for each in caplog.messages)


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda: mka.track("a", parms={}), "track() received the keyword 'parms', .*'params'"),
        (lambda: mka.MlflowLogger(class_name=[]), "did you mean 'class_names'"),
        (lambda: mka.MlflowLogger(log_every=5), "MlflowLogger() .* have. It has: run, class_names"),
        (
            lambda: mka.compression.prune(net(), (X, X[:, :1]), loss="mse", sparcity=0.5),
            "did you mean 'sparsity'",
        ),
        (lambda: mka.registry.promote("a", "b", candidat="c"), "did you mean 'candidate'"),
        (lambda: mka.litert.log_model(b"", nam="c"), "did you mean 'name'"),
        (lambda: mka.technique("a", {}, variant=2), "did you mean 'variants'"),
        (lambda: mka.Loop(net(), optimizer="sgd"), "did you mean 'optimizers'"),
    ],
)
def test_a_wrong_keyword_is_answered_with_the_right_one(call: Any, meant: str) -> None:
    with pytest.raises(TypeError, match=meant.replace("()", r"\(\)")) as told:
        call()
    assert told.value.__suppress_context__


PUBLIC = [
    pytest.param(getattr(package, name), id=f"{package.__name__}.{name}")
    for package in (mka, mka.compression, mka.registry)
    for name in package.__all__
    if inspect.isfunction(getattr(package, name)) or inspect.isclass(getattr(package, name))
]


@pytest.mark.parametrize("public", PUBLIC)
def test_every_public_callable_answers_and_is_found_by_pickle(public: Any) -> None:
    own = inspect.isfunction(public) or inspect.isfunction(vars(public).get("__init__"))
    takes = inspect.signature(public).parameters.values() if own else ()
    protocol = getattr(public, "_is_protocol", False)
    if own and not protocol and not any(each.kind is each.VAR_KEYWORD for each in takes):
        with pytest.raises(TypeError, match="received the keyword 'zzzz', which it does not have"):
            public(zzzz=1)
    assert pickle.loads(pickle.dumps(public)) is public

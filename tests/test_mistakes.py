"""Mistakes that somebody makes in the first hour, and what they are told."""

import inspect
import logging
import pickle
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from mlflow import MlflowClient

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
        (lambda: mka.MlflowLogger(class_name=[]), "Did you mean 'class_names'"),
        (lambda: mka.MlflowLogger(log_every=5), "MlflowLogger() .* have. It has: run, class_names"),
        (
            lambda: mka.compression.prune(net(), (X, X[:, :1]), loss="mse", sparcity=0.5),
            "Did you mean 'sparsity'",
        ),
        (lambda: mka.registry.promote("a", "b", candidat="c"), "Did you mean 'candidate'"),
        (lambda: mka.litert.log_model(b"", nam="c"), "Did you mean 'name'"),
        (lambda: mka.technique("a", {}, variant=2), "Did you mean 'variants'"),
        (lambda: mka.Loop(net(), optimizer="sgd"), "Did you mean 'optimizers'"),
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


# What provokes each row of docs/mistakes.md, by its first cell.
Provoked = Callable[[], Any]
LABELS = np.array([0, 1, 0, 1])


def tracked(name: str = "mine") -> mka.Run:
    with mka.track(name, log_system_metrics=False) as run:
        pass
    return run


def opened_in(uri: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        tracked()


def opened_with(variable: str, value: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
        patch.setenv(variable, value)
        tracked()


def in_a_deleted_experiment() -> None:
    client = MlflowClient()
    experiment_id = client.create_experiment(f"deleted-{time.monotonic_ns()}")
    client.delete_experiment(experiment_id)
    opened_with("MLFLOW_EXPERIMENT_ID", experiment_id)


def twice() -> None:
    block = mka.track("x", log_system_metrics=False)
    for _ in range(2):
        with block:
            pass


def in_a_run(call: Callable[[mka.Run], Any]) -> Provoked:
    def provoke() -> None:
        with mka.track("mine", log_system_metrics=False) as run:
            call(run)

    return provoke


def loop() -> mka.Loop:
    return mka.Loop(net(), optimizers=keras.optimizers.SGD(), verbose=0)


def unrecorded() -> None:
    unused = loop()
    for _ in unused.epochs(1):
        list(unused.batches([X]))


def loaded_by_run_id() -> None:
    with mka.track("mine", log_system_metrics=False) as run:
        mka.log_model(net(), name="m", input_example=X)
    mka.load_model(run.run_id)


def loaded_by_alias() -> None:
    client = MlflowClient()
    try:
        client.create_registered_model("digits")
        mka.load_model("models:/digits@champion")
    finally:
        client.delete_registered_model("digits")


def promoted(candidate: Any, gates: Any) -> Provoked:
    samples = mka.registry.Samples(X, LABELS)
    return lambda: mka.promote("digits", candidate, data=samples, gates=gates)


def compiled() -> keras.Model:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


FLOOR = mka.registry.floor("accuracy", 0.9)

PROVOKED: dict[str, Provoked] = {
    '`run = mka.track("x")`, then `run.log_metrics(…)`': lambda: mka.track("x").log_metrics,
    '`mka.track("x", parms={"lr": 0.1})`': lambda: mka.track("x", parms={"lr": 0.1}),
    '`mka.track("x", params=["lr", 0.1])`': lambda: mka.track("x", params=["lr", 0.1]),
    "`mka.track(run)`": lambda: mka.track(tracked()),
    '`mka.track(run_id="my run")`': lambda: mka.track(run_id="my run").__enter__(),
    "the same block twice: `with block:` and again `with block:`": twice,
    '`run.log_metrics({"loss": "high"})`': in_a_run(lambda run: run.log_metrics({"loss": "high"})),
    "`run.log_metrics(…)` after the block": lambda: tracked().log_metrics({"loss": 1.0}),
    "`MLFLOW_TRACKING_URI=http//localhost:5000`": lambda: opened_in("http//localhost:5000"),
    "`MLFLOW_TRACKING_URI=sqlite://mlflow.db`": lambda: opened_in("sqlite://mlflow.db"),
    "a server that is not there": lambda: opened_in("http://127.0.0.1:9"),
    "a folder that may not be written": lambda: opened_in("sqlite:////proc/mlflow.db"),
    "an experiment that was deleted": in_a_deleted_experiment,
    "`MLFLOW_EXPERIMENT_ID=digits`": lambda: opened_with("MLFLOW_EXPERIMENT_ID", "digits"),
    "`fit(…, callbacks=[mka.MlflowLogger])`": lambda: compiled().fit(
        X, LABELS, callbacks=[mka.MlflowLogger], verbose=0
    ),
    "`mka.MlflowLogger(log_every=5)`": lambda: mka.MlflowLogger(log_every=5),
    '`monitor="val/loss"`, as the UI spells it': lambda: Monitor("val/loss", "min").read(
        {"loss": 1.0, "val_loss": 2.0}, None
    ),
    '`mka.Loop(model, optimizers="sgd")`': lambda: mka.Loop(net(), optimizers="sgd"),
    "a `Loop` without `loop.record(…)`": unrecorded,
    "`loop.run(…)` or `loop.batches(…)` outside of the epochs": lambda: next(loop().batches([X])),
    "`mka.log_model(…)` outside of a run": lambda: mka.log_model(
        net(), name="alone", input_example=X
    ),
    '`mka.log_model(model, name="m")`': in_a_run(lambda _: mka.log_model(net(), name="m")),
    '`mka.log_model(model, name="my/model", …)`': lambda: mka.log_model(
        net(), name="my/model", input_example=X
    ),
    '`mka.log_finished_model(run, model, name="m")`': in_a_run(
        lambda run: mka.log_finished_model(run, net(), name="m")
    ),
    "`mka.log_finished_model(…)` outside of a run": lambda: mka.log_finished_model(
        net(), X, LABELS, name="m"
    ),
    '`mka.log_finished_model(model, y, x, name="m")`': in_a_run(
        lambda _: mka.log_finished_model(compiled(), LABELS, X, name="m")
    ),
    "`mka.load_model(run.run_id)`": loaded_by_run_id,
    '`mka.load_model("models:/digits@champion")` without that alias': loaded_by_alias,
    '`mka.promote("digits", model, …)`': promoted(net(), [FLOOR]),
    '`mka.promote(…, gates=registry.floor("accuracy", 0.9))`': promoted("models:/m-1", FLOOR),
    '`mka.compression.quantize(model, "int8", x)`': lambda: mka.compression.quantize(
        net(), "int8", X
    ),
    "`mka.compression.prune(model, x, y)`": lambda: mka.compression.prune(net(), X, LABELS),
    "`sparsity=80`": lambda: mka.compression.prune(compiled(), (X, LABELS), sparsity=80),
    "a model that has no weights yet": lambda: mka.compression.prune(
        keras.Sequential([keras.layers.Dense(2)]), (X, LABELS), loss="mse"
    ),
    '`mka.compare("Default")`': lambda: mka.compare("Default"),
    '`mka.compare(experiments="nope")`': lambda: mka.compare(experiments="nope"),
    "`mka.compare([run])`": lambda: mka.compare([tracked()]),
    "`mka.log_comparison([a, b])`": lambda: mka.log_comparison([tracked(), tracked()]),
    '`mka.curve(run, "val/loss")`': lambda: mka.curve(tracked(), "val/loss"),
    "`mka.track_search(model)`": lambda: mka.track_search(net()).__enter__(),
}
PAGE = Path(__file__).parent.parent / "docs" / "mistakes.md"
ROWS = re.findall(r"^\| (?!You wrote)(.+?) \| (.+?) \| (.+?) \|$", PAGE.read_text(), re.MULTILINE)


def test_the_page_of_mistakes_has_a_row_for_each() -> None:
    assert [mistake for mistake, _, _ in ROWS] == list(PROVOKED)


@pytest.mark.parametrize(("mistake", "says"), [row[:2] for row in ROWS])
def test_the_page_says_what_the_package_says(
    mistake: str, says: str, experiment: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        try:
            PROVOKED[mistake]()
            told = caplog.messages
        except Exception as error:
            told = [str(error)]
    sentence = ".*".join(map(re.escape, says.strip("` ").split("…")))
    found = [each for each in told if re.fullmatch(sentence, " ".join(each.split()))]
    assert found, told

"""Whatever goes wrong in ours, a training goes on as it would have without us, and it is said."""

import logging
from collections.abc import Callable
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_keras_adv as mka
from mlflow_keras_adv.callbacks.base import RunCallback
from mlflow_keras_adv.callbacks.checkpoints import Checkpoints
from mlflow_keras_adv.callbacks.epoch_keys import EpochKeys
from mlflow_keras_adv.callbacks.layer_norms import LayerNorms
from mlflow_keras_adv.callbacks.mlflow_logger import MlflowLogger, _Record
from mlflow_keras_adv.callbacks.predictions import Predictions
from mlflow_keras_adv.callbacks.stall_alert import StallAlert
from mlflow_keras_adv.tracking.run import Run
from mlflow_keras_adv.tracking.writer import RunWriter
from mlflow_keras_adv.training.fit_probe import FitProbe
from mlflow_keras_adv.training.observe import OptimizerProbe
from mlflow_keras_adv.training.recorder import StepRecorder
from mlflow_keras_adv.training.session import TrainingSession
from tests.differential import PlainLoop

X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 3, 32)
MODES = [{"jit_compile": False}, {"run_eagerly": True}, {"jit_compile": True}]


class OurFaultError(Exception):
    pass


def hooks_of(callback: type) -> list[tuple[type, str]]:
    return [(callback, name) for name in vars(callback) if name.startswith("on_")]


# Each place of ours that a training passes through: looks, tables, sessions, hooks, the record.
PLACES = [
    *((StepRecorder, name) for name in ("advance", "write", "write_all", "read")),
    *((OptimizerProbe, f"_look_at_{what}") for what in ("clipping", "update", "scaling")),
    *((OptimizerProbe, name) for name in ("attach", "begin_row", "observe_layers")),
    *((FitProbe, f"_look_at_{what}") for what in ("step", "loss", "compile")),
    *((FitProbe, name) for name in ("attach", "choose_train_function", "_made_anew")),
    (FitProbe, "_record_returned"),
    *(
        (TrainingSession, name)
        for name in ("advance", "steps_begin", "read", "follow", "observe_fit", "observe_layers")
    ),
    *((TrainingSession, name) for name in ("subscribe", "unsubscribe", "batches_counted")),
    *((_Record, name) for name in ("epoch_begin", "epoch_end", "_receive", "_describe", "finish")),
    (_Record, "_leave_session"),
    *((EpochKeys, name) for name in ("see_steps", "see_validation", "values")),
    *((Run, name) for name in ("log_metrics", "log_series", "log_params", "set_tags", "log_text")),
    *((Run, name) for name in ("log_artifact", "log_table", "log_image", "resume_after")),
    (RunWriter, "hold"),
]
HOOKS = [
    hook
    for callback in (RunCallback, MlflowLogger, LayerNorms, Predictions, Checkpoints, StallAlert)
    for hook in hooks_of(callback)
]
PLACES += [
    (callback, name)
    for callback in (LayerNorms, Predictions, Checkpoints, StallAlert)
    for name in ("begin", "end", "receive")
    if name in vars(callback)
]


def train(callbacks: list[Any], **compiled: Any) -> tuple[Any, ...]:
    """Weights, optimizer variables and history of a small training with clipping and dropout."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.5), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01, clipnorm=0.5))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], **compiled)
    arguments = {"batch_size": 8, "epochs": 2, "verbose": 0, "validation_data": (X, Y)}
    history = model.fit(X, Y, **arguments, callbacks=callbacks).history
    attributes = set(vars(model)) | set(vars(optimizer)) | set(vars(optimizer.inner_optimizer))
    return (
        [np.array(each) for each in [*model.variables, *optimizer.variables]],
        history,
        attributes,
    )


PLAIN: dict[str, Any] = {}


def same_as_plain(callbacks: list[Any], **compiled: Any) -> None:
    key = str(compiled)
    if key not in PLAIN:
        PLAIN[key] = train([], **compiled)
    variables, history, attributes = train(callbacks, **compiled)
    for ours, theirs in zip(variables, PLAIN[key][0], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert history == PLAIN[key][1]
    assert attributes == PLAIN[key][2]


CALLBACKS: dict[type, Callable[[], Any]] = {
    MlflowLogger: mka.MlflowLogger,
    LayerNorms: mka.LayerNorms,
    Predictions: lambda: mka.Predictions(X, Y),
    Checkpoints: lambda: mka.Checkpoints("loss"),
    StallAlert: mka.StallAlert,
}


def callbacks_of(owner: type) -> list[Any]:
    """Those that pass through a place: of a run all, of a callback itself and the logger."""
    if owner in (Run, RunWriter):
        kinds = list(CALLBACKS)
    elif owner in CALLBACKS:
        kinds = list(dict.fromkeys([MlflowLogger, owner]))
    else:
        kinds = [MlflowLogger, LayerNorms]
    return [CALLBACKS[kind]() for kind in kinds]


def loop(made: Callable[[Any, Any], Any]) -> list[Any]:
    """Weights after a loop of one's own."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    optimizer = keras.optimizers.SGD(0.1, momentum=0.5)
    loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    driver = made(model, optimizer)

    @tf.function
    def step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = loss_fn(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        driver.record(loss=loss)

    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    for _ in driver.epochs(2):
        for x, y in driver.batches(data):
            step(x, y)
        driver.run(step, data)
    return [np.array(each) for each in [*model.variables, *optimizer.variables]]


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (owner, name)
        for owner, name in PLACES
        if owner not in (FitProbe, Predictions, Checkpoints, StallAlert)
    ]
    + [(TrainingSession, name) for name in ("advance_on_host", "steps_end", "__init__", "close")],
    ids=lambda each: getattr(each, "__name__", each),
)
def test_a_loop_goes_on_whatever_fails(
    owner: type, name: str, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "loop" not in PLAIN:
        PLAIN["loop"] = loop(lambda model, optimizer: PlainLoop())

    def fails(*arguments: Any, **named: Any) -> Any:
        raise OurFaultError("ours")

    def made(model: Any, optimizer: Any) -> mka.Loop:
        callbacks = [mka.MlflowLogger(), mka.LayerNorms()]
        return mka.Loop(model, optimizers=optimizer, callbacks=callbacks, verbose=0)

    with mka.track("broken", log_system_metrics=False), monkeypatch.context() as broken:
        broken.setattr(owner, name, fails)
        found = loop(made)
    for ours, theirs in zip(found, PLAIN["loop"], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_nothing_fails_and_nothing_differs(mode: dict[str, bool], experiment: str) -> None:
    with mka.track("whole", log_system_metrics=False):
        same_as_plain(callbacks_of(Run), **mode)


# What is traced into the step behaves in its own way in each mode; the rest runs beside it.
IN_THE_STEP = {"advance", "write", "write_all", "_record_returned"}
CASES = [
    (owner, name, mode)
    for owner, name in [*PLACES, *HOOKS]
    for mode in (MODES if name in IN_THE_STEP or name.startswith("_look_at") else MODES[:1])
]


@pytest.mark.parametrize(
    ("owner", "name", "mode"), CASES, ids=[f"{o.__name__}.{n}-{m}" for o, n, m in CASES]
)
def test_a_training_goes_on_whatever_fails(
    owner: type,
    name: str,
    mode: dict[str, bool],
    experiment: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    called = []

    def fails(*arguments: Any, **named: Any) -> Any:
        called.append(name)
        raise OurFaultError("ours")

    with (
        mka.track("broken", log_system_metrics=False) as run,
        monkeypatch.context() as broken,
        caplog.at_level(logging.WARNING, "mlflow_keras_adv"),
    ):
        if (owner, name) in HOOKS:  # inside of the hook, as its author's mistake would be
            (cell,) = (
                cell
                for cell in vars(owner)[name].__closure__
                if getattr(cell.cell_contents, "__name__", "") == name
            )
            broken.setattr(cell, "cell_contents", fails)
        else:
            broken.setattr(owner, name, fails)
        same_as_plain(callbacks_of(owner), **mode)
    if called:
        said = [record.getMessage() for record in caplog.records]
        assert any("OurFaultError" in each for each in said), "a failure that nobody hears of"
    run_id = run.run_id
    assert mlflow.MlflowClient().get_run(run_id).info.status == "FINISHED"
    assert mlflow.active_run() is None

"""FitProbe: what an observed `fit` compiles, and what it leaves behind."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import mlflow_keras_adv as mka

X = np.random.default_rng(0).normal(size=(96, 8)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 3, 96)
Curves = Callable[[str], dict[str, dict[int, float]]]


class Traced(keras.losses.Loss):
    """Counts how often the step that it is part of was traced."""

    def __init__(self) -> None:
        super().__init__()
        self.traces = 0

    def call(self, y_true: Any, y_pred: Any) -> Any:
        self.traces += 1
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)


def compiled(**arguments: Any) -> tuple[keras.Model, Traced]:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    loss = Traced()
    model.compile(keras.optimizers.SGD(0.1), loss, **arguments)
    return model, loss


def fit(model: keras.Model, *others: Any, batch_size: int = 16) -> None:
    arguments = {"batch_size": batch_size, "shuffle": False, "verbose": 0}
    model.fit(X, Y, **arguments, callbacks=[mka.MlflowLogger(), *others])


@pytest.mark.parametrize(
    "arguments", [{}, {"jit_compile": True}, {"steps_per_execution": 4}], ids=str
)
def test_a_second_fit_traces_nothing_and_is_recorded_as_the_first(
    arguments: dict[str, Any], experiment: str, curves: Curves
) -> None:
    model, loss = compiled(**arguments)
    plain, _ = compiled(**arguments)
    with mka.track("again", log_system_metrics=False) as run:
        fit(model)
        assert "train_step" not in vars(model)
        traces = loss.traces
        fit(model)
        fit(model)
    assert loss.traces == traces
    for _ in range(3):
        plain.fit(X, Y, batch_size=16, shuffle=False, verbose=0)
    for ours, theirs in zip(model.variables, plain.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    found = curves(run.run_id)
    for key in ("batch/loss", "gradient/norm", "optimizer/learning_rate"):
        assert list(found[key]) == list(range(1, 19))


def test_what_has_changed_is_traced_anew(experiment: str, curves: Curves) -> None:
    model, loss = compiled()
    with mka.track("changed", log_system_metrics=False) as run:
        fit(model)
        model.optimizer = keras.optimizers.SGD(0.2)  # has a table of its own
        fit(model)
        traces = loss.traces
        model.compile(keras.optimizers.SGD(0.3), loss)
        fit(model)
        assert loss.traces > traces
    rates = list(curves(run.run_id)["optimizer/learning_rate"].values())
    np.testing.assert_array_equal(rates, np.repeat(np.float32([0.1, 0.2, 0.3]), 6))


def test_a_new_shape_is_recorded_by_the_same_function(experiment: str, curves: Curves) -> None:
    model, loss = compiled()
    with mka.track("shapes", log_system_metrics=False) as run:
        fit(model, batch_size=16)
        traces = loss.traces
        fit(model, batch_size=32)
        assert loss.traces > traces
    found = curves(run.run_id)
    assert list(found["batch/loss"]) == list(found["gradient/norm"]) == list(range(1, 10))


def test_layers_are_observed_when_they_are_asked_for(experiment: str, curves: Curves) -> None:
    model, loss = compiled()
    with mka.track("layers", log_system_metrics=False) as run:
        fit(model)
        fit(model, mka.LayerNorms(as_metrics=True))
        traces = loss.traces
        fit(model)
        fit(model, mka.LayerNorms(as_metrics=True))
        assert loss.traces == traces
    found = curves(run.run_id)
    assert list(found["batch/loss"]) == list(range(1, 25))
    (layer,) = [key for key in found if key.startswith("gradient/layer/")]
    assert list(found[layer]) == [*range(7, 13), *range(19, 25)]


def test_between_two_observed_fits_the_model_trains_unobserved(
    experiment: str, curves: Curves
) -> None:
    model, _ = compiled()
    with mka.track("between", log_system_metrics=False) as run:
        fit(model)
        model.fit(X, Y, batch_size=16, verbose=0)
        fit(model)
    assert list(curves(run.run_id)["batch/loss"]) == list(range(1, 13))
    assert int(model.optimizer.iterations) == 18

"""best_of, after real fits of real callbacks."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from mlflow_keras_adv.callbacks.best import best_of

X = np.ones((4, 1), np.float32)
Y = np.zeros((4, 1), np.float32)


class Says(keras.callbacks.Callback):
    """Puts given values into the logs, ahead of the callbacks behind it."""

    def __init__(self, **values: list[float]) -> None:
        super().__init__()
        self.values = values

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs |= {name: values[epoch] for name, values in self.values.items()}


def fitted(epochs: int, *callbacks: Any) -> keras.Model:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(X, Y, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return model


def stopping(monitor: str = "score", patience: int = 2, **rest: Any) -> Any:
    return keras.callbacks.EarlyStopping(monitor, patience=patience, mode="max", **rest)


@pytest.mark.quick
def test_the_epoch_that_was_restored_and_its_value() -> None:
    callback = stopping(restore_best_weights=True)
    weights: list[Any] = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: weights.append(note.model.get_weights())
    )
    model = fitted(9, Says(score=[1, 3, 2, 2.5, 9, 9, 9, 9, 9]), callback, note)
    assert best_of([callback]) == {
        "final/best/score": 3,
        "final/best_epoch": 2,
        "final/restored_epoch": 2,
        "final/stopped_epoch": 4,
    }
    for now, then in zip(model.get_weights(), weights[1], strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_training_that_was_not_stopped_is_restored_all_the_same() -> None:
    callback = stopping(restore_best_weights=True, patience=5)
    fitted(3, Says(score=[3, 1, 2]), callback)
    assert best_of(callback) == {
        "final/best/score": 3,
        "final/best_epoch": 1,
        "final/restored_epoch": 1,
    }


def test_without_restoring_the_best_epoch_is_known_but_not_restored() -> None:
    callback = stopping(start_from_epoch=1)
    fitted(5, Says(score=[9, 1, 2, 1, 1]), callback)
    assert best_of([[callback], Says()]) == {
        "final/best/score": 2,
        "final/best_epoch": 3,
        "final/stopped_epoch": 5,
    }


@pytest.mark.filterwarnings("ignore:Early stopping conditioned on metric")
def test_nothing_is_known_before_training_or_of_a_value_that_never_came() -> None:
    assert best_of(None) == best_of([]) == best_of([stopping()]) == {}
    absent = stopping("absent", restore_best_weights=True)
    late = stopping("loss", restore_best_weights=True, start_from_epoch=9)
    fitted(2, absent, late)
    assert best_of([absent, late]) == {}


def test_several_callbacks_and_the_best_checkpoint(tmp_path: Path) -> None:
    first = stopping("a", patience=9, restore_best_weights=True)
    second = stopping("b", patience=9, restore_best_weights=True)
    saved = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", "c", mode="min", save_best_only=True
    )
    every = keras.callbacks.ModelCheckpoint(tmp_path / "each.keras", "a", mode="min")
    values = Says(a=[1, 2, 1], b=[1, 2, 3], c=[5, 4, 6])
    fitted(3, values, first, second, saved, every)
    members = keras.callbacks.CallbackList([values, first, second, saved, every])
    assert best_of(members) == {
        "final/best/a": 2,
        "final/best/b": 3,
        "final/best/c": 4,
        "final/best_epoch": 2,
        "final/restored_epoch": 3,  # the second one is asked last, and has the last word
    }


@pytest.mark.parametrize("epochs", [2, 6])
def test_tf_keras_restores_only_where_it_stops(
    epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    tf_keras = pytest.importorskip("tf_keras")

    class SaysToo(tf_keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["score"] = [3, 1, 2, 1, 1, 1][epoch]

    callback = tf_keras.callbacks.EarlyStopping(
        "score", patience=2, mode="max", restore_best_weights=True
    )
    assert best_of([callback]) == {}
    model = tf_keras.Sequential([tf_keras.layers.Dense(1, input_shape=(1,))])
    model.compile("sgd", "mse")
    model.fit(X, Y, epochs=epochs, verbose=0, callbacks=[SaysToo(), callback])
    expected = {"final/best/score": 3, "final/best_epoch": 1}
    if epochs > 2:
        expected |= {"final/stopped_epoch": 3, "final/restored_epoch": 1}
    assert best_of([callback]) == expected

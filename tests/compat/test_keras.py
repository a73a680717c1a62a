"""A `.tflite` file is the same, whether Keras writes it or, before 3.13, we do."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from mlflow_keras_adv.compat import keras as compat
from mlflow_keras_adv.tflite.runtime import LiteRTModel


def functional() -> keras.Model:
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    return keras.Model({"a": a, "b": b}, keras.layers.Dense(3)(keras.layers.Add()([a, b])))


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.dense(x)


@pytest.mark.parametrize("kind", ["functional", "subclassed"])
def test_a_file_of_an_older_keras_answers_as_the_model(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    x: Any = rng.normal(size=(2, 4)).astype(np.float32)
    model = functional() if kind == "functional" else Subclassed()
    if kind == "functional":
        x = {"a": x, "b": 2 * x}
    expected = np.asarray(model(x))
    monkeypatch.setattr(keras, "__version__", "3.12.4")
    monkeypatch.setattr(model, "export", None)
    compat.export_litert(model, tmp_path / "older.tflite", None, x)

    runner = LiteRTModel((tmp_path / "older.tflite").read_bytes())
    names = [tensor.name for tensor in runner.inputs]
    assert kind != "functional" or set(names) == {"a", "b"}
    given = x if kind == "functional" else {names[0]: x}
    answer = runner.predict(given)
    # One matrix product in float32, summed in another order at most.
    np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-6)


def test_an_optimizer_of_keras_sums_over_replicas_what_it_has_clipped() -> None:
    calls: list[str] = []

    class Noted(keras.optimizers.SGD):
        def _clip_gradients(self, grads: Any) -> Any:
            calls.append("clips")
            return super()._clip_gradients(grads)

        def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
            summed = super()._all_reduce_sum_gradients(grads_and_vars)
            calls.append(f"sums {len(list(summed))}")
            return summed

    weight = keras.Variable(np.ones(2, np.float32))
    optimizer = Noted(0.1)
    optimizer.apply([keras.ops.ones(2)], [weight])
    assert calls == ["clips", "sums 1"]
    assert compat.sums_after_clipping(optimizer)
    tf_keras = pytest.importorskip("tf_keras", reason="comes with the extra `compression`")
    assert not compat.sums_after_clipping(tf_keras.optimizers.SGD(0.1))

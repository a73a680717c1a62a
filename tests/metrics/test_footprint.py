import gzip
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from mlflow_keras_adv.metrics.footprint import (
    footprint,
    latency_ms,
    sparsity,
    weight_rows,
)
from mlflow_keras_adv.serialization.saving import save_without_optimizer

X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
Y = np.arange(12) % 3


def classifier(seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(3),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_keys_are_those_of_the_final_section() -> None:
    model = classifier()
    sizes = ["parameters", "nonzeros", "sparsity", "size_bytes", "gzip_bytes"]
    latencies = [
        *("latency_ms_p50", "latency_ms_p95"),
        *("latency_batch_ms_p50", "latency_batch_ms_p95"),
    ]
    measured = footprint(model, X, repeats=2)
    assert set(measured) == {*sizes, *latencies, "flops"}
    assert all(type(value) is float for value in measured.values())


def test_parameters_and_sparsity_equal_those_counted_by_hand() -> None:
    model = classifier()
    kernel, bias = model.layers[0].get_weights()
    kernel[:, :2] = 0  # 4 inputs × 2 units
    kernel[0, 2] = -0.0
    kernel[1, 2] = np.nan
    model.layers[0].set_weights([kernel, bias])  # biases and statistics are zeros that do not count
    measured = footprint(model, X, repeats=1)
    assert measured["parameters"] == (4 * 5 + 5) + 4 * 5 + (5 * 3 + 3)
    ones = 5 + 5  # scale and variance; biases, shift and mean are 0
    assert measured["nonzeros"] == (4 * 5 - 9) + 5 * 3 + ones
    assert measured["sparsity"] == 9 / (4 * 5 + 5 * 3)
    model.trainable = False
    assert footprint(model, X, repeats=1)["sparsity"] == 9 / (4 * 5 + 5 * 3)


def test_the_table_has_a_row_for_each_weight() -> None:
    model = classifier()
    model.layers[0].set_weights([np.eye(4, 5), np.ones(5)])
    rows = {row["weight"].rpartition("/")[2]: row for row in weight_rows(model)[:2]}
    kernel = rows["kernel"]
    assert (kernel["shape"], kernel["numbers"], kernel["nonzeros"]) == ("4x5", 20, 4)
    assert (kernel["dtype"], kernel["sparsity"], kernel["size_bytes"]) == ("float32", 0.8, 80)
    assert rows["bias"]["sparsity"] == 0
    assert len(weight_rows(model)) == 2 + 4 + 2


def test_sparsity_without_kernels_is_zero() -> None:
    assert sparsity([np.zeros(3)]) == 0


def test_size_is_that_of_the_file_without_optimizer_state(tmp_path: Path) -> None:
    model = classifier()
    before = footprint(model, X, repeats=1)["size_bytes"]
    model.fit(X, Y, verbose=0)
    measured = footprint(model, X, repeats=1)
    assert measured["size_bytes"] == before
    file = tmp_path / "model.keras"
    save_without_optimizer(model, file)
    assert measured["size_bytes"] == file.stat().st_size
    # Two saves differ in 19 characters of date_saved and two 4-byte times for each zip member.
    with zipfile.ZipFile(file) as archive:
        differing = 19 + 8 * len(archive.namelist())
    expected = len(gzip.compress(file.read_bytes(), 9, mtime=0))
    assert abs(measured["gzip_bytes"] - expected) <= differing
    model.save(file)
    assert file.stat().st_size > measured["size_bytes"]


def test_the_model_stays_compiled_with_its_optimizer() -> None:
    model = classifier()
    model.fit(X, Y, verbose=0)
    optimizer = model.optimizer
    footprint(model, X, repeats=1)
    assert model.compiled
    assert model.optimizer is optimizer
    assert int(optimizer.iterations) == 1


def test_inputs_may_be_a_dict() -> None:
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((2,), name="b")}
    joined = keras.layers.Concatenate()(list(inputs.values()))
    model = keras.Model(inputs, keras.layers.Dense(3)(joined))
    measured = footprint(model, {"a": X, "b": X[:, :2]}, repeats=1)
    assert measured["parameters"] == 6 * 3 + 3


def test_latency_counts_each_call_after_the_warm_up() -> None:
    calls = []
    times = latency_ms(lambda: calls.append(1) or np.zeros(1), repeats=5, warm_up=3)
    assert len(calls) == 8
    assert times.shape == (5,)
    assert (times >= 0).all()


def test_a_slow_call_ends_after_its_time_but_not_before_ten() -> None:
    calls = []
    times = latency_ms(lambda: calls.append(1) or np.zeros(1), repeats=500, seconds=0.0)
    assert (len(times), len(calls)) == (10, 12)


def test_latencies_are_of_one_sample_and_of_a_batch_through_the_compiled_model() -> None:
    shapes = []

    class Spy(keras.layers.Layer):
        def call(self, inputs):
            shapes.append(tuple(inputs.shape))
            return inputs

    model = keras.Sequential([keras.Input((4,)), Spy(), keras.layers.Dense(3)])
    shapes.clear()
    footprint(model, X, batch_size=32, repeats=20)  # more than there are samples
    assert shapes == [(1, 4), (32, 4)], "traced once each, not run by Python at each call"


def test_no_samples_and_no_repeats_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        footprint(classifier(), X[:0])
    with pytest.raises(ValueError, match="at least 1 repeat"):
        footprint(classifier(), X, repeats=0)

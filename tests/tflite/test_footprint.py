"""What a `.tflite` file weighs, by hand."""

import gzip
import sys

import keras
import numpy as np
import pytest

from mlflow_keras_adv.compression import quantization
from mlflow_keras_adv.compression.conversion import Artifact, convert
from mlflow_keras_adv.compression.quantization import quantize
from mlflow_keras_adv.tflite.footprint import file_footprint, weight_table
from mlflow_keras_adv.tflite.runtime import LiteRTModel

X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")


def classifier(seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    hidden = keras.layers.Dense(5, activation="relu")
    last = keras.layers.Dense(3, bias_initializer="ones")  # TensorFlow leaves a bias of 0 out
    model = keras.Sequential([keras.Input((4,)), hidden, last])
    kernel, bias = hidden.get_weights()
    kernel[:, :2] = 0  # 4 inputs × 2 units
    hidden.set_weights([kernel, bias + 1])
    return model


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return classifier(0)


@pytest.fixture(scope="module")
def artifact(model: keras.Model) -> Artifact:
    return convert(model, X)


@pytest.mark.quick
def test_what_is_measured_equals_what_is_counted_by_hand(artifact: Artifact) -> None:
    measured = file_footprint(artifact.content, X, repeats=3)
    assert measured["parameters"] == (4 * 5 + 5) + (5 * 3 + 3)
    assert measured["nonzeros"] == measured["parameters"] - 8
    assert measured["sparsity"] == 8 / (4 * 5 + 5 * 3)
    assert measured["size_bytes"] == len(artifact.content)
    assert measured["gzip_bytes"] == len(gzip.compress(artifact.content, 9, mtime=0))
    keys = ["latency", "latency_all_threads", "latency_batch", "latency_batch_all_threads"]
    for key in keys:
        assert 0 < measured[f"{key}_ms_p50"] <= measured[f"{key}_ms_p95"]
    if sys.platform == "linux":
        assert measured["peak_memory_bytes"] >= len(artifact.content)
    assert all(type(value) is float for value in measured.values())


def test_latency_is_of_as_many_samples_as_it_says(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    invoke = LiteRTModel.invoke

    def spy(self, feeds):
        seen.append(len(next(iter(feeds.values()))))
        return invoke(self, feeds)

    monkeypatch.setattr(LiteRTModel, "invoke", spy)
    file_footprint(artifact.content, X, batch_size=7, repeats=2)
    assert seen == [1] * 12 * 2 + [7] * 12 * 2  # 10 calls to warm up, 2 measured


def test_the_table_has_a_row_for_each_weight(artifact: Artifact) -> None:
    content = quantize(artifact, quantization.int8_io).content
    rows = {row["shape"]: row for row in weight_table(content)}
    assert set(rows) == {"5x4", "5", "3x5", "3"}
    kernel = rows["5x4"]
    assert (kernel["dtype"], kernel["numbers"], kernel["size_bytes"]) == ("int8", 20, 20)
    assert kernel["sparsity"] >= 8 / 20
    assert 1 < kernel["distinct"] <= 13  # the zeros are one
    assert rows["5"]["dtype"] == "int32"
    assert "MatMul" in kernel["weight"]


def test_bad_data_are_refused(artifact: Artifact) -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        file_footprint(artifact.content, X[:0])
    with pytest.raises(ValueError, match=r"not a \.tflite file"):
        file_footprint(b"", X)

"""Samples for calibration: what Keras takes as data is read as the arrays that the model takes."""

from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from mlflow_keras_adv.compression import convert, int8, quantize
from mlflow_keras_adv.compression.samples import read_samples

X = np.random.default_rng(0).random((20, 4), dtype=np.float32)
Y, W = np.arange(20) % 3, np.ones(20, "float32")
PAIR = [X, X[:, :2]]
ONE = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)])


def two(names: bool = False) -> keras.Model:
    a, b = keras.Input((4,), name="a"), keras.Input((2,), name="b")
    joined = keras.layers.Dense(3)(keras.layers.Concatenate()([a, b]))
    return keras.Model({"a": a, "b": b} if names else [a, b], joined)


class Batches(keras.utils.PyDataset):
    def __init__(self, *arrays: Any) -> None:
        super().__init__()
        self.arrays = arrays

    @property
    def num_batches(self) -> int:
        return 4

    def __getitem__(self, number: int) -> Any:
        rows = slice(5 * number, 5 * number + 5)
        return tuple(keras.tree.map_structure(lambda each: each[rows], a) for a in self.arrays)


def dataset(*arrays: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(arrays if len(arrays) > 1 else arrays[0])


@pytest.mark.parametrize(
    "x",
    [
        X,
        X.tolist(),
        list(X),
        [X[:7], X[7:]],
        [X],
        (X, Y),
        (X, Y, W),
        tf.constant(X),
        pd.DataFrame(X),
        dataset(X),
        dataset(X).batch(8),
        dataset(X, Y).batch(8),
        dataset(X, Y),
        dataset(X, Y, W).batch(8),
        Batches(X),
        Batches(X, Y),
        Batches(X, Y, W),
    ],
)
def test_one_input(x: Any) -> None:
    np.testing.assert_array_equal(read_samples(ONE, x), X)


@pytest.mark.parametrize(
    "x",
    [
        PAIR,
        tuple(PAIR),
        dataset(tuple(PAIR), Y).batch(8),
        Batches(PAIR, Y),
        Batches(PAIR),
    ],
)
def test_several_inputs(x: Any) -> None:
    for found, expected in zip(keras.tree.flatten(read_samples(two(), x)), PAIR, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_inputs_by_name() -> None:
    named = dict(zip("ab", PAIR, strict=True))
    starts = range(0, 20, 5)
    generated = (({k: v[i : i + 5] for k, v in named.items()}, Y[i : i + 5]) for i in starts)
    for x in (named, dataset(named).batch(6), dataset(named, Y), generated):
        found = read_samples(two(names=True), x)
        for name, expected in named.items():
            np.testing.assert_array_equal(found[name], expected)


def test_what_has_no_end_is_read_as_far_as_it_is_of_use() -> None:
    endless = (X for _ in iter(int, 1))
    assert read_samples(ONE, endless).shape == (1000, 4)
    assert read_samples(ONE, dataset(X, Y).batch(6).repeat()).shape == (1000, 4)


def test_they_set_the_ranges() -> None:
    for x in (dataset(X, Y).batch(8), Batches(X, Y), (X[i : i + 5] for i in range(0, 20, 5))):
        assert quantize(ONE, int8, x).content == quantize(ONE, int8, X).content


@pytest.mark.parametrize(
    ("x", "error", "complaint"),
    [
        (X[:0], ValueError, "no samples"),
        ([], ValueError, "no samples"),
        (iter(()), ValueError, "no samples"),
        (dataset(X[:0]), ValueError, "no samples"),
        ("x.npy", ValueError, "no samples"),
        (None, (TypeError, ValueError), "expected|no samples"),
        (object(), TypeError, "expected an array"),
        ([X[:2], X[:2, :3]], ValueError, "do not fit together"),
    ],
)
def test_what_is_none_is_refused(x: Any, error: Any, complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        convert(ONE, x)

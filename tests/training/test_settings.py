"""fit_settings: what a call of `fit` is set to, from its bound arguments and Keras' own params."""

import inspect
import json
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import tensorflow as tf

from mlflow_keras_adv.training.settings import fit_settings

X, Y = np.zeros((100, 8), np.float32), np.zeros((100, 1), np.float32)
DATA = tf.data.Dataset.from_tensor_slices((X, Y))


class Batches(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        return X[:20], Y[:20]


def settings_of(*args: Any, **kwargs: Any) -> dict[str, object]:
    """Those of a real fit."""
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    seen = keras.callbacks.LambdaCallback()
    bound = inspect.signature(model.fit).bind(*args, callbacks=[seen], verbose=0, **kwargs)
    bound.apply_defaults()
    model.fit(*bound.args, **bound.kwargs)
    return fit_settings(bound.arguments, seen.params)


def generator() -> Any:
    while True:
        yield X[:20], Y[:20]


class Loader:
    """Says of itself what a loader of PyTorch says."""

    batch_size = 25


@pytest.mark.filterwarnings("ignore:.shuffle=True. was passed")  # by Keras' own default
@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((X, Y), {}, {"batch_size": 32, "steps_per_epoch": 4}),
        ((X, Y, 16, 3), {}, {"batch_size": 16, "steps_per_epoch": 7, "epochs": 3}),
        ((tf.constant(X), Y), {}, {"batch_size": 32, "steps_per_epoch": 4}),
        ((pd.DataFrame(X), Y), {"batch_size": 50}, {"batch_size": 50, "steps_per_epoch": 2}),
        ((pd.DataFrame(X), Y), {}, {"batch_size": 32, "steps_per_epoch": 4}),
        ((scipy.sparse.csr_matrix(X), Y), {}, {"batch_size": 32, "steps_per_epoch": 4}),
        ((DATA.batch(20, drop_remainder=True),), {}, {"batch_size": 20, "steps_per_epoch": 5}),
        ((DATA.batch(20),), {}, {"steps_per_epoch": 5}),
        (
            (DATA.repeat().batch(20, drop_remainder=True),),
            {"steps_per_epoch": 3},
            {"batch_size": 20, "steps_per_epoch": 3},
        ),
        ((Batches(),), {}, {"steps_per_epoch": 5}),
        ((generator(),), {"steps_per_epoch": 2}, {"steps_per_epoch": 2}),
        (
            (X, Y),
            {
                "validation_split": 0.5,
                "class_weight": {0: 1, 1: np.float32(2)},
                "initial_epoch": 1,
                "epochs": 2,
                "shuffle": False,
                "validation_freq": [2],
                "validation_batch_size": 10,
            },
            {
                "batch_size": 32,
                "steps_per_epoch": 2,
                "validation_split": 0.5,
                "class_weight": json.dumps({"0": 1.0, "1": 2.0}),
                "initial_epoch": 1,
                "epochs": 2,
                "shuffle": False,
                "validation_freq": "[2]",
                "validation_batch_size": 10,
            },
        ),
        (
            (X, Y),
            {"validation_split": 0.5, "validation_data": (X, Y), "sample_weight": np.ones(100)},
            {"batch_size": 32, "steps_per_epoch": 4, "sample_weight": True},
        ),
    ],
)
def test_a_fit_is_described_by_plain_values(
    args: tuple[Any, ...], kwargs: dict[str, Any], expected: dict[str, object]
) -> None:
    found = settings_of(*args, **kwargs)
    assert found == {"epochs": 1} | expected
    assert all(type(value) in (bool, int, float, str) for value in found.values())


def test_data_of_unknown_length_and_a_loader_that_knows_its_batches() -> None:
    spec = (tf.TensorSpec([None, 8]), tf.TensorSpec([None, 1]))
    unknown = tf.data.Dataset.from_generator(lambda: iter([(X, Y)]), output_signature=spec)
    assert fit_settings({"x": unknown, "epochs": 2}, {"steps": None}) == {"epochs": 2}
    unranked = unknown.map(lambda x, y: tf.numpy_function(lambda a: a, [x], tf.float32))
    assert fit_settings({"x": unranked}, {"epochs": 1, "steps": -2}) == {"epochs": 1}
    assert fit_settings({"x": Loader()}, {"epochs": 1})["batch_size"] == 25

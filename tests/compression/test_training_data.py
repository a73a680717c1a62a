"""What a compressed model is trained on: every kind that `fit` takes, with its batches counted."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from mlflow_keras_adv.compression import cluster, prune
from mlflow_keras_adv.compression.training_data import read_training_data
from mlflow_keras_adv.errors import UserError

X = np.random.default_rng(0).random((70, 4), dtype=np.float32)
Y = (X.sum(axis=1) > 2).astype("int64")
WEIGHTS = np.ones(70, "float32")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Batches(keras.utils.PyDataset):
    def __init__(self, *arrays: Any, size: int = 32) -> None:
        super().__init__()
        self.arrays, self.size, self.epochs = arrays, size, 0

    def __len__(self) -> int:
        return -(-len(self.arrays[0]) // self.size)

    def __getitem__(self, number: int) -> Any:
        rows = slice(number * self.size, (number + 1) * self.size)
        return tuple(None if each is None else each[rows] for each in self.arrays)

    def on_epoch_end(self) -> None:
        self.epochs += 1


def generated(batches: int = 1000) -> Iterator[Any]:
    for number in range(batches):
        start = 10 * (number % 7)
        yield X[start : start + 10], Y[start : start + 10]


def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)])


@pytest.mark.parametrize(
    ("data", "settings", "steps"),
    [
        (lambda: (X, Y), {}, 3),
        (lambda: (X, Y, WEIGHTS), {"batch_size": 10}, 7),
        (lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(10), {}, 7),
        (lambda: tf.data.Dataset.from_tensor_slices((X, Y, WEIGHTS)).batch(10), {}, 7),
        (lambda: Batches(X, Y), {}, 3),
        (lambda: Batches(X, Y, WEIGHTS), {}, 3),
        (lambda: Batches(X, Y, None), {"shuffle": False}, 3),
        (generated, {"steps_per_epoch": 4}, 4),
    ],
)
def test_each_kind_trains_and_its_batches_are_counted(
    data: Callable[[], Any], settings: dict[str, Any], steps: int
) -> None:
    read = read_training_data(data(), {"epochs": 2, "verbose": 0, **settings})
    assert read.steps_per_epoch == steps
    rows = np.concatenate(list(read.calibration()))
    assert set(map(tuple, rows)) <= set(map(tuple, X))
    assert len({tuple(row) for row in rows}) == 70  # from all over the data
    trained = model()
    trained.compile("sgd", LOSS)
    trained.fit(*read.arguments, **read.fit)
    assert int(trained.optimizer.iterations) == 2 * steps


@pytest.mark.slow
@pytest.mark.parametrize("data", [lambda: Batches(X, Y), generated])
def test_they_compress_with_validation_data_of_the_same_kind(data: Callable[[], Any]) -> None:
    source, train = model(), data()
    settings: dict[str, Any] = {"loss": LOSS, "epochs": 2, "verbose": 0}
    if not isinstance(train, Batches):
        settings |= {"steps_per_epoch": 5, "validation_steps": 3}
    seen: list[dict[str, float]] = []

    class Seen(keras.callbacks.Callback):  # of Keras 3: prunes by masks
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seen.append(dict(logs))

    settings["validation_data"] = data()
    pruned = prune(source, train, sparsity=0.5, callbacks=[Seen()], **settings)
    assert pruned.engine == "masks in Keras 3"
    assert [set(each) for each in seen] == [{"loss", "val_loss"}] * 2
    if isinstance(train, Batches):
        assert train.epochs == 2
    settings["validation_data"] = data()
    clustered = cluster(source, data(), clusters=4, **settings)
    assert max(row.distinct for row in clustered.layers) <= 4


def test_batches_of_other_lengths_and_several_inputs_are_taken() -> None:
    class Ragged(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, number: int) -> Any:
            length = 2 + number
            return [np.ones((4, length)), np.zeros((4, 1))], {"a": np.zeros(4, "int32")}

    read = read_training_data(Ragged(), {})
    (first, second), labels = read.arguments[0].element_spec
    assert (first.shape[1], second.shape[1], labels["a"].dtype) == (None, 1, tf.int32)
    assert len(list(read.arguments[0])) == 3


@pytest.mark.parametrize(
    ("train", "settings", "error", "complaint"),
    [
        ([X, Y], {}, TypeError, "train is a list; expected"),
        ((X,), {}, TypeError, "tuple of 1"),
        ((X, Y.tolist()), {}, TypeError, "make arrays of lists"),
        ((X, Y[:5]), {}, UserError, r"\[5, 70\] samples"),
        ((X, Y), {"steps_per_epoch": 2}, ValueError, "laid on all batches"),
        (Batches(X, Y), {"batch_size": 2}, ValueError, "the dataset's own"),
        (Batches(X), {}, UserError, "without labels"),
        (Batches(X[:0], Y[:0]), {}, UserError, "empty PyDataset"),
        (generated(), {}, UserError, "steps_per_epoch is None"),
        (generated(0), {"steps_per_epoch": 2}, UserError, "empty generator"),
        (
            (X, Y),
            {"validation_data": generated(1), "validation_steps": 2},
            UserError,
            "generator of 1 batches",
        ),
        ((X, Y), {"validation_data": generated(1)}, UserError, "validation_steps is None"),
    ],
)
def test_what_cannot_be_read_is_refused(
    train: Any, settings: dict[str, Any], error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        read_training_data(train, settings)


def test_a_generator_that_ends_early_is_said() -> None:
    read = read_training_data(generated(5), {"steps_per_epoch": 4, "epochs": 2, "verbose": 0})
    trained = model()
    trained.compile("sgd", LOSS)
    with pytest.raises(Exception, match="ended after 1 batches"):
        trained.fit(*read.arguments, **read.fit)

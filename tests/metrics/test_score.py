"""Scores of models of many kinds, against Keras' own `evaluate`, scikit-learn and NumPy."""

import json
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.metrics.agreement import difference
from mlflow_keras_adv.metrics.score import Scores, score

L = keras.layers
N = 24
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 6)).astype(np.float32)
# A mean of 24 float32 values near 1, summed in another order: a few units in the last place.
CLOSE: dict[str, Any] = {"rel": 1e-5, "abs": 1e-6}


def dense(*units: Any, activation: str | None = None) -> keras.Model:
    return keras.Sequential(
        [keras.Input((6,)), L.Dense(8, activation="relu"), L.Dense(*units, activation=activation)]
    )


def regression() -> tuple[keras.Model, Any, Any]:
    model = dense(3)
    model.compile("sgd", "mse", metrics=["mae", keras.metrics.RootMeanSquaredError(name="rmse")])
    return model, X, X[:, :3]


def binary() -> tuple[keras.Model, Any, Any]:
    model = dense(1)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    metrics = [
        keras.metrics.BinaryAccuracy(threshold=0.0, name="acc"),
        keras.metrics.AUC(name="auc", from_logits=True),
    ]
    model.compile("sgd", loss, metrics=metrics)
    return model, X, (X[:, :1] > 0).astype(np.float32)


def multi_label() -> tuple[keras.Model, Any, Any]:
    model = dense(4, activation="sigmoid")
    model.compile("sgd", "binary_crossentropy", metrics=["binary_accuracy"])
    return model, X, (X[:, :4] > 0).astype(np.float32)


def one_hot() -> tuple[keras.Model, Any, Any]:
    model = dense(3, activation="softmax")
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    model.compile("sgd", loss, metrics=["accuracy"])
    return model, X, np.eye(3, dtype=np.float32)[X[:, :3].argmax(1)]


def two_outputs() -> tuple[keras.Model, Any, Any]:
    inputs = keras.Input((6,), name="features")
    hidden = L.Dense(8, activation="relu")(inputs)
    outputs = {
        "price": L.Dense(1, name="price")(hidden),
        "kind": L.Dense(3, activation="softmax", name="kind")(hidden),
    }
    model = keras.Model(inputs, outputs)
    model.compile(
        "sgd",
        loss={"price": "mse", "kind": "sparse_categorical_crossentropy"},
        loss_weights={"price": 0.3, "kind": 2.0},
        metrics={"price": ["mae"], "kind": ["accuracy"]},
    )
    return model, X, {"price": X[:, :1], "kind": X[:, :3].argmax(1)}


def tokens() -> tuple[keras.Model, Any, Any]:
    x = RNG.integers(1, 9, size=(N, 7)).astype(np.int32)
    for row, length in enumerate(RNG.integers(2, 7, size=N)):
        x[row, length:] = 0
    inputs = keras.Input((7,), dtype="int32")
    hidden = L.LSTM(6, return_sequences=True)(L.Embedding(9, 4, mask_zero=True)(inputs))
    model = keras.Model(inputs, L.Dense(3)(hidden))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    return model, x, np.where(x > 0, x % 3, 0)


class OwnStep(keras.Model):
    """Its loss is a matter of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.dense = L.Dense(6)
        self.tracker = keras.metrics.Mean(name="reconstruction")

    def call(self, x: Any) -> Any:
        return self.dense(x)

    def test_step(self, data: Any) -> dict[str, Any]:
        x = data[0] if isinstance(data, tuple) else data
        self.tracker.update_state(keras.ops.mean((self(x) - x) ** 2))
        return {"reconstruction": self.tracker.result()}


def own_step() -> tuple[keras.Model, Any, Any]:
    model = OwnStep()
    model(X[:1])
    model.compile("sgd")
    return model, X, None


KINDS: list[Callable[[], tuple[keras.Model, Any, Any]]] = [
    regression, binary, multi_label, one_hot, two_outputs, tokens, own_step
]  # fmt: skip


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> tuple[keras.Model, Any, Any]:
    keras.utils.set_random_seed(1)
    return request.param()


def expected(model: keras.Model, x: Any, y: Any, weight: Any = None) -> dict[str, float]:
    """Keras' values, under our names: of one batch; of several, means differ in kind."""
    named = model.evaluate(
        x, y, sample_weight=weight, verbose=0, return_dict=True, batch_size=len(x)
    )
    outputs = model.output_names if len(getattr(model, "output_names", [])) > 1 else []
    found = {}
    for name, value in named.items():
        output = next((each for each in outputs if name.startswith(f"{each}_")), None)
        found[f"{output}/{name.removeprefix(f'{output}_')}" if output else name] = float(value)
    return found


@pytest.mark.parametrize("weighted", [False, True])
def test_a_model_scores_what_keras_says(weighted: bool, kind: tuple[keras.Model, Any, Any]) -> None:
    model, x, y = kind
    weight = RNG.random(N).astype(np.float32) if weighted else None
    if weighted and isinstance(y, dict):
        weight = dict.fromkeys(y, weight)
    if y is None:
        weight = None  # its evaluation takes none
    elif weighted and isinstance(model.layers[1], L.Embedding):
        weight = RNG.random(y.shape).astype(np.float32)  # with a mask Keras takes no other
    truth = expected(model, x, y, weight)
    before = [np.array(each) for metric in model.metrics for each in metric.variables]
    found = score(model, x, y, weight, batch_size=N)
    after = [np.array(each) for metric in model.metrics for each in metric.variables]

    assert found.values == pytest.approx(truth, **CLOSE)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    if not weighted:
        for name, each in found.per_sample.items():
            if not isinstance(model.layers[1], L.Embedding):  # whose rows count by their lengths
                assert each.mean() == pytest.approx(truth[name], **CLOSE), name


def test_batches_are_put_together() -> None:
    model, x, y = regression()
    found = score(model, x, y, batch_size=7)
    assert found.values == pytest.approx(expected(model, x, y), **CLOSE)
    np.testing.assert_array_equal(found.labels, y)


@pytest.mark.parametrize("form", ["dataset", "PyDataset"])
def test_data_bring_their_labels_and_weights(form: str) -> None:
    model, x, y = regression()
    weight = RNG.random(N).astype(np.float32)

    class Batches(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            rows = slice(6 * index, 6 * index + 6)
            return x[rows], y[rows], weight[rows]

    dataset = tf.data.Dataset.from_tensor_slices((x, y, weight)).batch(7)
    data = dataset if form == "dataset" else Batches()
    found = score(model, data)
    assert found.values == pytest.approx(expected(model, x, y, weight), **CLOSE)
    assert found.answers.shape == (N, 3)


def test_metrics_that_are_given_take_the_place_of_those_compiled() -> None:
    model, x, y = regression()
    found = score(
        model, x, y, metrics=[keras.metrics.MeanAbsoluteError(), "mse", sklearn.metrics.r2_score]
    )
    answers = np.asarray(model(x))
    assert set(found.values) == {"mean_absolute_error", "mse", "r2_score"}
    assert found.values["mean_absolute_error"] == pytest.approx(np.abs(answers - y).mean(), **CLOSE)
    assert found.values["r2_score"] == pytest.approx(sklearn.metrics.r2_score(y, answers))
    assert found.directions == {"mean_absolute_error": "min", "mse": "min", "r2_score": "max"}


def test_answers_of_another_program_are_scored_by_the_same_metrics() -> None:
    model, x, y = regression()
    found = score(model, x, y, answer=lambda batch: np.zeros((len(batch), 3), np.float32))
    assert found.values["mae"] == pytest.approx(np.abs(y).mean(), **CLOSE)
    assert found.values["loss"] == pytest.approx((y**2).mean(), **CLOSE)


def test_directions_are_those_of_keras_or_of_what_is_measured() -> None:
    expected: dict[Any, dict[str, str]] = {
        regression: {"loss": "min", "mae": "min", "rmse": "min"},
        binary: {"loss": "min", "acc": "max", "auc": "max"},
        two_outputs: {
            "loss": "min",
            "price/loss": "min",
            "kind/loss": "min",
            "price/mae": "min",
            "kind/accuracy": "max",
        },
    }
    for kind, directions in expected.items():
        assert score(*kind()).directions == directions


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        (regression, "regression"),
        (binary, "binary"),
        (multi_label, "multi-label"),
        (one_hot, "classification"),
        (tokens, "classification"),
        (two_outputs, None),
        (own_step, None),
    ],
)
def test_the_task_is_told_by_the_loss(kind: Any, task: str | None) -> None:
    assert score(*kind()).task == task


def test_a_classifier_has_an_accuracy_though_it_was_compiled_without() -> None:
    model = dense(3)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    y = X[:, :3].argmax(1)
    found = score(model, X, y)
    assert found.values["accuracy"] == (np.asarray(model(X)).argmax(1) == y).mean()
    assert found.directions["accuracy"] == "max"


def test_without_labels_there_are_answers_alone() -> None:
    model, x, _ = regression()
    found = score(model, x)
    assert (dict(found.values), found.labels) == ({}, None)
    assert found.answers.shape == (N, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tf.data.Dataset.from_tensors((X, X[:, :3])).repeat(), r"\.take\(n\)"),
        (X[:0], "no samples"),
    ],
)
def test_what_cannot_be_scored_says_why(data: Any, message: str) -> None:
    model, _, _ = regression()
    with pytest.raises(UserError, match=message):
        score(model, data)


def test_labels_that_do_not_fit_are_named() -> None:
    model, x, _ = regression()
    with pytest.raises(UserError, match="cannot be scored: .* metrics="):
        score(model, x, np.zeros((N, 7)))


@pytest.mark.quick
def test_the_difference_of_answers() -> None:
    a, b = np.array([[3.0, 4.0]]), np.array([[3.0, 3.0]])
    found = difference([a, b], [b, b])
    assert found == {
        "difference": pytest.approx(np.sqrt(0.5) / 3),
        "difference_max": pytest.approx(1 / 3),
    }
    with pytest.raises(UserError, match="differ in shape"):
        difference(a, a[:, :1])


def test_scores_are_plain_numbers() -> None:
    found: Scores = score(*regression())
    json.dumps(dict(found.values))


def test_a_model_that_was_scored_draws_and_remembers_as_before() -> None:
    noisy = keras.Sequential([keras.Input((6,)), L.GaussianNoise(1.0, seed=3), L.Dense(1)])
    state = keras.Input(batch_shape=(6, 2, 3))
    remembers = keras.Model(state, L.Dense(1)(L.LSTM(4, stateful=True)(state)))
    series = RNG.normal(size=(6, 2, 3)).astype(np.float32)
    for model, x in ((noisy, X[:6]), (remembers, series)):
        model.compile("sgd", "mse")
        model(x, training=True)
        before = [np.array(each) for each in keras.tree.flatten(_remembered(model))]
        score(model, x, np.zeros((6, 1)))
        after = [np.array(each) for each in keras.tree.flatten(_remembered(model))]
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def _remembered(model: keras.Model) -> list[Any]:
    states = [getattr(layer, "states", []) for layer in model.layers]
    return [[each.value for each in model.non_trainable_variables], states]

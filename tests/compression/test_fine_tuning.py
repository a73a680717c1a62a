"""The training in tf_keras is that of Keras 3: loss, metrics, weights, labels and names."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from packaging.version import Version

from mlflow_keras_adv.compression import cluster, prune, quantize_aware
from mlflow_keras_adv.compression.bridge import to_tf_keras
from mlflow_keras_adv.compression.fine_tuning import FineTuning
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.tflite.runtime import LiteRTModel

layers = keras.layers
RANDOM = np.random.default_rng(0)
ROWS = 24
X = RANDOM.normal(size=(ROWS, 5)).astype("float32")
CLASS = np.arange(ROWS) % 3
LARGE = (100 * RANDOM.normal(size=(ROWS, 1))).astype("float32")
WEIGHTS = RANDOM.random(ROWS).astype("float32")
LOSSES = {"z": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "a": "mse"}
METRICS = {"z": ["accuracy"], "a": ["mae", "root_mean_squared_error"]}


def two(kind: type = list) -> keras.Model:
    """Two heads, the later in the alphabet first."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,), name="x")
    hidden = layers.Dense(6, activation="tanh", name="hidden")(inputs)
    heads = {"z": layers.Dense(3, name="z")(hidden), "a": layers.Dense(1, name="a")(hidden)}
    return keras.Model(inputs, heads if kind is dict else list(heads.values()))


def one(**options: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    dense = layers.Dense(6, activation="tanh", **options)
    return keras.Sequential([keras.Input((5,)), dense, layers.Dense(3, name="z")])


def words() -> keras.Model:
    """A loss of each word, and words that are padding."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,), dtype="int32")
    h = layers.Embedding(7, 4, mask_zero=True)(inputs)
    return keras.Model(inputs, layers.Dense(3)(layers.GRU(5, return_sequences=True)(h)))


def cubic(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean(keras.ops.abs(y_true - y_pred) ** 3, axis=-1)


BY_NAME = {"loss": LOSSES, "loss_weights": {"z": 1.0, "a": 1e-4}, "metrics": METRICS}
LABELS = {"z": CLASS, "a": LARGE}
WORDS = RANDOM.integers(0, 7, size=(ROWS, 4)).astype("int32")
TAGS = RANDOM.integers(0, 3, size=(ROWS, 4))

# What is trained, how it is compiled, the data beside x, and further arguments of fit.
Case = tuple[Callable[[], keras.Model], dict[str, Any], tuple[Any, ...], dict[str, Any]]
CASES: dict[str, Case] = {
    "outputs in a list, all by name": (two, BY_NAME, (LABELS,), {}),
    "outputs in a list, labels too": (two, BY_NAME, ([CLASS, LARGE],), {}),
    "outputs in a list, labels in a tuple": (two, BY_NAME, ((CLASS, LARGE),), {}),
    "all in lists": (
        two,
        {"loss": list(LOSSES.values()), "loss_weights": [0.5, 1e-4], "metrics": [["accuracy"], []]},
        ([CLASS, LARGE], [WEIGHTS, 1 - WEIGHTS]),
        {},
    ),
    "outputs in a dict": (lambda: two(dict), BY_NAME, (LABELS,), {}),
    "outputs in a dict, in another order": (
        lambda: two(dict),
        {key: dict(reversed(value.items())) for key, value in BY_NAME.items()},
        (dict(reversed(LABELS.items())), {"a": WEIGHTS, "z": 1 - WEIGHTS}),
        {},
    ),
    "weighted metrics": (
        lambda: two(dict),
        {**BY_NAME, "weighted_metrics": {"z": ["accuracy"], "a": ["mae"]}},
        (LABELS, WEIGHTS),
        {"validation_data": (X[:7], {"z": CLASS[:7], "a": LARGE[:7]}, WEIGHTS[:7])},
    ),
    "one of two without a loss": (
        lambda: two(dict),
        {"loss": {"z": LOSSES["z"], "a": None}},
        (LABELS,),
        {},
    ),
    "one output, weighted": (
        one,
        {"loss": LOSSES["z"], "loss_weights": 0.3, "metrics": ["accuracy"], "weighted_metrics": []},
        (CLASS, WEIGHTS),
        {"validation_data": (X[:9], CLASS[:9])},
    ),
    "class weights": (
        lambda: one(kernel_regularizer="l2"),
        {"loss": LOSSES["z"], "weighted_metrics": ["accuracy"]},
        (CLASS,),
        {"class_weight": {0: 1.0, 1: 3.0, 2: 0.1}},
    ),
    "a function as loss, a regularizer of activity": (
        lambda: one(activity_regularizer=keras.regularizers.L2(0.1)),
        {"loss": cubic, "metrics": [cubic, keras.metrics.CosineSimilarity()]},
        (np.eye(3, dtype="float32")[CLASS],),
        {},
    ),
    "padding": (
        words,
        {"loss": LOSSES["z"], "metrics": ["accuracy"], "weighted_metrics": ["accuracy"]},
        (TAGS,),
        {},
    ),
}


def inputs_of(model: keras.Model) -> np.ndarray:
    return WORDS if model.inputs[0].dtype == "int32" else X


def trained_by_us(
    model: keras.Model, data: tuple[Any, ...], fit: dict[str, Any], **configured: Any
) -> tuple[tf_keras.Model, dict[str, list[float]]]:
    """The same training in tf_keras, without any compression."""
    given = dict.fromkeys(("loss", "loss_weights", "metrics", "weighted_metrics")) | configured
    tuning = FineTuning(
        model,
        data[0] if len(data) == 1 else data,
        optimizer=keras.optimizers.SGD(0.05),
        learning_rate=0.0,
        fit={"epochs": 2, "shuffle": False, "verbose": 0, **fit},
        **given,
    )
    compiled = tuning.for_tf_keras()
    trained = tuning.in_tf_keras(to_tf_keras(model, tuning.sample), compiled)
    return trained, tuning.fit(trained, []).history


@pytest.mark.filterwarnings("ignore:Gradients do not exist")  # of an output without a loss
@pytest.mark.parametrize("name", CASES)
def test_a_training_in_tf_keras_is_that_of_keras(name: str) -> None:
    if "regularizer" in name and Version(keras.__version__) < Version("3.14"):
        pytest.skip("Keras before 3.14 adds up what a regularizer of activity gives over a batch")
    build, configured, labels, fit = CASES[name]
    plain, model = build(), build()
    for each in (plain, model):
        each.compile(keras.optimizers.SGD(0.05), **configured)
    data, fit = (inputs_of(model), *labels), {"batch_size": 10, **fit}
    weights = {"sample_weight": data[2]} if len(data) == 3 else {}
    expected = plain.fit(*data[:2], epochs=2, shuffle=False, verbose=0, **weights, **fit).history

    trained, history = trained_by_us(model, data, fit)

    assert set(history) == set(expected)
    for key, values in expected.items():
        np.testing.assert_allclose(history[key], values, rtol=2e-5, atol=1e-6, err_msg=key)
    for ours, theirs in zip(trained.weights, plain.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6, err_msg=theirs.path)


def test_each_setting_can_be_another_than_the_model_s() -> None:
    plain, model = two(), two()
    model.compile("adam", **BY_NAME)
    others = {"loss": ["mae", "mse"], "loss_weights": [1.0, 0.5], "metrics": {}}
    one_hot = [np.eye(3, dtype="float32")[CLASS], LARGE]
    plain.compile(keras.optimizers.SGD(0.05), **others)
    data = (X, one_hot)
    expected = plain.fit(*data, batch_size=32, epochs=2, shuffle=False, verbose=0).history
    _, history = trained_by_us(model, data, {}, **others)
    assert set(history) == set(expected) == {"a_loss", "loss", "z_loss"}
    for key, values in expected.items():
        np.testing.assert_allclose(history[key], values, rtol=2e-5)


def test_a_dataset_carries_weights_too() -> None:
    plain, model = two(dict), two(dict)
    for each in (plain, model):
        each.compile(keras.optimizers.SGD(0.05), **BY_NAME, weighted_metrics={"z": ["accuracy"]})
    dataset = tf.data.Dataset.from_tensor_slices((X, LABELS, WEIGHTS)).batch(7)
    expected = plain.fit(dataset, epochs=2, shuffle=False, verbose=0).history
    _, history = trained_by_us(model, (dataset,), {})
    assert set(history) == set(expected)
    for key, values in expected.items():
        np.testing.assert_allclose(history[key], values, rtol=2e-5, err_msg=key)


def test_the_model_s_own_metrics_stay_as_they_are() -> None:
    model, own = one(), keras.metrics.SparseCategoricalAccuracy()
    model.compile("sgd", LOSSES["z"], metrics=[own])
    model.evaluate(X, CLASS, verbose=0)
    counted = float(own.count)
    _, history = trained_by_us(model, (X, CLASS), {})
    assert len(history["sparse_categorical_accuracy"]) == 2
    assert float(own.count) == counted == ROWS


class Needy(keras.metrics.Metric):
    """Does not say what it takes to make it."""

    def __init__(self, needed: int) -> None:
        super().__init__(name="needy")


def test_a_metric_that_cannot_be_made_anew_is_named() -> None:
    model = one()
    model.compile("sgd", LOSSES["z"], metrics=[Needy(1)])
    with pytest.raises(UserError, match=r"metric 'needy' \(Needy\).*get_config"):
        trained_by_us(model, (X, CLASS), {})
    assert "loss" in trained_by_us(model, (X, CLASS), {}, metrics=[])[1]


@pytest.mark.parametrize("kind", [list, dict])
@pytest.mark.parametrize("scheme", ["prune", "cluster", "quantize_aware"])
def test_every_scheme_weighs_the_losses(scheme: str, kind: type) -> None:
    """Without its weight the second loss would move the shared layer, and diverge under SGD."""
    model = two(kind)
    noise = 1e4 * LARGE
    losses = {"z": LOSSES["z"], "a": "mse"}
    model.compile("adam", losses, loss_weights={"z": 1.0, "a": 0.0})
    fit = {"epochs": 1, "verbose": 0, "optimizer": keras.optimizers.SGD(0.01)}
    data = (X, {"z": CLASS, "a": noise})
    before = model.get_layer("a").get_weights()[1]
    if scheme == "quantize_aware":
        artifact = quantize_aware(model, data, **fit)
        assert {each.name for each in LiteRTModel(artifact.content).outputs} == {"a", "z"}
        assert artifact.expected["z"].shape == (ROWS, 3)
        return
    fewer = {"sparsity": {"hidden": 0.5}} if scheme == "prune" else {"clusters": {"hidden": 8}}
    made: Any = (prune if scheme == "prune" else cluster)(model, data, **fewer, **fit)
    np.testing.assert_array_equal(made.model.get_layer("a").get_weights()[1], before)
    weighed = (prune if scheme == "prune" else cluster)(
        model, data, **fewer, **fit, loss_weights={"z": 1.0, "a": 1e-6}
    )
    assert not np.array_equal(weighed.model.get_layer("a").get_weights()[1], before)


@pytest.mark.parametrize(
    ("configured", "labels", "complaint"),
    [
        (BY_NAME, {"z": CLASS, "b": LARGE}, "z"),
        ({**BY_NAME, "metrics": {"b": ["mae"]}}, LABELS, "metrics"),
        ({**BY_NAME, "loss_weights": [1.0]}, LABELS, "loss_weights"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_training(
    configured: dict[str, Any], labels: Any, complaint: str
) -> None:
    model = two()
    model.compile("sgd", **configured)
    with pytest.raises(UserError, match=f"as in Keras' fit(?s:.*)({complaint})"):
        prune(model, (X, labels), verbose=0)


def test_class_weights_and_sample_weights_are_not_mixed() -> None:
    model = one()
    model.compile("sgd", LOSSES["z"])
    with pytest.raises(ValueError, match="class_weight or sample weights, not both"):
        cluster(model, (X, CLASS, WEIGHTS), class_weight={0: 1.0, 1: 2.0, 2: 1.0}, verbose=0)

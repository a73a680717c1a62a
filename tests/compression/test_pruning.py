"""Pruning by both engines: what is zero, what stays, what is refused."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import mlflow_keras_adv as mka
from mlflow_keras_adv.compression import constant
from mlflow_keras_adv.compression.masks import reached, smallest, smallest_of_groups
from mlflow_keras_adv.compression.pruning import Pruned, prune
from mlflow_keras_adv.errors import UserError

layers = keras.layers
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(24, 6, 6, 4)).astype("float32")
Y = np.arange(24) % 3
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
TFMOT, MASKS = "tfmot", "masks in Keras 3"


def functional() -> keras.Model:
    """All of tfmot: conv, normalization, an inner model, an odd and a small kernel."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 4))
    hidden = layers.Conv2D(8, 3, name="conv")(inputs)
    hidden = layers.ReLU()(layers.BatchNormalization()(hidden))
    hidden = layers.DepthwiseConv2D(2, name="depthwise")(hidden)
    hidden = layers.GlobalAveragePooling2D()(layers.Rescaling(0.5)(hidden))
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(12, name="dense")], name="inner")
    model = keras.Model(inputs, layers.Dense(3, name="last")(inner(hidden)))
    model.compile("sgd", LOSS)
    return model


class Subclassed(keras.Model):
    """No graph: the other engine."""

    def __init__(self, units: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.flatten = layers.Flatten()
        self.body = layers.Dense(units, activation="relu", kernel_constraint="non_neg", name="body")
        self.head = layers.Dense(3, name="head")

    def call(self, inputs):
        return self.head(self.body(self.flatten(inputs)))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def subclassed() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = Subclassed()
    model(X[:1])
    model.compile("sgd", LOSS)
    return model


class OwnStep(keras.Model):
    """A graph, but trained by code that tf_keras cannot be shown."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs) * 2.0


def own_step() -> keras.Model:
    model = functional()
    own = OwnStep(model.inputs, model.outputs)
    own.compile("sgd", LOSS)
    return own


def run(model: keras.Model, **arguments: Any) -> Pruned:
    arguments = {"epochs": 2, "batch_size": 8, "verbose": 0, **arguments}
    return prune(model, (X, Y), **arguments)


def sparsities(pruned: Pruned) -> dict[str, float]:
    return {row.name: row.sparsity for row in pruned.layers}


def zeros(weight: Any) -> int:
    return int(np.count_nonzero(np.asarray(weight) == 0))


MODELS = {
    "functional": (functional, TFMOT),
    "subclassed": (subclassed, MASKS),
    "own step": (own_step, MASKS),
}


@pytest.fixture(scope="module", params=MODELS)
def halved(request: pytest.FixtureRequest) -> tuple[keras.Model, list[np.ndarray], Pruned, str]:
    """A model, its weights before, and what became of it in 12 steps of which 6 renew masks."""
    build, engine = MODELS[request.param]
    model = build()
    before = [np.array(weight) for weight in model.weights]
    return model, before, run(model, sparsity=0.5, epochs=4, end=0.5), engine


def test_each_layer_has_the_zeros_asked_for(halved: Any) -> None:
    _, _, pruned, engine = halved
    assert pruned.engine == engine
    for row in pruned.layers:
        assert row.target == 0.5
        assert abs(row.sparsity - 0.5) * row.weights <= (8 if row.name == "body" else 1), row
    names = ["body", "head"] if "body" in sparsities(pruned) else ["conv", "inner.dense", "last"]
    assert list(sparsities(pruned)) == names


def test_the_given_model_is_as_before_and_the_new_one_like_it(halved: Any) -> None:
    model, before, pruned, _ = halved
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)
    assert model.compiled
    assert int(model.optimizer.iterations) == 0
    assert type(pruned.model) is type(model)
    assert not pruned.model.compiled
    moved = [
        not np.array_equal(new, old) for new, old in zip(pruned.model.weights, before, strict=True)
    ]
    assert any(moved)
    if "conv" in sparsities(pruned):
        assert zeros(pruned.model.get_layer("depthwise").kernel) == 0


def test_the_curve_has_every_step_and_grows_to_the_target(halved: Any) -> None:
    _, _, pruned, _ = halved
    assert pruned.steps.tolist() == list(range(1, 13))  # 3 batches an epoch
    assert (np.diff(pruned.sparsity) >= 0).all()
    weights = sum(row.weights for row in pruned.layers)
    total = sum(row.weights * row.sparsity for row in pruned.layers) / weights
    assert pruned.sparsity[0] == 0
    assert 0 < pruned.sparsity[3] < pruned.sparsity[5] == pruned.sparsity[-1]
    assert pruned.sparsity[-1] == pytest.approx(total, abs=8 / weights)


def test_the_constant_schedule_prunes_on_the_first_step() -> None:
    pruned = run(subclassed(), sparsity=0.5, schedule=constant)
    np.testing.assert_allclose(pruned.sparsity, pruned.sparsity[-1])


def test_one_batch_is_enough() -> None:
    assert run(functional(), sparsity=0.75, epochs=1, batch_size=24).sparsity.shape == (1,)


@pytest.mark.parametrize("build", [functional, own_step])
def test_a_choice_of_layers_leaves_the_others(build: Callable[[], keras.Model]) -> None:
    pruned = run(build(), sparsity={"conv": (2, 4), "inner.dense": 0.25})
    assert sparsities(pruned) == {"conv": 0.5, "inner.dense": 0.25, "last": 0}
    kernel = np.asarray(pruned.model.get_layer("conv").kernel)
    groups = (kernel == 0).reshape(9, 4, 8).sum(axis=1)  # of four inputs each
    assert groups.tolist() == [[2] * 8] * 9


def test_layers_whose_inputs_make_no_groups_are_left_and_shown() -> None:
    pruned = run(own_step(), sparsity=(4, 8))
    assert sparsities(pruned) == {"conv": 0, "inner.dense": 0.5, "last": 0}
    assert [row.target for row in pruned.layers] == [None, 0.5, None]


def test_a_layer_that_tfmot_cannot_prune_is_pruned_all_the_same() -> None:
    model = keras.Sequential(
        [
            keras.Input((6, 4)),
            layers.Bidirectional(layers.LSTM(4), name="both"),
            layers.Dense(3, name="last"),
        ]
    )
    pruned = prune(model, (X[:, 0], Y), loss=LOSS, sparsity=0.5, verbose=0)
    assert pruned.engine == MASKS
    assert sparsities(pruned) == {"both": 0.5, "last": 0.5}


def test_pruning_goes_on_from_what_is_pruned(halved: Any) -> None:
    _, _, once, _ = halved
    again = run(once.model, sparsity=0.75, loss=LOSS)
    # Groups of tied zeros and a last renewal: nothing that was zero has come back.
    for old, new in zip(once.model.weights, again.model.weights, strict=True):
        if len(old.shape) > 1 and zeros(old):
            assert zeros(new) >= 0.75 * np.size(new) - 1
    assert again.sparsity[0] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("known", [True, False])
def test_datasets_are_counted(known: bool) -> None:
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    if not known:
        data = data.filter(lambda x, y: True)
        assert data.cardinality() == tf.data.UNKNOWN_CARDINALITY
    pruned = prune(functional(), data, sparsity=0.5, epochs=2, verbose=0)
    assert len(pruned.steps) == 6


class Steps(keras.callbacks.Callback):
    """A callback of Keras 3, which tf_keras cannot call."""

    count = 0

    def on_train_batch_end(self, batch, logs=None):
        self.count += 1


def test_callbacks_of_either_keras_are_called() -> None:
    ours, theirs = Steps(), tf_keras.callbacks.History()
    assert run(functional(), callbacks=[ours]).engine == MASKS
    assert ours.count == 6
    assert run(functional(), callbacks=[theirs]).engine == TFMOT
    assert len(theirs.history["loss"]) == 2


@pytest.mark.parametrize("name", ["functional", "subclassed"])
def test_the_training_is_recorded_like_any_other(
    name: str, experiment: str, curves: Callable[[str], Any]
) -> None:
    build, engine = MODELS[name]
    with mka.track() as run_:
        pruned = run(build(), callbacks=[mka.MlflowLogger()], metrics=["accuracy"])
    assert pruned.engine == engine
    recorded = curves(run_.run_id)
    assert list(recorded["batch/loss"]) == [1, 2, 3, 4, 5, 6]
    assert list(recorded["train/accuracy"]) == [3, 6]


def test_the_optimizer_given_is_followed_and_stays_fresh() -> None:
    decay = keras.optimizers.schedules.ExponentialDecay(0.0, 10, 0.9)
    still = keras.optimizers.SGD(decay, momentum=0.9)
    model = functional()
    pruned = run(model, sparsity={"last": 0.5}, optimizer=still)
    np.testing.assert_array_equal(
        pruned.model.get_layer("conv").kernel, model.get_layer("conv").kernel
    )
    assert not still.built


def test_16_bits_train_and_come_back() -> None:
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, dtype="mixed_float16", name="half"), layers.Dense(3)]
    )
    pruned = prune(model, (X[:, 0, 0], Y), loss=LOSS, sparsity=0.5, verbose=0)
    assert pruned.model.get_layer("half").compute_dtype == "float16"
    assert sparsities(pruned)["half"] == 0.5


# The masks themselves.


def test_the_smallest_go_first() -> None:
    values = np.array([[3.0, -1.0], [0.5, -4.0]])
    assert smallest(values, 0.5).tolist() == [[1, 0], [0, 1]]
    assert smallest(np.ones((2, 2)), 0.5).sum() == 2, "of equal ones as many as asked for"
    assert smallest(values, 0.99).sum() == 1, "one stays"


def test_the_smallest_of_each_group_of_inputs_go() -> None:
    kernel = np.array([[1.0, 9], [2, 8], [3, 7], [4, 6]])  # 4 inputs, 2 outputs
    assert smallest_of_groups(kernel, 2, 4).tolist() == [[0, 1], [0, 1], [1, 0], [1, 0]]
    assert smallest_of_groups(kernel, 1, 2).tolist() == [[0, 1], [1, 0], [0, 1], [1, 0]]


def test_reached_counts_whole_weights() -> None:
    values = np.array([[0.0, 0, 1, 1, 1]])
    assert reached(values, 0.4)
    assert reached(values, 0.45)
    assert not reached(values, 0.6)
    assert reached(np.array([[0.0, 1]]), 0.9), "one stays"
    assert not reached(np.array([[0.0], [0], [0], [1], [1], [1], [1], [0]]), (2, 4))


# What is refused.


@pytest.mark.parametrize("sparsity", [0, 0.0, 1, 1.0, 1.5, -0.5, float("nan"), True, "0.8"])
def test_a_number_that_is_no_sparsity_is_refused(sparsity: Any) -> None:
    with pytest.raises(ValueError, match="expected a share of zeros above 0 and below 1"):
        run(functional(), sparsity=sparsity)


@pytest.mark.parametrize("sparsity", [(4, 4), (0, 4), (2, 4, 8), (0.5, 4)])
def test_a_pair_that_is_no_pattern_is_refused(sparsity: Any) -> None:
    with pytest.raises(ValueError, match=r"expected \(m, n\)"):
        run(functional(), sparsity=sparsity)


@pytest.mark.parametrize(
    ("sparsity", "complaint"),
    [
        ({}, "names no layer"),
        ({"dense": 0.5}, "'dense'.*those that have are conv, inner.dense, last"),
        ({"depthwise": 0.5}, "no trainable kernels"),
        ({"conv": (4, 8)}, "n must divide"),
    ],
)
def test_a_choice_that_cannot_be_met_is_refused(sparsity: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        run(functional(), sparsity=sparsity)


def test_a_pattern_that_fits_no_layer_is_refused() -> None:
    with pytest.raises(UserError, match=r"no trainable kernel that can be pruned to \(3, 7\)"):
        run(functional(), sparsity=(3, 7))


def test_a_model_that_is_sparser_already_is_refused() -> None:
    model = functional()
    kernel, bias = model.get_layer("last").get_weights()
    kernel[:10] = 0
    model.get_layer("last").set_weights([kernel, bias])
    with pytest.raises(UserError, match=r"'last' is sparser already.*83\.3% zeros, target 50\.0%"):
        run(model, sparsity=0.5)


class Stop(tf_keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = True


def test_a_target_that_was_not_reached_is_an_error() -> None:
    with pytest.raises(UserError, match=r"'conv' was to have 0\.8 zeros.*end the training early"):
        run(functional(), epochs=3, end=1.0, callbacks=[Stop()])


def test_a_quantized_model_is_refused() -> None:
    model = functional()
    model.get_layer("last").quantize("int8")
    with pytest.raises(UserError, match="'last'.*is quantized already"):
        run(model)


def test_a_model_of_tf_keras_is_refused() -> None:
    model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2)])
    with pytest.raises(TypeError, match="expected a model of Keras 3; got a tf_keras"):
        prune(model, (np.zeros((8, 4)), np.zeros(8)))


def test_weights_that_are_nan_are_refused_before_and_after() -> None:
    model = functional()
    with pytest.raises(UserError, match="holds NaN or infinite"):
        run(model, optimizer=keras.optimizers.SGD(1e30))
    model.get_layer("last").bias.assign([np.nan] * 3)
    with pytest.raises(UserError, match="last/bias' holds NaN"):
        run(model)


def test_a_model_that_keras_cannot_copy_is_refused() -> None:
    class Closed(Subclassed):
        def __init__(self, secret: Any) -> None:
            super().__init__()

    model = Closed(object())
    model(X[:1])
    with pytest.raises(UserError, match="cannot be copied"):
        run(model, loss=LOSS)


def test_averaged_weights_are_refused() -> None:
    with pytest.raises(UserError, match="use_ema=True"):
        run(functional(), optimizer=keras.optimizers.Adam(use_ema=True))


@pytest.mark.parametrize(
    ("data", "error", "complaint"),
    [
        (X, TypeError, r"expected \(x, y\)"),
        ((X[:0], Y[:0]), UserError, "at least one"),
        ((X, Y[:-1]), UserError, r"\[23, 24\] samples"),
        (tf.data.Dataset.from_tensors((X, Y)).repeat(), UserError, "endless"),
        (tf.data.Dataset.from_tensors((X, Y)).take(0), UserError, "empty"),
        (tf.data.Dataset.from_tensors(X), UserError, "without labels"),
    ],
)
def test_data_to_train_on_is_needed(data: Any, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        prune(functional(), data)


def test_a_loss_is_needed() -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    with pytest.raises(UserError, match="not compiled with a loss"):
        prune(model, (X[:, 0, 0], Y))


@pytest.mark.parametrize("name", ["steps_per_epoch", "initial_epoch", "validation_split"])
def test_what_would_make_the_schedule_wrong_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} cannot be chosen"):
        run(functional(), **{name: 1})

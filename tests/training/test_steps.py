"""Building blocks of a training step, each against what Keras' own optimizer makes of it."""

import json
import re
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from mlflow_keras_adv.training import steps
from mlflow_keras_adv.training.observe import OptimizerProbe
from mlflow_keras_adv.training.steps import (
    GradientAccumulator,
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
    gradient_cosine,
)
from tests.warm import PYTHON

# Variables without gradient are trained on purpose; Keras warns of each.
pytestmark = pytest.mark.filterwarnings("ignore:Gradients do not exist")

Batches = list[tuple[np.ndarray, np.ndarray]]

ROWS, IDS, BATCH, WIDTH = 32, 4, 8, 12
EPS = float(np.finfo(np.float32).eps)

HOW: dict[str, Callable[[Any], Any]] = {
    "eager": lambda step: step,
    "graph": tf.function,
    "xla": tf.function(jit_compile=True),
}
CLIPPING = {
    "clipvalue": clip_by_value,
    "clipnorm": clip_by_norm,
    "global_clipnorm": lambda gradients, norm: clip_by_global_norm(gradients, norm)[0],
}


def tolerance(updates: int) -> float:
    """Float32 rounding of weights near 1: eps for each product in the sums of each update."""
    return EPS * BATCH * WIDTH * updates


def tiny_model() -> keras.Model:
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((IDS,), dtype="int32"),
            keras.layers.Embedding(ROWS, WIDTH // IDS),
            keras.layers.Flatten(),
            keras.layers.Dense(5, activation="tanh"),
            keras.layers.Dense(1),
        ]
    )


def batches(count: int, *, repeat_ids: bool) -> Batches:
    rng = np.random.default_rng(4)
    return [
        (
            (rng.integers(5, size=ROWS) if repeat_ids else rng.permutation(ROWS))
            .reshape(BATCH, IDS)
            .astype(np.int32),
            rng.normal(size=(BATCH, 1)).astype(np.float32),
        )
        for _ in range(count)
    ]


def trained(how: str, data: Batches, update: Callable[[list[Any], list[Any]], Any]) -> Any:
    """Weights after one step a batch; `update` receives the gradients and the variables."""
    model = tiny_model()
    variables = [*model.trainable_variables, keras.Variable(1.0, name="without_gradient")]

    def step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
        update(tape.gradient(loss, variables), variables)

    step = HOW[how](step)
    for x, y in data:
        step(tf.constant(x), tf.constant(y))
    return np.concatenate([variable.numpy().ravel() for variable in variables])


def updating(optimizer: Any) -> Callable[[list[Any], list[Any]], Any]:
    return lambda gradients, variables: optimizer.apply_gradients(
        zip(gradients, variables, strict=True)
    )


def code_of(documented: Any) -> str:
    """The Python example in a docstring."""
    found = re.search(r"```python\n(.*?)```", documented.__doc__, re.DOTALL)
    assert found is not None
    return textwrap.dedent(found[1])


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    ("argument", "limit"), [("clipvalue", 0.02), ("clipnorm", 0.1), ("global_clipnorm", 0.2)]
)
def test_clipped_gradients_train_as_the_keras_argument(
    how: str, argument: str, limit: float
) -> None:
    data = batches(6, repeat_ids=False)
    keras_own = keras.optimizers.SGD(0.5, momentum=0.9, **{argument: limit})
    expected = trained("eager", data, updating(keras_own))

    plain = keras.optimizers.SGD(0.5, momentum=0.9)
    clip = CLIPPING[argument]
    actual = trained(
        how, data, lambda gradients, variables: updating(plain)(clip(gradients, limit), variables)
    )

    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance(len(data)))


def row_gradient(rows: list[int]) -> tf.IndexedSlices:
    values = np.arange(1, 2 * len(rows) + 1, dtype=np.float32).reshape(-1, 2)
    return tf.IndexedSlices(tf.constant(values), tf.constant(rows), tf.constant([5, 2]))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("argument", CLIPPING)
def test_a_row_that_repeats_is_clipped_as_in_the_dense_gradient(how: str, argument: str) -> None:
    def clip() -> Any:
        (clipped,) = CLIPPING[argument]([row_gradient([3, 0, 3, 3])], 2.0)
        return tf.convert_to_tensor(clipped)

    dense = np.zeros((5, 2), np.float32)
    dense[3], dense[0] = [1 + 5 + 7, 2 + 6 + 8], [3, 4]
    expected = (
        np.clip(dense, -2, 2) if argument == "clipvalue" else dense * 2 / np.linalg.norm(dense)
    )
    # Eight numbers in the norm, then a division and a product.
    np.testing.assert_allclose(HOW[how](clip)(), expected, rtol=10 * EPS)


@pytest.mark.parametrize("argument", CLIPPING)
def test_keras_clips_each_occurrence_of_a_row_by_itself(argument: str) -> None:
    """The reason for the functions; once this fails, Keras' arguments are exact as well."""
    variable = keras.Variable(np.zeros((5, 2), np.float32))
    optimizer = keras.optimizers.SGD(1.0, **{argument: 2.0})
    optimizer.apply([row_gradient([3, 0, 3, 3])], [variable])
    step = -variable.numpy()
    assert (np.abs(step).max() if argument == "clipvalue" else np.linalg.norm(step)) > 2.01


def test_the_norm_is_that_before_clipping() -> None:
    gradients = [tf.constant([3.0, 0.0]), None, tf.constant([[4.0]], tf.float16)]

    clipped, norm = tf.function(clip_by_global_norm)(gradients, tf.constant(2.5))
    assert float(norm) == 5.0
    assert norm.dtype == tf.float32
    assert clipped[1] is None
    assert clipped[2].dtype == tf.float16
    np.testing.assert_allclose(clipped[0], [1.5, 0], rtol=4 * EPS)
    assert float(clipped[2][0, 0]) == 2.0

    within, norm = clip_by_global_norm(gradients, 8.0)  # a power of two: the factor is exactly 1
    assert float(norm) == 5.0
    np.testing.assert_array_equal(within[0], gradients[0])


@pytest.mark.parametrize("gradients", [[], [None, None]])
def test_nothing_to_clip_stays_nothing(gradients: list[None]) -> None:
    for clip in CLIPPING.values():
        assert clip(gradients, 1.0) == gradients


def test_zero_gradients_stay_zero() -> None:
    for clip in CLIPPING.values():
        assert clip([tf.zeros([2])], 1.0)[0].numpy().tolist() == [0, 0]


def test_a_gradient_that_is_not_finite_makes_all_of_its_norm_nan() -> None:
    gradients = [tf.constant([1.0, np.inf]), tf.constant([2.0])]
    clipped, norm = clip_by_global_norm(gradients, 1.0)
    assert np.isinf(norm)
    assert all(np.isnan(each).all() for each in clipped)
    assert [np.isnan(each).all() for each in clip_by_norm(gradients, 1.0)] == [True, False]


@pytest.mark.parametrize("limit", [0, -1.0, float("nan")])
def test_a_limit_that_is_not_positive_is_refused(limit: float) -> None:
    for clip in CLIPPING.values():
        with pytest.raises(ValueError, match=rf"={limit}; expected a positive number"):
            clip([tf.constant([1.0])], limit)


@pytest.mark.parametrize("how", HOW)
def test_accumulation_trains_as_the_keras_argument(how: str) -> None:
    data = batches(7, repeat_ids=True)  # two groups, and one batch that updates nothing
    keras_own = keras.optimizers.SGD(0.5, momentum=0.9, gradient_accumulation_steps=3)
    expected = trained("eager", data, updating(keras_own))

    plain = keras.optimizers.SGD(0.5, momentum=0.9)
    accumulator = GradientAccumulator(3)
    actual = trained(
        how, data, lambda gradients, variables: accumulator.apply(plain, gradients, variables)
    )

    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance(len(data)))
    assert int(plain.iterations) == int(keras_own.iterations) == 2


def test_the_accumulation_example_trains_on_every_batch() -> None:
    data = batches(6, repeat_ids=True)
    model, optimizer = tiny_model(), keras.optimizers.SGD(0.5, momentum=0.9)
    names: dict[str, Any] = {
        "GradientAccumulator": GradientAccumulator,
        "tf": tf,
        "model": model,
        "loss_fn": keras.losses.MeanSquaredError(),
        "optimizer": optimizer,
        "train": data,
    }
    exec(code_of(GradientAccumulator), names)
    assert int(optimizer.iterations) == 2
    assert not names["accumulator"].flush(optimizer)
    assert int(optimizer.iterations) == 2

    # The mean over equal micro-batches is the gradient of the batch that they make up.
    joined = [
        tuple(np.concatenate(parts) for parts in zip(*group, strict=True))
        for group in (data[:4], data[4:])
    ]
    expected = trained("eager", joined, updating(keras.optimizers.SGD(0.5, momentum=0.9)))
    actual = np.concatenate([each.numpy().ravel() for each in model.trainable_variables])
    np.testing.assert_allclose(actual, expected[:-1], rtol=0, atol=tolerance(len(data)))


def test_nothing_accumulated_is_nothing_to_flush() -> None:
    assert not GradientAccumulator(2).flush(keras.optimizers.SGD())


@pytest.mark.parametrize("how", HOW)
def test_an_update_is_reported_when_it_is_due(how: str) -> None:
    accumulator, optimizer = GradientAccumulator(2), keras.optimizers.Adam(0.1)
    variable = keras.Variable([1.0, 2.0])
    step = HOW[how](lambda: accumulator.apply(optimizer, [tf.ones([2])], [variable]))
    assert [bool(step()) for _ in range(5)] == [False, True, False, True, False]


@pytest.mark.parametrize("how", ["graph", "xla"])
def test_accumulation_may_begin_in_a_loop_inside_the_graph(how: str) -> None:
    inner = keras.optimizers.SGD(1.0, momentum=0.5)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=8)
    accumulator, variable = GradientAccumulator(2), keras.Variable(0.0)

    def many_steps(gradients: Any) -> None:
        for gradient in gradients:
            accumulator.apply(optimizer, [optimizer.scale_loss(gradient)], [variable])

    HOW[how](many_steps)(tf.constant([1.0, 3.0, np.inf, 1.0, 2.0, 2.0, 9.0]))
    assert float(variable.numpy()) == -2 + (-2 * 0.5 - 2)
    assert float(optimizer.dynamic_scale.numpy()) == 4


def test_a_trace_that_failed_leaves_the_accumulator_usable() -> None:
    optimizer, variable = keras.optimizers.SGD(1.0), keras.Variable(0.0)
    accumulator = GradientAccumulator(2)

    @tf.function
    def broken_step() -> None:
        accumulator.apply(optimizer, [tf.constant(1.0)], [variable])
        raise KeyError("a mistake further down")

    @tf.function
    def step() -> None:
        accumulator.apply(optimizer, [tf.constant(1.0)], [variable])

    with pytest.raises(KeyError):
        broken_step()
    for _ in range(2):
        step()
    assert float(variable.numpy()) == -1


@pytest.mark.parametrize("how", HOW)
def test_a_group_that_overflowed_is_skipped_as_a_whole(how: str) -> None:
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0), initial_scale=8)
    accumulator, variable = GradientAccumulator(2), keras.Variable(0.0)

    def step(gradient: Any) -> None:
        accumulator.apply(optimizer, [optimizer.scale_loss(gradient)], [variable])

    step = HOW[how](step)
    values = []
    for gradient in [1.0, 3.0, np.inf, 1.0, 5.0, 7.0]:
        step(tf.constant(gradient))
        values.append(float(variable.numpy()))
    assert values == [0, -2, -2, -2, -2, -8]
    assert float(optimizer.dynamic_scale.numpy()) == 4


def test_gradients_are_observed_once_an_update() -> None:
    optimizer = keras.optimizers.SGD(0.5, global_clipnorm=1.0)
    accumulator, variable = GradientAccumulator(2), keras.Variable([0.0, 0.0])
    probe = OptimizerProbe(optimizer)
    probe.attach()

    @tf.function
    def step(gradient: Any) -> None:
        probe.recorder.advance()
        accumulator.apply(optimizer, [gradient], [variable])

    for gradient in ([2.0, 0.0], [4.0, 8.0], [1.0, 1.0]):
        step(tf.constant(gradient))
    probe.detach()
    columns = probe.recorder.read().columns
    assert columns["norm"].tolist() == [None, 5.0, None]  # of the mean, [3, 4]
    assert columns["norm_clipped"][1] == pytest.approx(1.0, rel=4 * EPS)
    assert columns["learning_rate"].tolist() == [None, 0.5, None]


def test_steps_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="steps=0; expected 1 or more"):
        GradientAccumulator(0)


def test_variables_other_than_those_of_the_first_call_are_refused() -> None:
    accumulator, optimizer = GradientAccumulator(2), keras.optimizers.SGD()
    first, second = keras.Variable(0.0, name="first"), keras.Variable(0.0, name="second")
    one = tf.constant(1.0)
    accumulator.apply(optimizer, [one, None], [first, second])
    with pytest.raises(ValueError, match="Make one GradientAccumulator for each list"):
        accumulator.apply(optimizer, [one, one], [second, first])
    with pytest.raises(ValueError, match="for 'second', which had none at the first call"):
        accumulator.apply(optimizer, [one, one], [first, second])


def half_model() -> keras.Model:
    keras.utils.set_random_seed(5)
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(5, activation="tanh", dtype="mixed_float16"),
            keras.layers.Dense(1, dtype="mixed_float16"),
        ]
    )


@pytest.mark.parametrize("how", HOW)
def test_the_loss_scaling_example_trains_as_fit(how: str) -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(6 * BATCH, 3)).astype(np.float32)
    y = rng.normal(scale=0.5, size=(6 * BATCH, 1)).astype(np.float32)
    y[2 * BATCH : 3 * BATCH] = 1000  # times the scale this is beyond float16: one step is skipped

    by_fit = half_model()
    keras_own = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-3))
    by_fit.compile(keras_own, "mse", run_eagerly=how == "eager", jit_compile=how == "xla")
    by_fit.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)

    model = half_model()
    names = {
        "keras": keras,
        "tf": tf,
        "model": model,
        "loss_fn": keras.losses.MeanSquaredError(),
    }
    exec(code_of(steps), names)
    step = HOW[how](names["train_step"].python_function)
    for start in range(0, len(x), BATCH):
        step(tf.constant(x[start : start + BATCH]), tf.constant(y[start : start + BATCH]))

    optimizer = names["optimizer"]
    assert float(optimizer.dynamic_scale) == float(keras_own.dynamic_scale) == 2.0**14
    assert int(optimizer.iterations) == int(keras_own.iterations) == 5
    # Each of 5 updates moves a weight by 1e-3 at most, and is as exact as float16 is.
    for actual, expected in zip(model.get_weights(), by_fit.get_weights(), strict=True):
        np.testing.assert_allclose(
            actual, expected, rtol=0, atol=5 * 1e-3 * float(np.finfo(np.float16).eps)
        )


TWO_REPLICAS = """
import json
import keras
import tensorflow as tf
from mlflow_keras_adv.training.steps import GradientAccumulator, clip_by_global_norm

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    variable = keras.Variable([0.0, 0.0])
    optimizer = keras.optimizers.SGD(1.0)
gradients = tf.constant([[6.0, 0.0], [0.0, 8.0]])

@tf.function
def clipped():
    def step():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        clipped, norm = clip_by_global_norm([gradients[replica]], 5.0)
        optimizer.apply_gradients(zip(clipped, [variable]))
        return norm
    return strategy.experimental_local_results(strategy.run(step))

norms = [float(norm) for norm in clipped()]
try:
    strategy.run(lambda: GradientAccumulator(2).apply(optimizer, [gradients[0]], [variable]))
    refusal = ""
except RuntimeError as error:
    refusal = str(error)
print(json.dumps({"norms": norms, "weights": variable.numpy().tolist(), "refusal": refusal}))
"""


@pytest.mark.slow
def test_two_replicas() -> None:
    """In a process of its own: the devices are divided before TensorFlow begins."""
    done = subprocess.run(
        [PYTHON, "-c", TWO_REPLICAS],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["norms"] == [10.0, 10.0]
    np.testing.assert_allclose(found["weights"], [-3, -4], rtol=4 * EPS)
    assert "one of 2 replicas" in found["refusal"]


def test_the_cosine_is_that_of_all_parts_together() -> None:
    first = [tf.constant([[1.0, 0.0]]), tf.constant([2.0])]
    second = [tf.constant([[0.0, 3.0]]), tf.constant([4.0])]

    assert float(gradient_cosine(first, first)) == pytest.approx(1, abs=4 * EPS)
    assert float(gradient_cosine(first, second)) == pytest.approx(8 / (5**0.5 * 5), abs=4 * EPS)
    assert float(gradient_cosine(first, [tf.zeros((1, 2)), tf.zeros(1)])) == 0

"""Floating-point operations, against counts by hand and against TensorFlow's own profiler."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.metrics.flops import (
    Flops,
    flops,
    flops_and_said,
    flops_of_function,
    training_step_flops,
)
from mlflow_keras_adv.metrics.footprint import footprint
from tests.differential import Watch, difference
from tests.peers.programs.data import table
from tests.peers.programs.guides import CROSSENTROPY, classifier

# Of each unit of an LSTM in each step: the two products are added and so is the bias, three gates
# are sigmoids of 4, two are tanh, then three products and a sum.
LSTM_UNIT = 4 + 4 + 3 * 4 + 2 + 4


def net(shape: Sequence[int | None], *stacked: Any, **options: Any) -> keras.Model:
    return keras.Sequential([keras.Input(tuple(shape), **options), *stacked])


def attention(**options: Any) -> keras.Model:
    taken = keras.Input((5, 8))
    return keras.Model(taken, layers.MultiHeadAttention(2, 4, **options)(taken, taken))


# Of 5 words of 8 numbers, to 2 heads of 4: three projections to the heads and one back; the scores,
# their scale and softmax; the weighted sum.
PROJECTION, SCORES = 2 * 5 * 8 * 8, 2 * 2 * 5 * 5 * 4
HEADS = 4 * PROJECTION + 2 * SCORES + (1 + 5) * (2 * 5 * 5)


@pytest.mark.parametrize(
    ("model", "by_hand"),
    [
        (lambda: net((7,), layers.Dense(3)), 2 * 7 * 3 + 3),
        (lambda: net((7,), layers.Dense(3, use_bias=False)), 2 * 7 * 3),
        (lambda: net((4, 7), layers.Dense(3, "relu")), 4 * (2 * 7 * 3 + 3 + 3)),
        (lambda: net((8, 8, 3), layers.Conv2D(5, 3)), 6 * 6 * 5 * (2 * 9 * 3 + 1)),
        (
            lambda: net((8, 8, 4), layers.Conv2D(6, 3, 2, groups=2, use_bias=False)),
            3 * 3 * 6 * (2 * 9 * 2),
        ),
        (
            lambda: net((8, 8, 3), layers.DepthwiseConv2D(3, depth_multiplier=2)),
            6 * 6 * 6 * (2 * 9 + 1),
        ),
        (
            lambda: net((8, 8, 3), layers.SeparableConv2D(5, 3)),
            6 * 6 * 3 * 2 * 9 + 6 * 6 * 5 * (2 * 3 + 1),
        ),
        (
            lambda: net((4, 4, 3), layers.Conv2DTranspose(5, 3, strides=2)),
            4 * 4 * 3 * 2 * 9 * 5 + 9 * 9 * 5,  # each input moves a kernel for each output
        ),
        (lambda: net((9, 3), layers.Conv1D(5, 3)), 7 * 5 * (2 * 9 + 1)),
        (lambda: net((4, 4, 4, 2), layers.Conv3D(5, 3)), 8 * 5 * (2 * 27 * 2 + 1)),
        (
            lambda: net((5, 3), layers.LSTM(4)),
            5 * (2 * 3 * 16 + 2 * 4 * 16 + 4 * LSTM_UNIT),
        ),
        (
            lambda: net((5, 3), layers.LSTM(4, use_bias=False)),
            5 * (2 * 3 * 16 + 2 * 4 * 16 + 4 * (LSTM_UNIT - 4)),
        ),
        (  # two biases; of each unit two sigmoids, three sums, tanh, r*h, z*h, (1-z)*h, their sum
            lambda: net((5, 3), layers.GRU(4)),
            5 * (2 * 3 * 12 + 2 * 4 * 12 + 2 * 12 + 4 * (2 * 4 + 3 + 1 + 5)),
        ),
        (lambda: net((5, 3), layers.SimpleRNN(4)), 5 * (2 * 3 * 4 + 2 * 4 * 4 + 4 + 4 + 4)),
        (attention, HEADS + 4 * 5 * 8),
        (lambda: attention(use_bias=False), HEADS),
        (lambda: net((8, 8, 3), layers.MaxPooling2D(2)), 4 * 4 * 3 * 4),
        (lambda: net((6,), layers.Embedding(10, 4)), 0),
        (lambda: net((6,), layers.Dropout(0.5), layers.Softmax()), 6 * 5),
        # Each number times a scale and plus an offset, that five operations make of a channel.
        (lambda: net((8, 8, 3), layers.BatchNormalization()), 2 * 192 + 6 * 3),
    ],
)
def test_a_forward_pass_equals_the_count_by_hand(model: Any, by_hand: int) -> None:
    made = model()
    x = np.zeros((2, *made.inputs[0].shape[1:]), "float32")
    found = flops(made, x)
    assert found.total == by_hand
    assert found.uncounted == {}
    assert sum(found.per_op.values()) == found.total


def test_an_image_net_counts_what_tensorflows_profiler_counts() -> None:
    model = net(
        (16, 16, 3),
        layers.Conv2D(8, 3, strides=2, padding="same"),
        layers.BatchNormalization(),
        layers.DepthwiseConv2D(3),
        layers.MaxPooling2D(2),
        layers.GlobalAveragePooling2D(),
        layers.Dense(4, "softmax"),
    )
    traced = tf.function(lambda x: model(x, training=False)).get_concrete_function(
        tf.TensorSpec((1, 16, 16, 3))
    )
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    theirs = tf.compat.v1.profiler.profile(traced.graph, options=options).total_float_ops
    assert flops_of_function(traced).total == theirs


def test_a_free_length_is_that_of_the_samples_and_a_fixed_batch_is_shared_out() -> None:
    a_step = 2 * 3 * 16 + 2 * 4 * 16 + 4 * LSTM_UNIT
    free = net((None, 3), layers.LSTM(4))
    assert flops(free, np.zeros((2, 7, 3), "float32")).total == 7 * a_step
    fixed = net((5, 3), layers.LSTM(4, stateful=True), batch_size=4)
    assert flops(fixed, np.zeros((4, 5, 3), "float32")).total == 5 * a_step


def test_texts_several_inputs_and_a_subclassed_model() -> None:
    words = layers.TextVectorization(output_sequence_length=6)
    words.adapt(["a b c", "d"])
    text = net((), words, layers.Embedding(9, 4), layers.GlobalAveragePooling1D(), dtype="string")
    assert flops(text, np.array(["a b"])).total == 6 * 4

    class Both(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = layers.Dense(4, use_bias=False)

        def call(self, x: Any) -> Any:
            return {"sum": self.dense(x["a"]) + self.dense(x["b"])}

    both, x = Both(), {"a": np.zeros((3, 5), "float32"), "b": np.zeros((3, 5), "float32")}
    both(x)
    assert flops(both, x).total == 2 * (2 * 5 * 4) + 4


class Odd(layers.Layer):
    """A loop that ends when it likes, a branch, and an operation that nobody has counted."""

    def call(self, x: Any) -> Any:
        def turn(count: Any, total: Any) -> Any:
            return count + 1, total * 2.0

        doubled = tf.while_loop(lambda _, t: tf.reduce_sum(t) < 9.0, turn, [tf.constant(0), x])[1]
        larger = tf.cond(tf.reduce_sum(x) > 0, lambda: doubled * 3.0 + 1.0, lambda: doubled)
        return larger + tf.linalg.det(tf.eye(2))


def test_what_is_not_counted_is_said() -> None:
    found = flops(net((4,), Odd()), np.ones((1, 4), "float32"))
    # Of the loop one turn and its question, of the branches the longer one, and the last sum.
    assert found.total == (3 + 1) + 4 + (3 + 1) + (4 + 4) + 4
    assert found.uncounted == {"MatrixDeterminant": 1, "loop of unknown length, counted once": 1}
    assert "not counted: " in str(found)
    assert "1 x MatrixDeterminant" in found.left_out
    numbers, said = flops_and_said(lambda: found)
    assert numbers == {"flops": found.total}
    assert said.startswith("flops is without 1 x ")


def test_where_it_cannot_be_counted_there_is_a_sentence_and_no_number() -> None:
    def fails() -> Flops:
        raise RuntimeError("of the\nmodel")

    assert flops_and_said(fails) == ({}, "There is no flops: of the model")
    unknown = Flops(7, {}, {"MatMul of unknown shape": 1})
    assert flops_and_said(lambda: unknown)[0] == {}
    with pytest.raises(UserError, match="cannot be counted"):
        flops(net((4,), layers.Dense(2)), np.ones((1, 5), "float32"))


@pytest.mark.parametrize("batch", [1, 4, 7])
def test_a_step_makes_the_products_of_forward_and_backward(batch: int) -> None:
    d, h, m = 6, 5, 3
    dense = net((d,), layers.Dense(h, "relu"), layers.Dense(m, use_bias=False))
    image = net((8, 8, 3), layers.Conv2D(4, 3), layers.DepthwiseConv2D(3), layers.Flatten())
    recurrent = net((5, 3), layers.LSTM(4))
    found = {}
    for name, model in (("dense", dense), ("image", image), ("recurrent", recurrent)):
        model.compile("sgd", "mse")
        x = np.zeros((batch, *model.inputs[0].shape[1:]), "float32")
        y = np.zeros((batch, *model.outputs[0].shape[1:]), "float32")
        with pytest.raises(UserError, match="before its first one"):
            training_step_flops(model, x, y)
        model.train_on_batch(x, y)
        counted = training_step_flops(model, x, y)
        assert counted.uncounted == {}
        found[name] = counted.per_op
    # The gradient of each weight, and of what goes in but for the first layer.
    assert found["dense"]["MatMul"] == batch * (2 * 2 * d * h + 3 * 2 * h * m)
    kernel, deep = 6 * 6 * 4 * 2 * 9 * 3, 4 * 4 * 4 * 2 * 9
    assert found["image"]["Conv2D"] == found["image"]["Conv2DBackpropFilter"] == batch * kernel
    for name in ("", "BackpropInput", "BackpropFilter"):
        assert found["image"][f"DepthwiseConv2dNative{name}"] == batch * deep
    assert found["recurrent"]["MatMul"] == batch * 5 * (2 * 2 * 3 * 16 + 3 * 2 * 4 * 16)


@pytest.mark.quick
def test_a_step_of_a_loop_of_ones_own_is_counted_from_its_trace() -> None:
    traces = []

    @tf.function
    def step(x: Any, w: Any) -> Any:
        traces.append(x)
        return tf.matmul(x, w)

    x, w = tf.zeros((3, 4)), tf.zeros((4, 2))
    step(x, w)
    assert flops_of_function(step, x, w).total == 2 * 3 * 4 * 2
    assert len(traces) == 1
    assert flops_of_function(tf.matmul, x, w).total == 2 * 3 * 4 * 2


class Counting(Watch):
    """Counts the FLOPs of the model behind each epoch."""

    @property
    def callbacks(self) -> list[Any]:
        return [keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: self.count())]

    def count(self) -> None:
        x, y = table()
        assert flops(self.model, x).total > 0
        assert training_step_flops(self.model, x[:8], y[:8]).total > 0


def test_counting_leaves_weights_metrics_and_random_numbers_alone() -> None:
    def program(watch: Any) -> Any:
        x, y = table()
        watch.model = model = classifier()
        model.compile("adam", CROSSENTROPY, metrics=["accuracy"], jit_compile=False)
        return model, model.fit(x, y, epochs=2, verbose=0, callbacks=watch.callbacks)

    assert difference(program, Counting()) == []


def test_a_footprint_has_them_without_a_trace_of_their_own() -> None:
    traces = []

    class Traced(layers.Layer):
        def call(self, x: Any) -> Any:
            traces.append(x.shape)
            return x

    model = net((7,), Traced(), layers.Dense(3))
    traces.clear()
    assert footprint(model, np.zeros((3, 7), "float32"), repeats=1)["flops"] == 2 * 7 * 3 + 3
    assert traces == [(1, 7), (32, 7)]

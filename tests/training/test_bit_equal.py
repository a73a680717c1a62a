"""An observed training ends where the plain one does, to the last bit."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, optimizers

import mlflow_keras_adv as mka
from mlflow_keras_adv.training.aside import aside

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(48, 8, 8, 3)).astype(np.float32)
WORDS = RNG.integers(0, 20, (48, 10))
ROWS = RNG.normal(size=(48, 8)).astype(np.float32)
LABELS = RNG.integers(0, 3, 48)


class OwnStep(keras.Model):
    """A step of its own that no metric looks at: the loss has no reader but its gradient."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"one": tf.constant(1.0)}


def convolutions(kind: Callable[..., keras.Model] = keras.Model) -> tuple[Any, keras.Model]:
    inputs = keras.Input((8, 8, 3))
    hidden = layers.Conv2D(8, 3, activation="relu", kernel_regularizer="l2")(inputs)
    hidden = layers.GlobalAveragePooling2D()(layers.Conv2D(16, 3, activation="relu")(hidden))
    return IMAGES, kind(inputs, layers.Dense(3)(hidden))


def normalized(kind: Callable[..., keras.Model] = keras.Model) -> tuple[Any, keras.Model]:
    inputs = keras.Input((8,))
    hidden = layers.Dense(16, activation="relu", kernel_regularizer="l2")(inputs)
    hidden = layers.Dropout(0.3)(layers.BatchNormalization()(hidden))
    hidden = layers.LayerNormalization()(layers.Dense(16, activation="gelu")(hidden))
    return ROWS, kind(inputs, layers.Dense(3)(hidden))


def embedded(kind: Callable[..., keras.Model] = keras.Model) -> tuple[Any, keras.Model]:
    inputs = keras.Input((10,), dtype="int32")
    hidden = layers.GlobalAveragePooling1D()(layers.Embedding(20, 8)(inputs))
    return WORDS, kind(inputs, layers.Dense(3)(hidden))


def chain(kind: Callable[..., keras.Model] = keras.Model) -> tuple[Any, keras.Model]:
    inputs = keras.Input((8,))
    return ROWS, kind(inputs, layers.Dense(3)(inputs))


def trained(
    net: Callable[..., tuple[Any, keras.Model]],
    kind: Callable[..., keras.Model],
    optimizer: Callable[[], Any],
    arguments: dict[str, Any],
    callbacks: list[Any],
) -> dict[str, bytes]:
    keras.utils.clear_session()  # both are to have the same names
    keras.utils.set_random_seed(3)
    x, model = net(kind)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer(), [loss], **{"jit_compile": False, **arguments})
    history = model.fit(
        x, LABELS, batch_size=16, epochs=2, shuffle=False, verbose=0, callbacks=callbacks
    )
    ends = {each.path: each for each in [*model.variables, *model.optimizer.variables]}
    found = {name: np.asarray(each).tobytes() for name, each in ends.items()}
    return found | {name: np.asarray(each).tobytes() for name, each in history.history.items()}


@pytest.mark.parametrize(
    ("net", "kind", "optimizer", "arguments"),
    [
        pytest.param(
            embedded,
            keras.Model,
            lambda: optimizers.SGD(0.05, global_clipnorm=0.1),
            {},
            id="slices",
        ),
        pytest.param(
            normalized,
            OwnStep,
            lambda: optimizers.SGD(0.05, momentum=0.9, nesterov=True),
            {},
            id="own_step",
        ),
        pytest.param(
            convolutions,
            keras.Model,
            lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.05, global_clipnorm=0.1)),
            {"loss_weights": [0.3], "steps_per_execution": 3},
            id="loss_scale",
        ),
        pytest.param(
            convolutions,
            OwnStep,
            lambda: optimizers.Adam(0.01, gradient_accumulation_steps=2, clipvalue=0.01),
            {},
            id="convolutions",
        ),
        pytest.param(
            chain,
            OwnStep,
            lambda: optimizers.Adam(0.01, gradient_accumulation_steps=2, global_clipnorm=0.1),
            {"jit_compile": True, "steps_per_execution": 3},
            id="xla_accumulation",
        ),
        pytest.param(
            chain,
            keras.Model,
            lambda: optimizers.SGD(0.05, clipnorm=0.1),
            {"jit_compile": True},
            id="xla",
        ),
        pytest.param(
            normalized,
            keras.Model,
            lambda: optimizers.AdamW(0.01),
            {"run_eagerly": True},
            id="eager",
        ),
    ],
)
def test_an_observed_training_ends_bit_for_bit_where_the_plain_one_does(
    net: Callable[..., Any],
    kind: Callable[..., keras.Model],
    optimizer: Callable[[], Any],
    arguments: dict[str, Any],
    experiment: str,
) -> None:
    plain = trained(net, kind, optimizer, arguments, [])
    with mka.track("observed", log_system_metrics=False):
        observed = trained(net, kind, optimizer, arguments, [mka.MlflowLogger()])
    assert [name for name in plain if observed.get(name) != plain[name]] == []


def test_what_is_read_aside_gives_no_operation_of_the_step_another_reader() -> None:
    @tf.function
    def step(x: Any, y: Any) -> tuple[Any, Any]:
        product = tf.matmul(x, y)
        value = tf.cast(product * 0.5, tf.float32) + tf.square(product)
        readers = [len(op.outputs[0].consumers()) for op in operations_behind(value, product)]
        copy = aside(value)
        assert copy is not value
        after = [len(op.outputs[0].consumers()) for op in operations_behind(value, product)]
        assert after == readers
        return value, copy

    x = tf.constant(RNG.normal(size=(4, 4)))
    x = tf.cast(x, tf.float32)
    value, copy = step(x, x)
    np.testing.assert_array_equal(value, copy)


def operations_behind(value: Any, end: Any) -> list[Any]:
    """The operations from `value` back to `end`, without that of `end`."""
    found: list[Any] = []
    waiting = [value.op]
    while waiting:
        op = waiting.pop()
        if op is not end.op and op not in found and op.inputs:
            found.append(op)
            waiting += [each.op for each in op.inputs]
    return found


def test_the_copy_of_a_long_chain_ends_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow_keras_adv.training.aside._MOST", 10)

    @tf.function
    def step(x: Any) -> Any:
        for _ in range(30):
            x = x + 1.0
        return x, aside(x)

    value, copy = step(tf.constant(0.0))
    assert float(value) == float(copy) == 30.0


def test_what_is_no_tensor_of_a_graph_is_read_as_it_is() -> None:
    for value in (tf.constant(1.0), 2.0, None, tf.Variable(1.0), keras.Variable(1.0)):
        assert aside(value) is value

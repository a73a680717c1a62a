"""The step inside the step; the trainings are in test_catalogue."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons.training import crossentropy
from projects.meta_learning import adapted, main, net

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 2, 2, 1)).astype(np.float32)
Y = np.array([0, 1, 2, 0, 1, 2], np.int32)


@pytest.fixture
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return net((2, 2, 1), ways=3)


@pytest.mark.quick
def test_the_steps_are_those_of_gradient_descent(model: keras.Model) -> None:
    found = adapted(model, X, Y, lr=0.5, steps=3, order=2)

    optimizer = keras.optimizers.SGD(0.5)
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = crossentropy(Y, model(X))
        optimizer.apply(tape.gradient(loss, model.trainable_weights), model.trainable_weights)
    for ours, weight in zip(found, model.trainable_weights, strict=True):
        np.testing.assert_allclose(ours, weight, rtol=1e-5, atol=1e-6)


def test_only_second_order_sees_how_the_step_depends_on_the_weights(model: keras.Model) -> None:
    def loss_after(order: int) -> tf.Tensor:
        weights = adapted(model, X, Y, lr=0.5, steps=1, order=order)
        return crossentropy(Y, model.stateless_call(weights, [], X)[0])

    kernel = model.trainable_weights[-2]
    found = {}
    for order in (1, 2):
        with tf.GradientTape() as tape:
            loss = loss_after(order)
        found[order] = tape.gradient(loss, kernel.value).numpy()[0, 0]
    step, before = 1e-2, kernel.numpy()
    values = []
    for change in (step, -step):
        moved = before.copy()
        moved[0, 0] += change
        kernel.assign(moved)
        values.append(float(loss_after(2)))
    slope = (values[0] - values[1]) / (2 * step)

    # The rounding of two losses of about 1 over the step, and the curvature over it.
    tolerance = 2 * float(np.finfo(np.float32).eps) / step + step**2
    assert found[2] == pytest.approx(slope, abs=tolerance)
    assert abs(found[1] - slope) > 10 * tolerance


def test_tasks_that_the_data_do_not_hold_are_one_error(experiment: str) -> None:
    with pytest.raises(mka.UserError, match=r"digits: ways and shots: got 30 and 1, .* 24 classes"):
        main(ways=30)

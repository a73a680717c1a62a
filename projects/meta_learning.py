"""Meta-learning: weights from which a new task is learned in a few steps from a few images.

A task is to tell N classes apart after seeing K images of each. MAML looks for weights w from which
any task can be learned quickly: for each task of a batch, a few steps of gradient descent lead from
w to w', and the loss of w' on other images of that task is minimized. Its gradient with respect to
w goes through the steps, so it contains second derivatives: a tape inside a tape. First-order MAML
leaves them out.

Finn, Abbeel, Levine: Model-agnostic meta-learning for fast adaptation of deep networks, 2017,
arXiv:1703.03400.

Rotations and reflections make eight classes of each class; the last 30 % of the classes are used
only in the test. Two nested runs with the same keys: first and second order. What to expect, for 5
classes after one step on one image of each: three images of five right, from random weights two;
first order is in between. Half a minute of computing on two cores.

    mlflow run . -e meta_learning --env-manager local -P shots=5
"""

from collections.abc import Mapping
from typing import Annotated, Any

import keras
import numpy as np
import tensorflow as tf
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.few_shot import Tasks, turned
from mlflow_keras_adv.lessons.training import crossentropy
from projects.data import load
from projects.parameters import Images

STEPS_PER_EPOCH = 50
QUERIES = 5  # images of each class that judge what was learned
TESTS = 300  # tasks


def net(shape: tuple[int, ...], ways: int) -> keras.Model:
    """Two hidden layers; gives logits."""
    body = [keras.layers.Flatten(), *(keras.layers.Dense(64, "relu") for _ in range(2))]
    return keras.Sequential([keras.Input(shape), *body, keras.layers.Dense(ways)])


def adapted(model: keras.Model, x: Any, y: Any, *, lr: float, steps: int, order: int) -> list[Any]:
    """The weights of `model` after a few steps on one task, as a function of its weights."""
    weights = [tf.convert_to_tensor(each) for each in model.trainable_variables]
    for _ in range(steps):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            logits, _ = model.stateless_call(weights, [], x)
            loss = crossentropy(y, logits)
        gradients = tape.gradient(loss, weights)
        if order == 1:
            gradients = [tf.stop_gradient(each) for each in gradients]
        weights = [w - lr * gradient for w, gradient in zip(weights, gradients, strict=True)]
    return weights


def accuracies(model: keras.Model, tasks: Any, *, lr: float, steps: int) -> dict[str, float]:
    """Mean accuracy on the tasks' query images, before and after the steps."""

    def right(task: Any) -> Any:
        x, y, queries, labels = task
        weights = adapted(model, x, y, lr=lr, steps=steps, order=1)
        logits = [model(queries), model.stateless_call(weights, [], queries)[0]]
        hits = keras.metrics.sparse_categorical_accuracy
        return [tf.reduce_mean(hits(labels, each)) for each in logits]

    before, after = tf.vectorized_map(right, tuple(map(tf.constant, tasks)))
    return {"accuracy_before": float(np.mean(before)), "accuracy": float(np.mean(after))}


def train(
    model: keras.Model, tasks: Tasks, held_out: Tasks, order: int, params: Mapping[str, Any]
) -> None:
    """MAML: the outer tape is around the steps that learn each task of a batch."""
    rng, optimizer = np.random.default_rng(params["seed"]), keras.optimizers.Adam(params["lr"])
    inner = {"lr": params["inner_lr"], "steps": params["inner_steps"]}
    validation = held_out.draw(rng, 50)
    loop = mka.Loop(model, optimizers=optimizer, callbacks=[mka.MlflowLogger()], verbose=0)

    @tf.function
    def train_step(*batch: Any) -> None:
        def loss_after_learning(task: Any) -> Any:
            x, y, queries, labels = task
            weights = adapted(model, x, y, **inner, order=order)
            return crossentropy(labels, model.stateless_call(weights, [], queries)[0])

        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.vectorized_map(loss_after_learning, batch))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        loop.record(loss=loss)

    for _ in loop.epochs(params["epochs"]):
        drawn = (tasks.draw(rng, params["batch_size"]) for _ in range(STEPS_PER_EPOCH))
        for batch in loop.batches(drawn):
            train_step(*map(tf.constant, batch))
        found = accuracies(model, validation, **inner)
        loop.log(**{f"val_{name}": value for name, value in found.items()})


def main(
    data: Images = "digits",
    epochs: PositiveInt = 20,
    batch_size: PositiveInt = 8,
    lr: PositiveFloat = 2e-3,
    inner_lr: PositiveFloat = 0.5,
    inner_steps: PositiveInt = 1,
    ways: Annotated[int, Field(ge=2)] = 5,
    shots: PositiveInt = 1,
    seed: NonNegativeInt = 0,
) -> None:
    """Trains by MAML of first and of second order, and tests on tasks of unseen classes.

    Args:
        epochs: Epochs of each of the two trainings; an epoch is 50 steps.
        batch_size: Tasks per step.
        lr: Learning rate of Adam, which moves the weights that tasks start from.
        inner_lr: Learning rate of the steps that learn a task.
        inner_steps: How many of these steps.
        ways: N, the classes of a task.
        shots: K, the images of each class to learn from.
        seed: Seed of weights, tasks and choice of the validation split.
    """
    params = dict(locals())
    images = load(data, seed=seed)
    kept = images.classes - max(1, round(0.3 * images.classes))
    rest, knobs = range(kept, images.classes), (ways, shots, QUERIES)
    try:
        seen = Tasks(turned(*images.train, range(kept)), *knobs)
        validation = Tasks(turned(*images.validation, range(kept)), *knobs)
        unseen = Tasks(turned(*images.test, rest), *knobs)
    except ValueError as error:
        raise mka.UserError(f"{images.name}: {error}") from error
    inner: dict[str, Any] = {"lr": inner_lr, "steps": inner_steps}

    with mka.technique("meta_learning", params, dataset=images, variants=2) as technique:
        tests = unseen.draw(np.random.default_rng(0), TESTS)
        random = accuracies(net(images.input_shape, ways), tests, **inner)["accuracy"]
        for name, order in {"first_order": 1, "second_order": 2}.items():
            with technique.variant(name):
                model = net(images.input_shape, ways)
                train(model, seen, validation, order, params)
                scores = accuracies(model, tests, **inner)
                technique.finish(model, images.x_test, scores=scores)

        technique.compare()
        first, second = technique.final("accuracy").values()
        before = technique.final("accuracy_before")
        gain, of_order = second - random, second - first
        technique.conclude(
            f"{ways} unseen classes from {shots} image(s) of each: {second:.1%} right after "
            f"{inner_steps} step(s) ({before['second_order']:.1%} before), {first:.1%} with "
            f"first-order MAML, {random:.1%} from random weights.",
            mka.Claim("gain", "accuracy above that from random weights", gain, at_least=0.1),
            mka.Claim("of_order", "accuracy by second derivatives", of_order, at_least=0.03),
        )


if __name__ == "__main__":
    entry_point.run(main)

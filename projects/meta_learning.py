"""Meta-learning: weights from which a new task is learned in a few steps from a few images.

A task is to tell N classes apart after seeing K images of each. MAML looks for weights w that are
good for learning tasks, not for any one of them: for each task of a batch, a few steps of gradient
descent lead from w to w', and what is minimised is the loss of w' on other images of that task. Its
gradient with respect to w goes through the steps, so it holds second derivatives: a tape inside a
tape. First-order MAML leaves them out.

Finn, Abbeel, Levine: Model-agnostic meta-learning for fast adaptation of deep networks, 2017,
arXiv:1703.03400.

Each class counts eight times, as it is, turned and mirrored; the last 30 % of the classes are seen
in the test only. Two nested runs with the same keys: first and second order. What to expect, for 5
classes after one step on one image of each: three images of five right, from random weights two;
first order is in between. Half a minute of computing on two cores.

    mlflow run . -e meta_learning --env-manager local -P shots=5
"""

from typing import Annotated, Any

import keras
import numpy as np
import tensorflow as tf
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv.lessons import entry_point
from mlflow_keras_adv.lessons.few_shot import Tasks
from projects.data import load

STEPS_PER_EPOCH = 50
QUERIES = 5  # images of each class that judge what was learned
TESTS = 300  # tasks

crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(shape: tuple[int, ...], ways: int) -> keras.Model:
    """Two hidden layers; gives logits."""
    body = [keras.layers.Flatten(), *(keras.layers.Dense(64, "relu") for _ in range(2))]
    return keras.Sequential([keras.Input(shape), *body, keras.layers.Dense(ways)])


def turned(x: np.ndarray, y: np.ndarray, labels: Any) -> list[np.ndarray]:
    """The images of these classes; each turned or mirrored in one of eight ways is a class too."""
    both = [each for label in labels for each in (x[y == label], x[y == label][:, :, ::-1])]
    return [np.rot90(each, turn, axes=(1, 2)) for each in both for turn in range(4)]


def adapted(model: keras.Model, x: Any, y: Any, *, lr: float, steps: int, order: int) -> list[Any]:
    """The weights of `model` after a few steps on one task, as a function of what they were."""
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


def main(
    data: str = "digits",
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
        data: digits, keras:mnist (or another of keras.datasets), a folder of images, or the path of
            an .npz file.
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
    inner = {"lr": inner_lr, "steps": inner_steps}

    def train(model: keras.Model, order: int) -> None:
        rng = np.random.default_rng(seed)
        optimizer = keras.optimizers.Adam(lr)
        loop = mka.Loop(model, optimizers=optimizer, callbacks=[mka.MlflowLogger()], verbose=0)
        held_out = validation.draw(rng, 50)

        @tf.function
        def train_step(*tasks: Any) -> None:
            def loss_after_learning(task: Any) -> Any:
                x, y, queries, labels = task
                weights = adapted(model, x, y, **inner, order=order)
                return crossentropy(labels, model.stateless_call(weights, [], queries)[0])

            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.vectorized_map(loss_after_learning, tasks))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)
            loop.record(loss=loss)

        for _ in loop.epochs(epochs):
            drawn = (seen.draw(rng, batch_size) for _ in range(STEPS_PER_EPOCH))
            for tasks in loop.batches(drawn):
                train_step(*map(tf.constant, tasks))
            found = accuracies(model, held_out, **inner)
            loop.log(**{f"val_{name}": value for name, value in found.items()})

    record = {"dataset": images.dataset, "seed": seed, "variants": 2}
    with mka.technique("meta_learning", params, **record) as technique:
        tests = unseen.draw(np.random.default_rng(0), TESTS)
        random = accuracies(net(images.input_shape, ways), tests, **inner)["accuracy"]
        for name, order in {"first_order": 1, "second_order": 2}.items():
            with technique.variant(name):
                model = net(images.input_shape, ways)
                train(model, order)
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

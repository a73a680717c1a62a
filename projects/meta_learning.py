"""Meta-learning: weights from which a new task is learned in a few steps from a few images.

A task is to tell N classes apart after seeing K images of each. MAML looks for weights w that are
good for learning tasks, not for any one of them: for each task of a batch, a few steps of gradient
descent lead from w to w', and what is minimised is the loss of w' on other images of that task. Its
gradient with respect to w goes through the steps, so it holds second derivatives: a tape inside a
tape. First-order MAML leaves them out.

Finn, Abbeel, Levine: Model-agnostic meta-learning for fast adaptation of deep networks, 2017,
arXiv:1703.03400.

Each class counts eight times, as it is, turned and mirrored. The last 30 % of the classes are kept
for the test, so that its tasks are of classes never seen. Two nested runs with the same keys: first
and second order. What to expect, for 5 classes after one step on one image of each: three images of
five right, from random weights two of five; first order is in between. Half a minute of computing
on two cores.

    mlflow run . -e meta_learning --env-manager local -P shots=5
"""

from typing import Annotated, Any

import keras
import numpy as np
import tensorflow as tf
from pydantic import Field, NonNegativeInt, PositiveInt

import mlflow_keras_adv as mka
from mlflow_keras_adv import entry_point
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


def draw_tasks(
    rng: np.random.Generator, classes: list[np.ndarray], count: int, ways: int, shots: int
) -> tuple[np.ndarray, ...]:
    """Images and labels to learn from and to be judged by: [tasks, ways * images, ...] each."""
    images = []
    for _ in range(count):
        for each in rng.choice(len(classes), ways, replace=False):
            images.append(rng.choice(classes[each], shots + QUERIES, replace=False))
    shape = images[0].shape[1:]
    x = np.stack(images).reshape(count, ways, shots + QUERIES, *shape)
    y = np.broadcast_to(np.arange(ways, dtype=np.int32)[:, None], x.shape[:3])
    parts = (x[:, :, :shots], y[:, :, :shots], x[:, :, shots:], y[:, :, shots:])
    return tuple(part.reshape(count, -1, *part.shape[3:]) for part in parts)


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
    lr: Annotated[float, Field(gt=0)] = 2e-3,
    inner_lr: Annotated[float, Field(gt=0)] = 0.5,
    inner_steps: PositiveInt = 1,
    ways: Annotated[int, Field(ge=2)] = 5,
    shots: PositiveInt = 1,
    seed: NonNegativeInt = 0,
) -> None:
    """Trains by MAML of first and of second order, and tests on tasks of unseen classes.

    Args:
        data: digits, keras:mnist (or another of keras.datasets), or the path of an .npz file.
        epochs: Epochs of each of the two trainings; an epoch is 50 steps.
        batch_size: Tasks per step.
        lr: Learning rate of Adam, which moves the weights that tasks start from.
        inner_lr: Learning rate of the steps that learn a task.
        inner_steps: How many of these steps.
        ways: N, the classes of a task.
        shots: K, the images of each class to learn from.
        seed: Of weights, tasks and choice of the validation split.
    """
    params = dict(locals())
    technique = {"technique": "meta_learning"}
    images = load(data, seed=seed)
    kept = images.classes - max(1, round(0.3 * images.classes))
    seen = turned(images.x_train, images.y_train, range(kept))
    validation = turned(*images.validation, range(kept))
    unseen = turned(images.x_test, images.y_test, range(kept, images.classes))
    most = min(len(seen), len(unseen))
    fewest = min(map(len, [*seen, *validation, *unseen])) - QUERIES
    if ways > most or shots > fewest:
        raise mka.UserError(
            f"got ways={ways} and shots={shots}, but {images.name} has tasks of {most} classes and "
            f"{fewest} images at most; choose fewer"
        )
    inner = {"lr": inner_lr, "steps": inner_steps}

    def train(model: keras.Model, order: int) -> None:
        rng = np.random.default_rng(seed)
        optimizer = keras.optimizers.Adam(lr)
        loop = mka.Loop(model, optimizers=optimizer, callbacks=[mka.MlflowLogger()], verbose=0)
        held_out = draw_tasks(rng, validation, 50, ways, shots)

        @tf.function
        def train_step(*tasks: Any) -> None:
            def loss_after_learning(task: Any) -> Any:
                x, y, queries, labels = task
                weights = adapted(model, x, y, **inner, order=order)
                logits, _ = model.stateless_call(weights, [], queries)
                return crossentropy(labels, logits)

            with tf.GradientTape() as tape:
                losses = tf.vectorized_map(loss_after_learning, tasks)
                loss = tf.reduce_mean(losses)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            loop.record(loss=loss)

        for _ in loop.epochs(epochs):
            drawn = (draw_tasks(rng, seen, batch_size, ways, shots) for _ in range(STEPS_PER_EPOCH))
            for tasks in loop.batches(drawn):
                train_step(*map(tf.constant, tasks))
            found = accuracies(model, held_out, **inner)
            loop.log(**{f"val_{name}": value for name, value in found.items()})

    with mka.track("meta_learning", params=params, tags=technique) as run:
        run.log_dataset(images.dataset, context="training")
        tests = draw_tasks(np.random.default_rng(0), unseen, TESTS, ways, shots)
        keras.utils.set_random_seed(seed)
        from_random = accuracies(net(images.input_shape, ways), tests, **inner)["accuracy"]
        runs, scores = {}, {}
        for order, variant in enumerate(("first_order", "second_order"), start=1):
            print(f"[{order}/2] {variant}", flush=True)
            with run.child(variant, tags=technique) as child:
                keras.utils.set_random_seed(seed)
                model = net(images.input_shape, ways)
                train(model, order)
                scores[variant] = accuracies(model, tests, **inner)
                mka.log_finished_model(
                    child,
                    model,
                    images.x_test,
                    name=variant,
                    scores=scores[variant],
                    dataset=images.dataset,
                )
            runs[variant] = child

        winner = mka.log_comparison(run, runs)
        first, second = scores["first_order"], scores["second_order"]
        claims = mka.log_claims(
            run,
            mka.Claim(
                "gain",
                "accuracy on unseen classes after the steps, above that from random weights",
                second["accuracy"] - from_random,
                at_least=0.1,
            ),
            mka.Claim(
                "second_order_gain",
                "accuracy that the second derivatives add",
                second["accuracy"] - first["accuracy"],
                at_least=0.03,
            ),
        )
        result = (
            f"{ways} unseen classes from {shots} image(s) of each: {second['accuracy']:.1%} right "
            f"after {inner_steps} step(s) ({second['accuracy_before']:.1%} before), "
            f"{first['accuracy']:.1%} with first-order MAML, {from_random:.1%} from random weights."
        )
        run.describe(f"{result}\n\n{claims}\n\nBest on validation: {winner}.")
    print(f"{result}\n{claims}")


if __name__ == "__main__":
    entry_point.run(main)

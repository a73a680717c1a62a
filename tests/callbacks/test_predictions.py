"""What Predictions puts on a run, read back from the store, against the model's own answers."""

import copy
import json
import logging
import pickle
import re
from collections import defaultdict
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import mlflow_keras_adv as mka
from mlflow_keras_adv.callbacks import predictions
from mlflow_keras_adv.callbacks.predictions import Predictions
from mlflow_keras_adv.metrics.views import classes
from mlflow_keras_adv.metrics.views.pictures import confusion_figure

rng = np.random.default_rng(0)
X = rng.uniform(size=(48, 8, 8)).astype(np.float32)
Y = rng.integers(0, 3, 48)
SAMPLE, LABELS = X[:20], Y[:20]
BATCHES = 3
MATRIX, GRID = "predictions/confusion_matrix", "predictions/samples"
OF_CLASSES = {MATRIX, "predictions/reliability"}


def net(*, softmax: bool = False, compiled: bool = True) -> keras.Model:
    keras.utils.set_random_seed(0)
    output = keras.layers.Dense(3, activation="softmax" if softmax else None)
    model = keras.Sequential([keras.Input((8, 8)), keras.layers.Flatten(), output])
    if compiled:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax)
        model.compile(keras.optimizers.SGD(0.1), loss)
    return model


def fit(model: keras.Model, *callbacks: Any, epochs: int = 2, **more: Any) -> Any:
    data = {"x": X, "y": Y, "batch_size": 16, "verbose": 0}
    return model.fit(**(data | more), epochs=epochs, callbacks=list(callbacks))


def image_steps(client: mlflow.MlflowClient, run_id: str) -> dict[str, list[int]]:
    """Steps of the images by key; each has a full and a small file."""
    steps: dict[str, list[int]] = defaultdict(list)
    files = [file.path for file in client.list_artifacts(run_id, "images")]
    for path in files:
        key, step = re.match(r"images/(.+?)\+step\+(\d+)\+timestamp", path).groups()
        if path.endswith(".png"):
            steps[key.replace("~", "/")].append(int(step))
            assert path.replace(".png", "+compressed.webp") in files
    return {key: sorted(each) for key, each in steps.items()}


def stored_table(run_id: str, file: str = "predictions.json") -> dict[str, list[Any]]:
    stored = json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/{file}"))
    return dict(zip(stored["columns"], zip(*stored["data"], strict=True), strict=True))


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("one_hot", [True, False])
def test_the_table_says_what_the_finished_model_predicts(
    softmax: bool, one_hot: bool, experiment: str
) -> None:
    model = net(softmax=softmax)
    labels = keras.utils.to_categorical(LABELS, 3) if one_hot else LABELS[:, None]
    names = ["ant", "bee", "cat"]
    with mka.track("table", log_system_metrics=False) as run:
        fit(model, Predictions(SAMPLE, labels, class_names=names))
    table = stored_table(run.run_id)

    outputs = model.predict(SAMPLE, verbose=0).astype(float)
    shares = outputs if softmax else np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    index = np.array(table["index"])
    assert sorted(index) == list(range(20))
    assert list(table["label"]) == [names[LABELS[i]] for i in index]
    assert list(table["predicted"]) == [names[outputs[i].argmax()] for i in index]
    # pandas writes ten decimals.
    np.testing.assert_allclose(table["confidence"], shares.max(axis=1)[index], rtol=0, atol=1e-10)
    correct = [a == b for a, b in zip(table["label"], table["predicted"], strict=True)]
    assert list(table["correct"]) == correct == sorted(correct)  # wrong ones first
    assert len(set(correct)) == 2
    assert set(table["step"]) == {2 * BATCHES}


def test_the_matrices_count_what_the_model_predicts_after_each_epoch(
    experiment: str, client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[np.ndarray] = []

    def spy(counts: np.ndarray, names: Any) -> Any:
        drawn.append(counts)
        return confusion_figure(counts, names)

    monkeypatch.setattr(classes, "confusion_figure", spy)
    expected: list[np.ndarray] = []

    class Count(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            predicted = self.model(SAMPLE).numpy().argmax(axis=1)
            expected.append(tf.math.confusion_matrix(LABELS, predicted, 3).numpy())

    with mka.track("matrices", log_system_metrics=False) as run:
        fit(net(), Predictions(SAMPLE, LABELS), mka.MlflowLogger(), Count(), epochs=3)
    np.testing.assert_array_equal(drawn, expected)
    assert len(np.unique(expected, axis=0)) > 1
    steps = [BATCHES, 2 * BATCHES, 3 * BATCHES]
    assert image_steps(client, run.run_id) == dict.fromkeys({*OF_CLASSES, GRID}, steps)
    assert client.get_run(run.run_id).data.tags["mlflow.loggedImages"] == "True"
    (file, *_) = [f.path for f in client.list_artifacts(run.run_id, "images") if "matrix" in f.path]
    with Image.open(client.download_artifacts(run.run_id, file)) as image:
        assert min(image.size) > 100


@pytest.mark.parametrize("callbacks", ["before the logger", "after the logger", "alone"])
def test_images_stand_on_the_axis_of_the_record_wherever_the_callback_is(
    callbacks: str, experiment: str, client: mlflow.MlflowClient
) -> None:
    shown = Predictions(SAMPLE, LABELS)
    logger = mka.MlflowLogger()
    order = {
        "before the logger": [shown, logger],
        "after the logger": [logger, shown],
        "alone": [shown],
    }[callbacks]
    model = net()
    with mka.track("axis", log_system_metrics=False) as run:
        fit(model, *order)
        fit(model, *order, initial_epoch=1)
    assert image_steps(client, run.run_id)[MATRIX] == [BATCHES, 2 * BATCHES, 3 * BATCHES]
    assert set(stored_table(run.run_id)["step"]) == {2 * BATCHES}
    assert set(stored_table(run.run_id, "predictions-2.json")["step"]) == {3 * BATCHES}


@pytest.mark.parametrize(
    ("arguments", "epochs"),
    [
        ({"max_images": 4}, [0, 3, 6, 9]),
        ({"max_images": 1}, [9]),
        ({"every": 4}, [0, 4, 8, 9]),
        ({"every": 2, "max_images": 3}, [0, 4, 9]),
    ],
    ids=str,
)
def test_images_are_bounded_and_spread_from_the_first_to_the_last_epoch(
    arguments: dict[str, int],
    epochs: list[int],
    experiment: str,
    client: mlflow.MlflowClient,
) -> None:
    with mka.track("bounded", log_system_metrics=False) as run:
        fit(net(), Predictions(SAMPLE, LABELS, **arguments), epochs=10)
    expected = [BATCHES * (epoch + 1) for epoch in epochs]
    assert image_steps(client, run.run_id) == dict.fromkeys({*OF_CLASSES, GRID}, expected)


def test_the_bound_is_that_of_the_run_but_each_training_shows_its_last_epoch(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    model = net()
    with mka.track("fits", log_system_metrics=False) as run:
        for _ in range(3):
            fit(model, Predictions(SAMPLE, LABELS, max_images=3), epochs=2)
    expected = [BATCHES * epoch for epoch in (1, 2, 4, 6)]
    assert image_steps(client, run.run_id)[MATRIX] == expected


def test_a_training_that_stops_early_shows_where_it_stopped(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    class StopInFourth(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.model.stop_training = epoch == 3

    with mka.track("early", log_system_metrics=False) as run:
        fit(net(), Predictions(SAMPLE, LABELS, max_images=3), StopInFourth(), epochs=20)
    assert image_steps(client, run.run_id)[MATRIX] == [BATCHES, 4 * BATCHES]
    assert set(stored_table(run.run_id)["step"]) == {4 * BATCHES}


def test_training_is_the_same_with_and_without(experiment: str) -> None:
    alone, watched = net(), net()
    history = fit(alone, epochs=3, validation_split=0.25).history
    with mka.track("same", log_system_metrics=False):
        shown = Predictions(SAMPLE, LABELS)
        assert fit(watched, shown, epochs=3, validation_split=0.25).history == history
    for a, b in zip(alone.weights, watched.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert "train_step" not in vars(watched)
    assert "apply" not in vars(watched.optimizer)


def test_in_a_loop(experiment: str, client: mlflow.MlflowClient) -> None:
    model, optimizer = net(compiled=False), keras.optimizers.SGD(0.1)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)
    loop = mka.Loop(model, optimizers=optimizer, callbacks=[Predictions(SAMPLE, LABELS)], verbose=0)

    @tf.function
    def step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    with mka.track("loop", log_system_metrics=False) as run:
        for _ in loop.epochs(2):
            for x, y in loop.batches(data):
                step(x, y)
    assert image_steps(client, run.run_id)[MATRIX] == [BATCHES, 2 * BATCHES]
    predicted = model(SAMPLE).numpy().argmax(axis=1)
    table = stored_table(run.run_id)
    assert list(table["predicted"]) == predicted[list(table["index"])].tolist()


def test_a_copy_shows_the_same(experiment: str, client: mlflow.MlflowClient) -> None:
    model = net()
    with mka.track("copies", log_system_metrics=False) as run:
        original = Predictions(SAMPLE, LABELS, class_names="abc", max_images=9)
        for _ in range(2):
            copied = pickle.loads(pickle.dumps(copy.deepcopy(original)))
            fit(model, copied, epochs=1)
            fit(model, original, epochs=1)
    steps = [BATCHES * epoch for epoch in (1, 2, 3, 4)]
    assert image_steps(client, run.run_id)[MATRIX] == steps
    assert set(stored_table(run.run_id, "predictions-4.json")["label"]) == set("abc")


def test_a_training_that_raises_keeps_the_table_of_its_last_prediction(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    class Break(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                raise ValueError("broken")

    model = net()
    with pytest.raises(ValueError, match="broken"), mka.track("raised") as run:
        fit(model, Predictions(SAMPLE, LABELS), Break(), epochs=5)
    assert set(stored_table(run.run_id)["step"]) == {2 * BATCHES}
    assert client.get_run(run.run_id).info.status == "FAILED"
    assert "train_step" not in vars(model)


def test_samples_that_are_no_images_have_no_grid_and_long_tables_are_cut(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    x, y = rng.normal(size=(600, 4)).astype(np.float32), rng.integers(0, 3, 600)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with mka.track("features", log_system_metrics=False) as run:
        model.fit(x, y, batch_size=300, verbose=0, callbacks=[Predictions(x, y)])
    assert image_steps(client, run.run_id) == {name: [2] for name in OF_CLASSES}
    table = stored_table(run.run_id)
    assert len(table["index"]) == predictions.MAX_ROWS
    wrong = int((model.predict(x, verbose=0).argmax(axis=1) != y).sum())
    assert table["correct"].count(False) == min(wrong, predictions.MAX_ROWS)


@pytest.mark.parametrize(
    ("labels", "said"),
    [(LABELS[:-1], "labels of shape (19,)"), (LABELS + 2, "up to 4")],
    ids=["few", "up"],
)
def test_what_cannot_be_predicted_is_said_once_and_breaks_nothing(
    labels: np.ndarray, said: str, experiment: str, caplog: pytest.LogCaptureFixture
) -> None:
    with mka.track("bad", log_system_metrics=False) as run:
        history = fit(net(), Predictions(SAMPLE, labels), epochs=3).history
    assert len(history["loss"]) == 3
    messages = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(messages) == 1
    assert said in messages[0]
    assert mlflow.artifacts.list_artifacts(run_id=run.run_id) == []


def test_without_a_run_it_says_so_once_and_is_silent(
    experiment: str, client: mlflow.MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    fit(net(), Predictions(SAMPLE, LABELS), epochs=3)
    (message,) = [each.getMessage() for each in caplog.records]
    assert "Predictions does nothing in this training: it has no run" in message
    assert client.search_runs([experiment]) == []


def test_it_writes_to_the_run_that_it_is_given(
    experiment: str, client: mlflow.MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    other = client.create_run(experiment).info.run_id
    with mka.track("not this one", log_system_metrics=False) as run:
        fit(net(), Predictions(SAMPLE, LABELS, run=other), mka.MlflowLogger())
        fit(net(), Predictions(SAMPLE, LABELS, run="0" * 32), epochs=1)
    assert mka.tracking.run.attach_run(other).flush(timeout=60)
    assert image_steps(client, other)[MATRIX] == [BATCHES, 2 * BATCHES]
    assert image_steps(client, run.run_id) == {}
    (message,) = [each.getMessage() for each in caplog.records]
    assert "Predictions does nothing in this training" in message


def test_arguments_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="max_images=0"):
        Predictions(SAMPLE, LABELS, max_images=0)


def test_no_such_task() -> None:
    with pytest.raises(ValueError, match="Received task='regresion'; expected one of classificat"):
        Predictions(SAMPLE, LABELS, task="regresion")
    with pytest.raises(ValueError, match="Received task='flow'"):
        Predictions(SAMPLE, LABELS, task={"a": "regression", "b": "flow"})


# Any model

L = keras.layers
VECTORS = rng.normal(size=(30, 6)).astype(np.float32)
WORDS = rng.integers(1, 9, size=(30, 5)) * (np.arange(5) < rng.integers(1, 6, 30)[:, None])


def dense(units: int, activation: str | None = None) -> keras.Model:
    return keras.Sequential([keras.Input((6,)), L.Dense(units, activation=activation)])


def noisy() -> keras.Model:
    """An autoencoder that draws random numbers also when it is asked, and drops some."""

    class Noise(L.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.seeds = keras.random.SeedGenerator(1)

        def call(self, inputs: Any) -> Any:
            return inputs + 0.1 * keras.random.normal(keras.ops.shape(inputs), seed=self.seeds)

    stack = [L.Dense(4), Noise(), L.Dropout(0.3, seed=2), L.Dense(6)]
    return keras.Sequential([keras.Input((6,)), *stack])


def stateful() -> keras.Model:
    inputs = keras.Input(batch_shape=(10, 5, 1))
    return keras.Model(inputs, L.Dense(1)(L.SimpleRNN(4, stateful=True)(inputs)))


def tagger() -> keras.Model:
    inputs = keras.Input((5,), dtype="int32")
    hidden = L.GRU(6, return_sequences=True)(L.Embedding(9, 4, mask_zero=True)(inputs))
    return keras.Model(inputs, L.Dense(3)(hidden))


def two_headed() -> keras.Model:
    inputs = keras.Input((6,))
    outputs = {"price": L.Dense(1, name="price")(inputs), "kind": L.Dense(3, name="kind")(inputs)}
    return keras.Model(inputs, outputs)


def painter() -> keras.Model:
    return keras.Sequential([keras.Input((4, 4, 1)), L.Conv2D(3, 1, activation="softmax")])


LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
IMAGES = rng.uniform(size=(30, 4, 4, 1)).astype(np.float32)
SERIES = rng.normal(size=(30, 5, 1)).astype(np.float32)

# Model, loss, samples, labels; then arguments, the task that is said, figures, columns.
KINDS: dict[str, tuple[Any, ...]] = {
    "regression": (
        lambda: dense(3), "mae", VECTORS, VECTORS[:, :3] * 2, {}, "regression",
        {"predicted_over_true", "residuals"},
        ["index", "true/0", "predicted/0", "error/0", "true/1", "predicted/1", "error/1", "true/2",
         "predicted/2", "error/2", "absolute_error", "step"],
    ),
    "forecast": (
        lambda: dense(3), "mse", VECTORS, VECTORS[:, :3] * 2, {"task": "forecast"}, "forecast",
        {"error_per_step", "series"},
        ["index", "absolute_error", "error/1", "error/2", "error/3", "step"],
    ),
    "binary": (
        lambda: dense(1, "sigmoid"), "binary_crossentropy", VECTORS, VECTORS[:, 0] > 0, {},
        "binary", {"confusion_matrix", "roc", "precision_recall", "reliability"},
        ["index", "label", "predicted", "probability", "correct", "step"],
    ),
    "multi-label": (
        lambda: dense(4, "sigmoid"), "binary_crossentropy", VECTORS, VECTORS[:, :4] > 0, {},
        "multi-label", {"per_label", "average_precision"},
        ["index", "labels", "predicted", "wrong", "correct", "step"],
    ),
    "autoencoder": (
        noisy, "mse", VECTORS, None, {}, "reconstruction", {"pairs"},
        ["index", "absolute_error", "squared_error", "step"],
    ),
    "states": (
        stateful, "mse", SERIES, SERIES[:, 0], {}, "regression",
        {"predicted_over_true", "residuals"}, ["index", "true", "predicted", "error", "step"],
    ),
    "tagging": (
        tagger, LOGITS, WORDS, WORDS % 3, {}, "tagging",
        {"confusion_matrix", "reliability"},
        ["index", "steps", "wrong", "accuracy", "label", "predicted", "step"],
    ),
    "segmentation": (
        painter, "sparse_categorical_crossentropy", IMAGES,
        (3 * IMAGES[..., 0]).astype(int), {}, "segmentation",
        {"confusion_matrix", "iou", "overlays"}, ["index", "accuracy", "mean_iou", "step"],
    ),
    "outputs": (
        two_headed, {"price": "mse", "kind": LOGITS}, VECTORS,
        {"price": VECTORS[:, 0], "kind": VECTORS[:, :3].argmax(axis=1)}, {},
        "price: regression, kind: classification",
        {"price/predicted_over_true", "price/residuals", "kind/confusion_matrix",
         "kind/reliability"}, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_any_model_is_shown_and_its_training_is_the_same(
    kind: str, experiment: str, client: mlflow.MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    build, loss, x, y, arguments, said, figures, columns = KINDS[kind]
    targets = x if y is None else y

    def trained(*callbacks: Any) -> tuple[keras.Model, Any]:
        keras.utils.set_random_seed(0)
        model = build()
        model.compile(keras.optimizers.SGD(0.1), loss)
        data = {"batch_size": 10, "epochs": 2, "shuffle": False, "verbose": 0}
        return model, model.fit(x, targets, **data, callbacks=list(callbacks)).history

    alone, history = trained()
    with mka.track("any", log_system_metrics=False) as run:
        watched, seen = trained(Predictions(x, y, **arguments))
    assert seen == history
    for a, b in zip(alone.variables, watched.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert client.get_run(run.run_id).data.tags["task.predictions"] == said
    steps = {f"predictions/{name}": [3, 6] for name in figures}
    assert image_steps(client, run.run_id) == steps
    assert not [each for each in caplog.records if each.name.startswith("mlflow_keras_adv")]
    if columns is None:
        assert "error" in stored_table(run.run_id, "predictions/price.json")
        assert "correct" in stored_table(run.run_id, "predictions/kind.json")
    else:
        assert list(stored_table(run.run_id)) == columns


def test_what_is_masked_or_weighs_nothing_is_not_shown(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    keras.utils.set_random_seed(0)
    model = tagger()
    model.compile("sgd", LOGITS, metrics=["accuracy"])
    weights = (np.arange(30) >= 6).astype(np.float32)
    with mka.track("masked", log_system_metrics=False) as run:
        model.fit(WORDS, WORDS % 3, verbose=0, callbacks=[
            Predictions(WORDS, WORDS % 3, sample_weight=weights)
        ])  # fmt: skip
    table = stored_table(run.run_id)
    assert set(table["index"]) == set(range(6, 30))
    assert dict(zip(table["index"], table["steps"], strict=True)) == {
        row: (WORDS[row] > 0).sum() for row in range(6, 30)
    }
    right = np.sum(table["steps"]) - np.sum(table["wrong"])
    accuracy = model.evaluate(WORDS[6:], WORDS[6:] % 3, verbose=0, return_dict=True)["accuracy"]
    assert right / np.sum(table["steps"]) == pytest.approx(accuracy, rel=1e-6)


def test_a_dataset_brings_its_labels_and_weights(experiment: str) -> None:
    weights = (np.arange(20) % 2).astype(np.float32)
    data = tf.data.Dataset.from_tensor_slices((SAMPLE, LABELS, weights)).batch(8)
    model = net()
    with mka.track("dataset", log_system_metrics=False) as run:
        fit(model, Predictions(data), epochs=1)
    table = stored_table(run.run_id)
    assert sorted(table["index"]) == list(range(1, 20, 2))
    index = list(table["index"])
    assert list(table["predicted"]) == model.predict(SAMPLE, verbose=0)[index].argmax(1).tolist()


@pytest.mark.parametrize("task", [None, "binary"])
def test_what_is_open_is_asked_for_once(
    task: Any, experiment: str, client: mlflow.MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    def mine(true: Any, found: Any) -> Any:
        return keras.ops.mean(keras.ops.square(true - found), axis=-1)

    keras.utils.set_random_seed(0)
    model = dense(1)
    model.compile("sgd", mine)
    y = (VECTORS[:, 0] > 0).astype(np.float32)
    with mka.track("open", log_system_metrics=False) as run:
        shown = Predictions(VECTORS, y, task=task)
        model.fit(VECTORS, y, epochs=2, verbose=0, callbacks=[shown])
    tags = client.get_run(run.run_id).data.tags
    messages = [e.getMessage() for e in caplog.records if e.name.startswith("mlflow_keras_adv")]
    if task is None:
        (message,) = messages
        assert 'say task="classification"' in message
        assert "task.predictions" not in tags
    else:
        assert messages == []
        assert tags["task.predictions"] == "binary"
        found = model.predict(VECTORS, verbose=0)[:, 0]
        table = stored_table(run.run_id)
        # Answers below 0 and above 1 are logits, of which 0 decides.
        assert list(table["predicted"]) == (found > 0)[list(table["index"])].astype(int).tolist()

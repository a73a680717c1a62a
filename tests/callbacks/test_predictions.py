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
from mlflow_keras_adv.callbacks.prediction_figures import confusion_figure, pixels, samples_figure
from mlflow_keras_adv.callbacks.predictions import Predictions

rng = np.random.default_rng(0)
X = rng.uniform(size=(48, 8, 8)).astype(np.float32)
Y = rng.integers(0, 3, 48)
SAMPLE, LABELS = X[:20], Y[:20]
BATCHES = 3
MATRIX, GRID = "predictions/confusion_matrix", "predictions/samples"


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

    monkeypatch.setattr(predictions, "confusion_figure", spy)
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
    assert image_steps(client, run.run_id) == {MATRIX: steps, GRID: steps}
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
    assert image_steps(client, run.run_id) == {MATRIX: expected, GRID: expected}


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
    assert image_steps(client, run.run_id) == {MATRIX: [2]}
    table = stored_table(run.run_id)
    assert len(table["index"]) == predictions.MAX_ROWS
    wrong = int((model.predict(x, verbose=0).argmax(axis=1) != y).sum())
    assert table["correct"].count(False) == min(wrong, predictions.MAX_ROWS)


@pytest.mark.parametrize(
    ("labels", "said"), [(LABELS[:-1], "for 19 labels"), (LABELS + 2, "up to 4")], ids=["few", "up"]
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


def test_the_figures_show_counts_and_mark_what_is_wrong() -> None:
    counts = np.array([[5, 1], [0, 7]])
    (axes,) = confusion_figure(counts, ["cat", "dog"]).axes
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): "5",
        (1, 0): "1",
        (1, 1): "7",
    }
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert axes.get_title() == "92.3% of 13 correct"
    assert not confusion_figure(np.eye(30, dtype=int), range(30)).axes[0].texts

    images = np.repeat(np.arange(30.0), 16).reshape(30, 4, 4)
    figure = samples_figure(images, ["a"] * 30, np.arange(30) > 0)
    (axes,) = figure.axes
    assert [text.get_color() for text in axes.texts] == ["red"] + ["black"] * 24
    shades, sizes = np.unique(axes.images[0].get_array(), return_counts=True)
    np.testing.assert_allclose(shades, np.arange(25) / 24, rtol=1e-15)
    assert sizes[:-1].tolist() == [16] * 24  # white is also what lies between the images
    drawn = pixels(figure)
    assert drawn.dtype == np.uint8
    assert drawn.shape == (800, 650, 3)

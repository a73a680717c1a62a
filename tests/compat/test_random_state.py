"""Each public call leaves the user's random numbers, and Keras' names, as it has found them."""

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import keras
import matplotlib.figure
import mlflow
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.python.eager import context
from tensorflow.python.ops import stateful_random_ops

import mlflow_keras_adv as mka
from mlflow_keras_adv import compression, registry
from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.flavors import litert
from tests.registry.conftest import log_numbers, read_numbers
from tests.tuner.searches import DATA, network_search

ROOT = Path(__file__).parent.parent.parent
X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = np.arange(16) % 3
FIT: Any = {"epochs": 1, "batch_size": 8, "verbose": 0}


def classifier(rate: float = 0.0) -> keras.Model:
    layers = [keras.Input((4,)), keras.layers.Dropout(rate), keras.layers.Dense(3)]
    model = keras.Sequential(layers)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def names_and_state() -> tuple[list[Any], list[Any]]:
    """How many names Keras has given, and all that a program draws from."""
    theirs, backend = keras.src.backend.common.global_state, tf_keras.src.backend
    counters = [theirs.get_global_attribute("object_name_uids") or {}]
    counters += [backend.PER_GRAPH_OBJECT_NAME_UIDS.get(backend.get_graph(), {})]
    numpy_kind, numpy_key, *numpy_rest = np.random.get_state()
    generator = theirs.get_global_attribute("global_seed_generator")
    eager, shared = context.context(), stateful_random_ops.global_generator
    return [dict(names) for names in counters], [
        random.getstate(),
        (numpy_kind, numpy_key.tolist(), numpy_rest),
        (eager._seed, eager._rng.getstate()),
        None if generator is None else np.array(generator.state).tolist(),
        None if shared is None else np.array(shared.state).tolist(),
    ]


def built() -> list[Any]:
    """What a user may build and draw next."""
    model = classifier(0.5)
    theirs = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(3)])
    return [
        model.get_weights()[-2].tolist(),
        np.array(model(X, training=True)).tolist(),
        theirs.get_weights()[0].tolist(),
        tf.random.normal((2,)).numpy().tolist(),
        np.array(keras.random.normal((2,))).tolist(),
        random.random(),
        np.random.rand(),
        [int(each) for each in tf.data.Dataset.range(20).shuffle(20)],
    ]


class Place:
    """What the calls work on.

    Args:
        folder: For files.
        experiment: The experiment of the test.
    """

    def __init__(self, folder: Path, experiment: str) -> None:
        self.folder = folder
        self.experiment = experiment
        self.model = classifier()


def without_a_name(place: Place) -> None:
    with mka.track(log_system_metrics=False), mka.track(nested=True):
        pass


def failed(place: Place) -> None:
    with suppress(ZeroDivisionError), mka.track(log_system_metrics=False):
        raise ZeroDivisionError


def offline(place: Place) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_KERAS_ADV_OFFLINE", "1")
        patch.setenv("MLFLOW_KERAS_ADV_HOME", str(place.folder / "home"))
        with mka.track(log_system_metrics=False), mka.track(nested=True) as run:
            run.log_metrics({"a": 1.0})


def everything_logged(place: Place) -> None:
    figure = matplotlib.figure.Figure()
    figure.subplots().plot([1, 2])
    with mka.track(log_system_metrics=False) as run:
        run.log_metrics({"a": 1.0})
        run.log_series({"b": np.ones(3)}, steps=np.arange(3), timestamps_ms=np.arange(3))
        run.log_params({"c": 1})
        run.set_tags({"d": 1})
        run.describe("e")
        run.log_figure(figure, "f.png")
        run.log_image(np.zeros((4, 4, 3), np.uint8), key="g")
        run.log_text("h", "h.txt")
        run.log_dict({"i": 1}, "i.json")
        run.log_table({"j": [1]}, "j.json")
        run.log_dataset(mka.Dataset("k", "1"), context="test")
        run.log_artifact(__file__)
        run.delete_artifact("h.txt")
        run.flush()
        with run.child("child"):
            pass
        mka.attach_run(run.run_id).log_metrics({"l": 1.0})
        assert mka.current_run() is run


def folder_logged(place: Place) -> None:
    folder = place.folder / "model"
    folder.mkdir()
    mlflow.models.Model().save(str(folder / "MLmodel"))
    with mka.track(log_system_metrics=False) as run:
        run.internals.writer.log_model_folder(folder, name="folder")


def model_logged(place: Place) -> None:
    with mka.track(log_system_metrics=False):
        info = mka.log_model(place.model, name="a", input_example=X[:2])
        mka.load_model(info.model_uri)
        mka.log_finished_model(place.model, X, Y, name="b")


def file_logged(place: Place) -> None:
    made = compression.convert(place.model, X)
    with mka.track(log_system_metrics=False):
        info = litert.log_model(made.content, name="a", input_example=X[:2])
        litert.load_model(info.model_uri)
        mka.log_finished_file(made.content, X, Y, name="b")
    folder = Path(mlflow.artifacts.download_artifacts(info.model_uri))
    (measured,) = mka.measure_models([folder], registry.Samples(X, Y), rounds=1, repeats=1)
    assert not measured.problem


def compared(place: Place) -> None:
    with mka.track("parent", log_system_metrics=False) as parent:
        runs = {}
        for name in "ab":
            with parent.child(name) as runs[name]:
                runs[name].log_metrics({"val/accuracy": 0.5, "train/loss": 1.0}, step=1)
        mka.log_comparison(runs)
    mka.curve("train/loss", run=parent)
    mka.compare([parent.run_id])


def claimed(place: Place) -> None:
    with mka.track(log_system_metrics=False) as run:
        mka.log_claims(mka.Claim("a", "b", mka.largest_difference([1.0], [1.0]), at_most=1))
    mka.logged_claims(run.run_id)


def promoted(place: Place) -> None:
    name, gates = f"random-{place.experiment}", [registry.floor("accuracy", 0.5)]
    samples = registry.Samples(np.zeros((9, 2)), np.zeros(9, int), "toy", "d1")
    for accuracy in (0.6, 0.7):
        uri = log_numbers(place.experiment, accuracy=accuracy)
        mka.promote(name, uri, data=samples, gates=gates, measure=read_numbers)
    registry.rollback(name)
    registry.history(name)


def searched(place: Place) -> None:
    mka.track_search(network_search(place.folder / "ours")).search(**DATA)


def plainly_searched(place: Place) -> None:
    network_search(place.folder / "plain").search(**DATA)


def automatic(place: Place) -> None:
    mka.autolog()
    try:
        place.model.fit(X, Y, shuffle=False, **FIT)
    finally:
        mka.autolog(disable=True)


def watched(place: Place) -> None:
    callbacks = [
        mka.LayerNorms(),
        mka.Predictions(X, Y),
        mka.Checkpoints("loss"),
        mka.StallAlert("loss"),
    ]
    with mka.track(log_system_metrics=False) as run:
        callbacks = [mka.MlflowLogger(), *callbacks]
        place.model.fit(X, Y, callbacks=callbacks, shuffle=False, **FIT)
    mka.load_best(run)


def carried(place: Place) -> None:
    compression.to_keras(compression.to_tf_keras(place.model, X), X)


def compressed(place: Place) -> None:
    data = (X, Y)
    compression.prune(place.model, data, sparsity=0.5, verbose=0)
    compression.cluster(place.model, data, clusters=3, verbose=0)
    compression.quantize_aware(place.model, data, verbose=0)
    compression.quantize(place.model, compression.dynamic_int8, X)


def plainly_trained(place: Place) -> None:
    place.model.fit(X, Y, shuffle=False, **FIT)


def nothing(place: Place) -> None:
    pass


# What is called, and the public names that it calls.
CALLS: dict[str, tuple[Callable[[Place], object], set[str]]] = {
    "track": (without_a_name, {"track"}),
    "track, an error": (failed, {"track"}),
    "track, offline": (offline, {"track"}),
    "Run": (everything_logged, {"Run", "Dataset", "attach_run", "current_run"}),
    "Run.log_model_folder": (folder_logged, {"Run"}),
    "log_model": (model_logged, {"log_model", "load_model", "log_finished_model"}),
    "litert": (file_logged, {"litert", "log_finished_file", "measure_models"}),
    "compare": (compared, {"compare", "Comparison", "log_comparison", "curve"}),
    "claims": (claimed, {"Claim", "log_claims", "logged_claims", "largest_difference"}),
    "promote": (promoted, {"promote", "registry"}),
    "track_search": (searched, {"track_search"}),
    "autolog": (automatic, {"autolog"}),
    "callbacks": (
        watched,
        {"MlflowLogger", "LayerNorms", "Predictions", "Checkpoints", "StallAlert", "load_best"},
    ),
    "bridge": (carried, {"compression"}),
    "compression": (compressed, {"compression"}),
}
# They begin a stream anew, are part of a training of the user's, or hold numbers.
ELSEWHERE = {
    "technique": "test_a_technique_begins_at_its_seed_and_its_end_draws_nothing",
    "Technique": "the same",
    "TradeOff": "of calls that are in the table",
    "Loop": "the user's training",
    "Distiller": "a model of the user's",
    "SoftTargets": "part of it",
    "Hint": "part of it",
    "WarmUp": "arithmetic",
    "ConstantThenExponential": "arithmetic",
    "CyclicalRate": "arithmetic",
    "UserError": "an exception",
    "search_run_id": "reads a file",
}


@pytest.fixture(autouse=True)
def no_seeds_of_tf_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `set_random_seed` in an earlier test left a generator, which Keras' does not reset."""
    monkeypatch.setattr(tf_keras.src.backend._SEED_GENERATOR, "generator", None, raising=False)


@pytest.fixture
def place(tmp_path: Path, experiment: str) -> Iterator[Place]:
    found = list(sys.path)
    yield Place(tmp_path, experiment)
    sys.path[:] = found


# What plain Keras does in their place.
PLAINLY = {
    "track_search": plainly_searched,
    "autolog": plainly_trained,
    "callbacks": plainly_trained,
}


def test_every_public_name_is_called_or_has_no_need() -> None:
    called = {name for _, names in CALLS.values() for name in names}
    assert called | ELSEWHERE.keys() == set(mka.__all__)


@pytest.mark.parametrize("name", CALLS)
def test_what_comes_afterwards_is_that_of_plain_keras(name: str, place: Place) -> None:
    def program(call: Callable[[Place], object]) -> tuple[list[Any], list[Any], list[Any]]:
        place.model = classifier()
        keras.utils.clear_session()
        tf_keras.backend.reset_uids()
        keras.utils.set_random_seed(7)
        built()
        call(place)
        return *names_and_state(), built()

    assert program(CALLS[name][0]) == program(PLAINLY.get(name, nothing))


def test_a_technique_begins_at_its_seed_and_its_end_draws_nothing(place: Place) -> None:
    with mka.technique("t", {}, variants=1) as record:
        with record.variant("a") as run:
            began = names_and_state()
            run.log_metrics({"val/accuracy": 0.5, "train/loss": 1.0}, step=1)
        record.finish(run, place.model, X, Y)
        record.compare()
        record.conclude("done", mka.Claim("a", "b", 0.0, at_most=1))
        assert names_and_state() == began
    assert names_and_state() == began


def test_what_is_drawn_in_a_block_depends_on_the_seed_and_is_not_used_up() -> None:
    def drawn(*, within: bool) -> tuple[list[Any], list[Any]]:
        keras.utils.set_random_seed(3)
        inside = []
        if within:
            with keeps_random_state():
                inside = built()
        return inside, built()

    assert drawn(within=True) == drawn(within=True)
    assert drawn(within=True)[1] == drawn(within=False)[1]


def test_it_makes_nothing_that_was_not_there() -> None:
    program = """
import random, sys
from mlflow_keras_adv.compat.random_state import keeps_random_state
before = random.getstate()
with keeps_random_state():
    random.random()
assert random.getstate() == before
assert not {"tensorflow", "keras", "tf_keras", "mlflow"} & sys.modules.keys()
import keras
from keras.src.backend.common import global_state
with keeps_random_state():
    keras.random.normal((2,))
    keras.layers.Dense(2)
assert global_state.get_global_attribute("global_seed_generator") is None
assert keras.layers.Dense(2).name == "dense"
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=300)

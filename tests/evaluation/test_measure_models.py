"""Keras models and `.tflite` files on the same scales; files that are not to be trusted."""

import json
from collections.abc import Callable
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest

import mlflow_keras_adv as mka
from mlflow_keras_adv import registry
from mlflow_keras_adv.compression.conversion import convert
from mlflow_keras_adv.registry import Measurements, Samples

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
SHARED = ("accuracy", "parameters", "sparsity", "size_bytes", "gzip_bytes", "flops")
LATENCIES = {"latency_ms_p50", "latency_ms_p95"}


@pytest.fixture(scope="module")
def net() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


@pytest.fixture(scope="module")
def samples(net: keras.Model) -> Samples:
    y = np.argmax(net(X), axis=1)
    y[:15] = (y[:15] + 1) % 3  # so that the net is right on 45 of 60
    return Samples(X, y)


@pytest.fixture
def folder(experiment: str, net: keras.Model) -> Path:
    info = mka.log_model(net, name="net", input_example=X[:2])
    return Path(mlflow.artifacts.download_artifacts(info.model_uri))


@pytest.fixture
def file_folder(experiment: str, net: keras.Model) -> Path:
    info = mka.litert.log_model(convert(net, X).content, name="file", input_example=X[:2])
    return Path(mlflow.artifacts.download_artifacts(info.model_uri))


def measure(*folders: Path, samples: Samples) -> list[Measurements]:
    return mka.measure_models(folders, samples, rounds=2, repeats=2)


def test_both_kinds_are_measured_alike(folder: Path, file_folder: Path, samples: Samples) -> None:
    ours, theirs = measure(folder, file_folder, samples=samples)
    for found in (ours, theirs):
        assert found.problem == ""
        assert set(SHARED) | LATENCIES <= set(found.metrics)
        assert not {key for key in found.metrics if "latency" in key} - LATENCIES
        assert found.metrics["accuracy"] == 0.75
        assert found.metrics["flops"] in (2 * 4 * 3, 2 * 4 * 3 + 3)  # a file drops a bias of 0
        assert found.per_sample["accuracy"].tolist() == [0.0] * 15 + [1.0] * 45
    assert ours.beside["agreement"] == 1
    assert ours.beside["difference_max"] < 1e-4  # float32 in another order
    assert dict(theirs.beside) == {}
    assert ours.metrics["parameters"] == 15
    assert theirs.metrics["size_bytes"] == (file_folder / "data/litert/model.tflite").stat().st_size


def test_without_labels_there_are_size_latency_and_what_both_have_in_common(
    folder: Path, file_folder: Path
) -> None:
    ours, theirs = measure(folder, file_folder, samples=Samples(X))
    for found in (ours, theirs):
        assert "accuracy" not in found.metrics
        assert (found.problem, found.unscored, found.deciding) == ("", "", "")
        assert set(found.metrics) >= LATENCIES
    assert ours.beside["difference"] < 1e-4


def test_labels_that_do_not_fit_are_told_and_the_rest_is_measured(folder: Path) -> None:
    (found,) = measure(folder, samples=Samples(X, np.zeros((60, 7))))
    assert found.problem == ""
    assert "was not compiled" in found.unscored
    assert set(found.metrics) >= LATENCIES


def test_a_lambda_is_not_run_and_the_way_out_is_said(
    folder: Path, file_folder: Path, samples: Samples
) -> None:
    unsafe = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3), keras.layers.Lambda(lambda x: x * 2)]
    )
    unsafe.save(folder / "data" / "keras" / "model.keras")
    found, other = measure(folder, file_folder, samples=samples)
    assert "holds a Lambda layer" in found.problem
    assert "subclass of keras.layers.Layer" in found.problem
    assert "safe_mode=False" not in found.problem
    assert other.problem == ""  # the rest is measured all the same


@pytest.mark.parametrize("where", ["model.tflite", "model.json"])
def test_a_file_whose_sha256_is_another_is_not_run(
    file_folder: Path, samples: Samples, where: str
) -> None:
    damaged = file_folder / "data" / "litert" / where
    if where == "model.json":
        damaged.write_text(json.dumps({"sha256": "0" * 64, "size_bytes": 1}))
    else:
        content = bytearray(damaged.read_bytes())
        content[-1] ^= 1
        damaged.write_bytes(content)
    (found,) = measure(file_folder, samples=samples)
    assert "is not the file that was logged: its sha256 is" in found.problem


def test_a_fresh_process_answers_the_input_example(file_folder: Path) -> None:
    (found,) = measure(file_folder, samples=Samples(X))
    assert found.serve is not None
    assert found.serve() == ""
    for each in file_folder.glob("*input_example*"):
        each.unlink()
    described = (file_folder / "MLmodel").read_text()
    assert "saved_input_example_info" in described
    kept = mlflow.models.Model.load(str(file_folder))
    kept.saved_input_example_info = None
    kept.save(str(file_folder / "MLmodel"))
    assert "has no input example" in found.serve()


def test_a_fresh_process_says_why_it_does_not_load(file_folder: Path) -> None:
    (found,) = measure(file_folder, samples=Samples(X))
    (file_folder / "data" / "litert" / "model.tflite").write_bytes(b"torn")
    assert found.serve is not None
    said = found.serve()
    assert "mlflow.models.predict failed" in said
    assert "is not the file that was logged" in said


def test_a_file_takes_the_place_of_a_net(
    experiment: str, net: keras.Model, samples: Samples, log_both: Callable[[], tuple[str, str]]
) -> None:
    first, second = log_both()
    gates = [
        registry.floor("accuracy", 0.7),
        registry.non_inferiority(margin=0.0),
        registry.agreement(1.0),
        registry.budget(max_size_bytes=5000, max_latency_ratio=100),
        registry.same_dataset(),
    ]
    arguments = {"data": samples, "measure": mka.measure_models}
    name = "side.by.side"
    big = registry.promote(name, first, gates=gates, **arguments)
    assert [each.gate for each in big.evidence.verdicts if not each.passed] == [
        "at most 5000 bytes, latency ratio at most 100"
    ]
    assert registry.promote(name, first, gates=gates[:3], **arguments).outcome == "promoted"
    done = registry.promote(name, "best-of-experiment", gates=gates, **arguments)
    assert done.outcome == "promoted", str(done)
    assert done.evidence.candidate == second
    assert mka.litert.load_model(f"models:/{name}@champion").content[4:8] == b"TFL3"
    registry.rollback(name)
    assert isinstance(mka.load_model(f"models:/{name}@champion"), keras.Model)


@pytest.fixture
def log_both(experiment: str, net: keras.Model, samples: Samples) -> Callable[[], tuple[str, str]]:
    """Logs the net and its file, with what they measure on record."""

    def logged() -> tuple[str, str]:
        with mka.track("both", log_system_metrics=False):
            common = {"dataset": samples.dataset}
            one = mka.log_finished_model(net, X, samples.y, name="net", **common)
            content = convert(net, X).content
            two = mka.log_finished_file(content, X, samples.y, name="file", **common)
        return one.info.model_uri, two.info.model_uri

    return logged

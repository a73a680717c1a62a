"""What compression is worth on digits, as means of three seeds: bytes and accuracy in LiteRT."""

import gzip
from collections.abc import Mapping

import keras
import numpy as np
import pytest

from mlflow_keras_adv import compression
from mlflow_keras_adv.tflite.runtime import LiteRTModel
from projects.compressing import loss_of, net
from projects.data import Data, load

SEEDS = range(3)
Measured = dict[str, dict[str, float]]  # by variant: accuracy, size_bytes, gzip_bytes


def trained(images: Data) -> keras.Model:
    model = net(images)
    steps = 15 * -(-len(images.x_train) // 32)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, steps)
    model.compile(keras.optimizers.Adam(rate), loss_of(model))
    model.fit(*images.train, batch_size=32, epochs=15, verbose=0)
    return model


def files(seed: int) -> dict[str, bytes]:
    keras.utils.set_random_seed(seed)
    images = load(seed=seed)
    calibration = images.x_train[:200]
    model = trained(images)

    def training(rate: float, epochs: int) -> dict[str, object]:
        optimizer = keras.optimizers.Adam(rate)
        return {"loss": loss_of(model), "optimizer": optimizer, "epochs": epochs, "verbose": 0}

    pruned = {
        share: compression.prune(model, images.train, sparsity=share, **training(1e-3, 10)).model
        for share in (0.8, 0.9)
    }
    clustered = compression.cluster(pruned[0.8], images.train, clusters=16, **training(1e-4, 5))
    preserved = {"preserve_sparsity": True, "preserve_clusters": True}
    return {
        "float": compression.convert(model, calibration).content,
        "int8": compression.quantize(model, compression.int8, calibration).content,
        "prune 80": compression.convert(pruned[0.8], calibration).content,
        "prune 80 int8": compression.quantize(pruned[0.8], compression.int8, calibration).content,
        "prune 90": compression.convert(pruned[0.9], calibration).content,
        "pcqat": compression.quantize_aware(
            clustered.model, images.train, **preserved, **training(1e-4, 5)
        ).content,
    }


@pytest.fixture(scope="module")
def measured() -> Measured:
    """Means over the seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for seed in SEEDS:
        images = load(seed=seed)
        for name, content in files(seed).items():
            values = {
                "accuracy": float(
                    np.mean(_scores(content, images).argmax(axis=-1) == images.y_test)
                ),
                "size_bytes": float(len(content)),
                "gzip_bytes": float(len(gzip.compress(content, compresslevel=9, mtime=0))),
            }
            for key, value in values.items():
                found.setdefault(name, {}).setdefault(key, []).append(value)
    means = {
        name: {key: float(np.mean(values)) for key, values in of.items()}
        for name, of in found.items()
    }
    print("\n" + "\n".join(_line(name, of) for name, of in means.items()))
    return means


def _scores(content: bytes, images: Data) -> np.ndarray:
    scores = LiteRTModel(content).predict(images.x_test)
    assert isinstance(scores, np.ndarray)
    return scores


def _line(name: str, of: Mapping[str, float]) -> str:
    return f"{name:14} " + " ".join(f"{key} {value:.4f}" for key, value in of.items())


@pytest.mark.soak
def test_the_float_net_is_right_in_98_of_100(measured: Measured) -> None:
    assert measured["float"]["accuracy"] >= 0.98


@pytest.mark.soak
@pytest.mark.parametrize(
    ("name", "key", "at_most"),
    [
        ("int8", "size_bytes", 0.31),
        ("prune 80 int8", "gzip_bytes", 0.13),
        ("pcqat", "gzip_bytes", 0.10),
    ],
)
def test_a_file_is_as_small_as_published_here(
    measured: Measured, name: str, key: str, at_most: float
) -> None:
    assert measured[name][key] <= at_most * measured["float"][key]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("name", "points"), [("int8", 1), ("prune 80", 2), ("prune 80 int8", 2), ("prune 90", 4)]
)
def test_accuracy_is_kept(measured: Measured, name: str, points: float) -> None:
    drop = 100 * (measured["float"]["accuracy"] - measured[name]["accuracy"])
    assert drop <= points

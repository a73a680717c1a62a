"""The evaluator, in this process and, from the built wheel, in an environment of its own."""

import json
import os
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest

import mlflow_keras_adv as mka
from mlflow_keras_adv.compression.conversion import convert
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.plugins.evaluator import KerasEvaluator
from mlflow_keras_adv.plugins.subject import columns

ROOT = Path(__file__).parent.parent.parent
X = np.random.default_rng(0).random((40, 4, 4, 1), dtype=np.float32)
FLAT = X.reshape(len(X), -1)
QUICK = {"repeats": 2}
# MLflow's own, of a DataFrame: under pandas 3, and of any integer column.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Starting with pandas version 4"),
    pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.drop"),
    pytest.mark.filterwarnings("ignore:Hint. Inferred schema contains integer"),
]


@pytest.fixture(autouse=True)
def imports_as_before() -> Iterator[None]:
    before = list(sys.path)  # a logged model's code is put before it
    yield
    sys.path[:] = before


@pytest.fixture(scope="module")
def classifier() -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((4, 4, 1), name="image")
    hidden = keras.layers.Flatten()(keras.layers.Conv2D(4, 3, activation="relu")(image))
    return keras.Model(image, keras.layers.Dense(3, activation="softmax")(hidden))


@pytest.fixture(scope="module")
def y(classifier: keras.Model) -> np.ndarray:
    """Labels of which the model answers 30 of 40 right."""
    labels = np.argmax(classifier(X), axis=1)
    labels[:10] = (labels[:10] + 1) % 3
    return labels


@pytest.fixture(scope="module")
def content(classifier: keras.Model) -> bytes:
    return convert(classifier, X).content


@pytest.fixture(scope="module")
def uris(store: str, classifier: keras.Model, content: bytes) -> dict[str, str]:
    """The model and the file made of it, logged once."""
    with mlflow.start_run():
        model = mka.log_model(classifier, name="whole", input_example=X[:2])
        file = mka.litert.log_model(content, name="file", input_example=X[:2])
    return {"keras": model.model_uri, "litert": file.model_uri}


def evaluated(uri: Any, y: np.ndarray, data: Any = FLAT, **config: Any) -> Any:
    return mlflow.models.evaluate(
        uri,
        data,
        targets=y,
        model_type="classifier",
        evaluators="keras_adv",
        evaluator_config=QUICK | config,
    )


@pytest.mark.parametrize("kind", ["keras", "litert"])
def test_a_model_is_measured_and_the_numbers_are_linked_to_it(
    experiment: str, uris: dict[str, str], y: np.ndarray, kind: str, classifier: keras.Model
) -> None:
    with mlflow.start_run() as run:
        result = evaluated(uris[kind], y, reference=uris["keras"], class_names=["a", "b", "c"])
    scores = np.asarray(classifier(X), np.float64)
    confidence, correct = scores.max(axis=1), scores.argmax(axis=1) == y
    bins = np.ceil(confidence * 15)
    gaps = [abs(correct[bins == n].sum() - confidence[bins == n].sum()) for n in range(1, 16)]
    assert result.metrics["final/accuracy"] == 0.75
    assert result.metrics["final/agreement"] == 1
    # Confidences are float32, and another kernel may round each of them once more.
    assert result.metrics["final/ece"] == pytest.approx(sum(gaps) / len(y), abs=1e-5)
    assert result.metrics["final/size_bytes"] > 0
    assert result.metrics["final/latency_ms_p50"] > 0
    assert ("final/peak_memory_bytes" in result.metrics) == (
        kind == "litert" and sys.platform == "linux"
    )

    client = mlflow.MlflowClient()
    assert client.get_run(run.info.run_id).data.metrics == result.metrics
    logged = client.get_logged_model(uris[kind].removeprefix("models:/"))
    linked = {m.key: m for m in logged.metrics if m.run_id == run.info.run_id}
    assert linked.keys() == result.metrics.keys()
    assert linked["final/ece"].dataset_digest is not None

    table = result.artifacts["keras_adv/per_class"].content
    assert table["class"].tolist() == ["a", "b", "c"]
    assert table["samples"].tolist() == np.bincount(y, minlength=3).tolist()
    found = {each.path for each in client.list_artifacts(run.info.run_id, "keras_adv")}
    names = "calibration.csv confusion.png confusion_counts.csv per_class.csv reliability.png"
    assert found == {f"keras_adv/{name}" for name in names.split()}
    assert result.artifacts["keras_adv/reliability"].content.size[0] > 100


def test_it_keeps_out_of_other_evaluations(experiment: str) -> None:
    def asked(model_type: str | None, config: dict[str, Any] | None) -> bool:
        return KerasEvaluator.can_evaluate(model_type=model_type, evaluator_config=config)

    assert not asked("classifier", None)
    assert not asked("classifier", {})
    assert not asked(None, {"log_model_explainability": False, "metric_prefix": "x"})
    assert asked("classifier", {"bins": 10})
    assert asked("classifier", {"keras_adv": {}})
    assert asked("keras_adv", {})

    table = pd.DataFrame({"x": [0.0, 1.0, 0.0, 1.0], "y": [0.0, 1.0, 1.0, 1.0]})
    arguments = {"data": table, "targets": "y", "model_type": "regressor"}
    plain = mlflow.models.evaluate(lambda rows: rows["x"], **arguments)
    assert "mean_squared_error" in plain.metrics
    assert not [key for key in plain.metrics if key.startswith("final/")]


def test_a_column_of_images_does_too_and_its_options_may_stand_under_its_name(
    experiment: str, uris: dict[str, str], y: np.ndarray
) -> None:
    names = np.array(["cat", "dog", "elk"])
    table = pd.DataFrame({"image": list(X), "y": names[y]})
    config = {"keras_adv": {"class_names": names.tolist(), **QUICK}}
    for uri in uris.values():
        with mlflow.start_run():
            result = mlflow.models.evaluate(
                uri, table, targets="y", model_type="keras_adv", evaluator_config=config
            )
        assert result.metrics["final/accuracy"] == 0.75


def test_a_model_without_classes_or_labels_has_its_footprint(experiment: str) -> None:
    left, right = keras.Input((2,), name="left"), keras.Input((3,), name="right")
    joined = keras.layers.Concatenate()([left, right])
    model = keras.Model([left, right], keras.layers.Dense(1)(joined))
    pair = {"left": X[:, :2, 0, 0], "right": X[:, :3, 1, 0]}
    uri = mka.log_model(model, name="pair", input_example=[pair["left"][:2], pair["right"][:2]])
    table = pd.DataFrame({name: list(array) for name, array in pair.items()})
    result = mlflow.models.evaluate(
        uri.model_uri, table, model_type="keras_adv", evaluator_config=QUICK
    )
    assert result.metrics["final/parameters"] == 6
    assert "final/accuracy" not in result.metrics
    with pytest.raises(UserError, match="inputs left, right.*have left"):
        columns(table[["left"]], ["left", "right"])


def test_mistakes_are_told(experiment: str, uris: dict[str, str], y: np.ndarray) -> None:
    with pytest.raises(UserError, match="may hold reference.*got.*'refrence'"):
        evaluated(uris["keras"], y, refrence=uris["litert"])
    with pytest.raises(UserError, match=r"takes samples of shape \(4, 4, 1\); the data have 15"):
        evaluated(uris["keras"], y, FLAT[:, :15])
    with pytest.raises(UserError, match="labels go up to 3; the model has 3 classes"):
        evaluated(uris["keras"], y + 1)
    with pytest.raises(UserError, match="labels cat are none of the classes 0, 1, 2"):
        evaluated(uris["keras"], np.full(len(y), "cat"))
    with pytest.raises(UserError, match="class_names needs 3 different names"):
        evaluated(uris["keras"], y, class_names=["a", "b"])
    with pytest.raises(UserError, match="Keras models and LiteRT models.*PyfuncWrapper"):
        evaluated(lambda rows: rows, y)
    with pytest.raises(UserError, match="no samples"):
        evaluated(uris["keras"], y[:0], FLAT[:0])


PLAIN = """
import json, sys
import mlflow
import numpy as np

def loaded():
    known = {"tensorflow", "keras", "mlflow_keras_adv.plugins.run_context"}
    return sorted(known & set(sys.modules))

seen = {"at import": loaded()}
with mlflow.start_run() as early:
    pass
seen["in a run"] = loaded()
import tensorflow as tf
import keras
with mlflow.start_run() as late:
    pass
tf.config.threading.set_inter_op_parallelism_threads(1)  # raises where devices are initialized
keras.config.set_dtype_policy("mixed_bfloat16")
with mlflow.start_run() as mixed:
    pass
keras.config.set_dtype_policy("float32")
seen["tags"] = [mlflow.get_run(run.info.run_id).data.tags for run in (early, late, mixed)]

model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(3)])
x, y = np.load("x.npy"), np.load("y.npy")
with mlflow.start_run():
    signature = mlflow.models.infer_signature(x, model.predict(x, verbose=0))
    logged = mlflow.keras.log_model(
        model, name="own", signature=signature, pip_requirements=["keras", "tensorflow"]
    )
for name, uri in {"own": logged.model_uri, "file": sys.argv[1]}.items():
    with mlflow.start_run():
        seen[name] = mlflow.models.evaluate(
            uri, x, targets=y, model_type="classifier",
            evaluators="keras_adv", evaluator_config={"repeats": 2},
        ).metrics
import mlflow_keras_adv
seen["from"] = mlflow_keras_adv.__file__
print(json.dumps(seen))
"""


@pytest.mark.slow
def test_plain_mlflow_finds_both_where_the_wheel_is_installed(
    experiment: str, uris: dict[str, str], y: np.ndarray, tmp_path: Path
) -> None:
    source, venv = tmp_path / "source", tmp_path / "venv"
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "mlflow_keras_adv", source / "mlflow_keras_adv", ignore=leave)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)

    def uv(*arguments: str) -> None:
        done = subprocess.run(["uv", *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert not done.returncode, done.stderr

    uv("build", "--quiet", "--wheel", "--out-dir", "dist", str(source))
    uv("venv", "--quiet", "--python", sys.executable, str(venv))
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    python = venv / "bin" / "python"
    uv("pip", "install", "--quiet", "--no-deps", "--python", str(python), str(wheel))
    # Everything but this package is that of the running environment: TensorFlow is 600 MB.
    (packages,) = venv.glob("lib/*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))

    script = tmp_path / "script.py"
    script.write_text(PLAIN)
    np.save(tmp_path / "x.npy", FLAT)
    np.save(tmp_path / "y.npy", y)
    done = subprocess.run(
        [str(python), str(script), uris["litert"]],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert Path(seen["from"]).is_relative_to(packages)
    assert seen["at import"] == seen["in a run"] == ["mlflow_keras_adv.plugins.run_context"]
    early, late, mixed = seen["tags"]
    assert early["keras"] == version("keras")
    assert not {"devices", "dtype_policy"} & early.keys()
    assert (late["dtype_policy"], mixed["dtype_policy"]) == ("float32", "mixed_bfloat16")
    assert late["devices"].startswith("CPU:0")
    assert seen["file"]["final/accuracy"] == 0.75
    assert seen["own"]["final/parameters"] == 16 * 3 + 3
    assert {"final/ece", "final/size_bytes"} <= seen["own"].keys() & seen["file"].keys()

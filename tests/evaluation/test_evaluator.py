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
import sklearn.metrics as sk
import tensorflow as tf

import mlflow_keras_adv as mka
from mlflow_keras_adv.compression.conversion import convert
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.evaluation.evaluator import KerasEvaluator
from mlflow_keras_adv.evaluation.subject import columns
from mlflow_keras_adv.metrics.criteria import criteria_of

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
    names = (
        "calibration.csv confusion_counts.csv confusion_matrix.png per_class.csv reliability.png "
        "samples.png"
    )
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
    with pytest.raises(UserError, match="may hold task, metrics.*got.*'refrence'"):
        evaluated(uris["keras"], y, refrence=uris["litert"])
    with pytest.raises(UserError, match=r"takes samples of shape \(4, 4, 1\); the data have 15"):
        evaluated(uris["keras"], y, FLAT[:, :15])
    with pytest.raises(UserError, match="labels go up to 3, from 1; the model has 3 classes"):
        evaluated(uris["keras"], y + 1)
    with pytest.raises(UserError, match="labels cat are none of the classes 0, 1, 2"):
        evaluated(uris["keras"], np.full(len(y), "cat"))
    with pytest.raises(UserError, match=r"the names \['a', 'b'\]; expected 3 different ones"):
        evaluated(uris["keras"], y, class_names=["a", "b"])
    with pytest.raises(UserError, match="Keras models and LiteRT models.*PyfuncWrapper"):
        evaluated(lambda rows: rows, y)
    with pytest.raises(UserError, match="no samples"):
        evaluated(uris["keras"], y[:0], FLAT[:0])


# Any model


def dense(units: int, activation: str | None = None) -> keras.Model:
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((16,)), keras.layers.Dense(units, activation)])


def logged(model: keras.Model, example: Any) -> str:
    return str(mka.log_model(model, name="any", input_example=example).model_uri)


def found_in(uri: str, data: Any, **arguments: Any) -> Any:
    with mlflow.start_run():
        return mlflow.models.evaluate(uri, data, evaluators="keras_adv", **arguments)


def test_a_regressor_is_measured_as_scikit_learn_does(
    experiment: str, client: mlflow.MlflowClient
) -> None:
    model, weights = dense(2), np.linspace(0, 2, len(X))
    true = FLAT[:, :2] * 2 - 1
    answers = model.predict(FLAT, verbose=0).astype(np.float64)
    uris = [logged(model, FLAT[:2])]
    file = mka.litert.log_model(convert(model, FLAT).content, name="f", input_example=FLAT[:2])
    for uri in [*uris, file.model_uri]:
        with mlflow.start_run() as run:
            result = mlflow.models.evaluate(
                uri,
                FLAT,
                targets=true,
                model_type="regressor",
                evaluators="keras_adv",
                evaluator_config={**QUICK, "sample_weight": weights, "reference": uris[0]},
            )
        assert result.metrics["final/mae"] == pytest.approx(
            sk.mean_absolute_error(true, answers, sample_weight=weights), rel=1e-5
        )
        r2 = sk.r2_score(true, answers, sample_weight=weights)
        assert result.metrics["final/r2"] == pytest.approx(r2, rel=1e-5)
        assert result.metrics["final/difference"] == pytest.approx(0, abs=1e-6)
        assert "final/agreement" not in result.metrics
        assert result.artifacts["keras_adv/predicted_over_true"].content.size[0] > 100
        tags = client.get_run(run.info.run_id).data.tags
        assert tags["task.evaluation"] == "regression"
        assert json.loads(tags["directions.evaluation"])["final/r2"] == "max"


@pytest.mark.parametrize("logits", [False, True])
def test_a_binary_model_is_measured_at_its_threshold(experiment: str, logits: bool) -> None:
    model = dense(1, None if logits else "sigmoid")
    true = (FLAT[:, 0] > 0.5).astype(np.int64)
    answers = model.predict(FLAT, verbose=0)[:, 0]
    uri = logged(model, FLAT[:2])
    result = found_in(
        uri, FLAT, targets=true, model_type="classifier", evaluator_config=QUICK
    ).metrics
    assert result["final/threshold"] == (0 if logits else 0.5)
    chosen = answers > result["final/threshold"]
    assert result["final/accuracy"] == pytest.approx(np.mean(chosen == true))
    assert result["final/roc_auc"] == pytest.approx(sk.roc_auc_score(true, answers))
    if logits:  # nothing but the user says what 0 and 1 are
        with pytest.raises(UserError, match='say task="classification", "binary"'):
            found_in(uri, FLAT, targets=true, model_type="keras_adv", evaluator_config=QUICK)
    else:
        uri = found_in(uri, FLAT, targets=true, model_type="keras_adv", evaluator_config=QUICK)
        assert uri.metrics["final/roc_auc"] == result["final/roc_auc"]


def test_a_multi_label_model_and_metrics_that_are_asked_for(experiment: str) -> None:
    model = dense(3, "sigmoid")
    true = (FLAT[:, :3] > 0.5).astype(np.int64)
    config = {**QUICK, "metrics": [keras.metrics.AUC(multi_label=True, name="auc")]}
    config["class_names"] = ["a", "b", "c"]
    result = found_in(
        logged(model, FLAT[:2]), FLAT, targets=true, model_type="keras_adv", evaluator_config=config
    )
    answers = model.predict(FLAT, verbose=0)
    known = keras.metrics.AUC(multi_label=True)
    known.update_state(true, answers)
    assert result.metrics["final/auc"] == pytest.approx(float(known.result()), rel=1e-6)
    right = np.mean((answers > 0.5) == true)
    assert result.metrics["final/binary_accuracy"] == pytest.approx(right)
    assert result.artifacts["keras_adv/per_label"] is not None


def test_several_outputs_have_their_columns(experiment: str, client: mlflow.MlflowClient) -> None:
    inputs = keras.Input((16,), name="features")
    heads = {
        "price": keras.layers.Dense(1, name="price")(inputs),
        "kind": keras.layers.Dense(3, activation="softmax", name="kind")(inputs),
    }
    model = keras.Model(inputs, heads)
    answers = model.predict(FLAT, verbose=0)
    kinds = np.array(["ant", "bee", "cat"])[FLAT[:, :3].argmax(axis=1)]
    table = pd.DataFrame({"features": list(FLAT), "cost": FLAT[:, 0], "animal": kinds})
    table["weight"] = np.arange(len(X)) % 2.0
    result = found_in(
        logged(model, FLAT[:2]),
        table,
        model_type="keras_adv",
        evaluator_config={
            **QUICK,
            "targets": {"price": "cost", "kind": "animal"},
            "class_names": {"kind": ["ant", "bee", "cat"]},
            "sample_weight": "weight",
        },
    )
    rows = table["weight"] > 0
    off = np.abs(answers["price"][:, 0] - FLAT[:, 0])[rows]
    assert result.metrics["final/price/mae"] == pytest.approx(off.mean(), rel=1e-5)
    chosen = np.array(["ant", "bee", "cat"])[answers["kind"].argmax(axis=1)]
    right = np.mean((chosen == kinds)[rows])
    assert result.metrics["final/kind/accuracy"] == pytest.approx(right)
    assert result.artifacts["keras_adv/kind/per_class"].content["class"].tolist() == [
        "ant",
        "bee",
        "cat",
    ]
    files = {each.path for each in client.list_artifacts(result.run_id, "keras_adv/price")}
    assert "keras_adv/price/residuals.png" in files


def test_what_is_masked_does_not_count(experiment: str, caplog: pytest.LogCaptureFixture) -> None:
    keras.utils.set_random_seed(2)
    words = np.random.default_rng(1).integers(1, 9, (30, 5)) * (np.arange(5) < 3)
    inputs = keras.Input((5,), dtype="int32", name="words")
    hidden = keras.layers.Embedding(9, 6, mask_zero=True)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(hidden))
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    true = np.where(words > 0, words % 3, -1)
    expected = model.evaluate(words, np.maximum(true, 0), verbose=0, return_dict=True)["accuracy"]
    uri = logged(model, words[:2].astype(np.int32))
    arguments = {"targets": true, "model_type": "keras_adv"}
    result = found_in(uri, words, **arguments, evaluator_config=QUICK)
    assert result.metrics["final/accuracy"] == pytest.approx(expected, rel=1e-6)
    assert result.artifacts["keras_adv/per_class"].content["samples"].sum() == 30 * 3


@pytest.mark.parametrize("by", ["mlflow.keras", "mka", "litert"])
def test_what_a_model_was_compiled_with_says_what_it_is(experiment: str, by: str) -> None:
    keras.utils.set_random_seed(1)
    regularizer = None if by == "litert" else keras.regularizers.L2(0.01)
    head = keras.layers.Dense(1, kernel_regularizer=regularizer)
    model = keras.Sequential([keras.Input((16,)), head])
    loss = keras.losses.LogCosh()
    model.compile("sgd", loss, metrics=[keras.metrics.RootMeanSquaredError(name="root")])
    true = (FLAT[:, 0] > 0.5).astype(np.float32)
    signature = mlflow.models.infer_signature(FLAT, model.predict(FLAT, verbose=0))
    with mlflow.start_run():
        if by == "mka":
            info = mka.log_model(model, name="ours", input_example=FLAT[:2])
        elif by == "litert":
            content = convert(model, FLAT).content
            info = mka.litert.log_model(
                content, name="file", input_example=FLAT[:2], criteria=criteria_of(model)
            )
        else:
            info = mlflow.keras.log_model(
                model, name="own", signature=signature, pip_requirements=["keras"]
            )
    result = found_in(
        info.model_uri, FLAT, targets=true, model_type="keras_adv", evaluator_config=QUICK
    ).metrics
    known = model.evaluate(FLAT, true, verbose=0, return_dict=True)
    assert result["final/loss"] == pytest.approx(known["loss"], rel=1e-5)
    assert result["final/root"] == pytest.approx(known["root"], rel=1e-5)
    assert "final/mae" in result  # as its loss is one of regressions, though labels are 0 and 1


def test_texts_are_taken_and_mistakes_are_refused_in_a_sentence(experiment: str) -> None:
    texts = np.array(["good one", "bad one", "one good", "one bad"] * 5)
    words = keras.layers.TextVectorization(vocabulary=["good", "bad", "one"], output_mode="count")
    inputs = keras.Input((1,), dtype="string", name="text")
    model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(words(inputs)))
    table = pd.DataFrame({"text": texts, "good": [1, 0, 1, 0] * 5})
    uri = logged(model, texts[:2, None])
    result = found_in(uri, table, targets="good", model_type="classifier", evaluator_config=QUICK)
    answers = model(tf.constant(texts[:, None])).numpy()[:, 0]
    assert result.metrics["final/roc_auc"] == sk.roc_auc_score(table["good"], answers)

    uri = logged(dense(2), FLAT[:2])
    for config, said in (
        ({"task": "regresion"}, "task='regresion'"),
        ({"targets": {"": "cost"}}, "no column 'cost'"),
        ({"sample_weight": np.ones(3)}, r"weights of shape \(3,\)"),
        ({"task": "tagging"}, r"labels of shape \(40, 3\)"),
    ):
        with pytest.raises(UserError, match=said):
            found_in(
                uri,
                FLAT,
                targets=FLAT[:, :2] if "sample_weight" in config else FLAT[:, :3],
                model_type="regressor",
                evaluator_config={**QUICK, **config},
            )


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

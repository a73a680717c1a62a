"""The LiteRT flavor: what is saved, what is refused, and every way in which MLflow runs it."""

import copy
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException

from mlflow_keras_adv.compression.conversion import convert
from mlflow_keras_adv.compression.quantization import int8_io, quantize
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.flavors import litert
from mlflow_keras_adv.tflite import runtime
from mlflow_keras_adv.tflite.runtime import LiteRTModel
from tests.mlflow_server import free_port, wait_until_healthy

ROOT = Path(__file__).parent.parent.parent
X = np.random.default_rng(0).random((40, 4, 4, 1), dtype=np.float32)
EPS = float(np.finfo("float32").eps)


@pytest.fixture(autouse=True)
def imports_as_before() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture
def run_id(client: mlflow.MlflowClient, experiment: str) -> str:
    return client.create_run(experiment).info.run_id


@pytest.fixture(scope="module")
def classifier() -> keras.Model:
    keras.utils.set_random_seed(0)
    image = keras.Input((4, 4, 1), name="image")
    hidden = keras.layers.Flatten()(keras.layers.Conv2D(4, 3, activation="relu")(image))
    return keras.Model(image, keras.layers.Dense(3)(hidden))


@pytest.fixture(scope="module")
def float_file(classifier: keras.Model) -> bytes:
    return convert(classifier, X).content


@pytest.fixture(scope="module")
def integer_file(classifier: keras.Model) -> bytes:
    """Takes and gives int8."""
    return quantize(classifier, int8_io, X).content


@pytest.fixture(scope="module")
def two_inputs() -> keras.Model:
    keras.utils.set_random_seed(0)
    right, left = keras.Input((4,), name="right"), keras.Input((2,), name="left")
    joined = keras.layers.Concatenate()([right, left])
    outputs = {"sum": keras.layers.Dense(2)(joined), "scaled": keras.layers.Dense(3)(left)}
    return keras.Model({"right": right, "left": left}, outputs)


@pytest.fixture(scope="module")
def pair() -> dict[str, np.ndarray]:
    return {"right": X[:, :, 0, 0], "left": X[:, :2, 1, 0]}


@pytest.fixture(scope="module")
def two_inputs_file(two_inputs: keras.Model, pair: dict[str, np.ndarray]) -> bytes:
    return convert(two_inputs, pair).content


def close_to(expected: np.ndarray) -> dict[str, Any]:
    """Float32 sums of at most 16 products in another order, twice."""
    return {"rtol": 0, "atol": 32 * EPS * float(np.abs(expected).max())}


# What is on record.


def test_the_model_belongs_to_its_run_without_an_active_one(
    client: mlflow.MlflowClient, run_id: str, experiment: str, float_file: bytes
) -> None:
    client.log_param(run_id, "sparsity", "0.8")
    client.log_metric(run_id, "val/loss", 0.5, step=7)
    info = litert.log_model(
        float_file,
        name="int8",
        run=run_id,
        step=7,
        model_type="classifier",
        params={"sparsity": 0.5},
        tags={"technique": "quantize"},
        metadata={"note": "kept"},
    )
    assert mlflow.active_run() is None
    logged = client.get_logged_model(info.model_id)
    assert logged.status == LoggedModelStatus.READY
    assert (logged.name, logged.model_type) == ("int8", "classifier")
    assert (logged.source_run_id, logged.experiment_id) == (run_id, experiment)
    assert logged.params == {"sparsity": "0.5"}
    assert logged.tags["technique"] == "quantize"
    assert [(metric.key, metric.value) for metric in logged.metrics] == [("val/loss", 0.5)]
    [output] = client.get_run(run_id).outputs.model_outputs
    assert (output.model_id, output.step) == (info.model_id, 7)
    assert info.metadata == {"note": "kept"}


def test_the_model_is_in_the_experiment_of_its_run_and_not_in_the_current_one(
    client: mlflow.MlflowClient, experiment: str, tmp_path: Path, float_file: bytes
) -> None:
    other = client.create_experiment(f"other-{tmp_path}", (tmp_path / "other").as_uri())
    run_id = client.create_run(other).info.run_id
    info = litert.log_model(float_file, name="m", run=run_id)
    assert client.get_logged_model(info.model_id).experiment_id == other


def test_the_folder_says_what_a_caller_must_know(tmp_path: Path, integer_file: bytes) -> None:
    file = tmp_path / "model.tflite"
    file.write_bytes(integer_file)
    litert.save_model(file, tmp_path / "model", input_example=X[:2])

    description = mlflow.models.Model.load(tmp_path / "model")
    flavor = description.flavors["litert"]
    [given], [returned] = flavor["inputs"], flavor["outputs"]
    assert (given["name"], given["dtype"], given["shape"]) == ("image", "int8", [-1, 4, 4, 1])
    assert 0 < given["scale"] < 0.01  # images from 0 to 1 in 256 steps
    assert returned["dtype"] == "int8"
    assert (tmp_path / "model" / flavor["data"] / "model.tflite").read_bytes() == integer_file
    # Callers send and get real numbers, by name.
    [spec] = description.signature.inputs.inputs
    assert (spec.name, spec.type, spec.shape) == ("image", np.dtype("float32"), (-1, 4, 4, 1))
    assert description.signature.outputs.inputs[0].type == np.dtype("float32")
    example = json.loads((tmp_path / "model" / "input_example.json").read_text())
    assert example == {"image": X[:2].tolist()}
    pinned = [f"{name}=={version(name)}" for name in ("mlflow", "numpy", "ai-edge-litert")]
    assert (tmp_path / "model" / "requirements.txt").read_text().split() == pinned
    names = [path.name for path in (tmp_path / "model" / "code").iterdir()]
    assert [name.rpartition("_")[0] for name in names] == ["mlflow_keras_adv_litert"]
    pickles = [path for path in (tmp_path / "model").rglob("*") if path.suffix in (".pkl", ".p")]
    assert pickles == []


def test_given_requirements_signature_and_code_are_kept(
    tmp_path: Path, float_file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK", "true")
    inputs = mlflow.types.Schema([mlflow.types.TensorSpec(np.dtype("float32"), (-1, 4, 4, 1))])
    signature = mlflow.models.ModelSignature(inputs)
    code = tmp_path / "mine.py"
    code.write_text("X = 1")
    litert.save_model(
        float_file,
        tmp_path / "model",
        signature=signature,
        extra_pip_requirements=["scipy"],
        code_paths=[code],
        input_example=X[:1],
    )
    description = mlflow.models.Model.load(tmp_path / "model")
    assert description.signature == signature
    assert (tmp_path / "model" / "code" / "mine.py").exists()
    requirements = (tmp_path / "model" / "requirements.txt").read_text().split()
    assert requirements[-1] == "scipy"
    assert not [each for each in requirements if each.startswith(("tensorflow", "keras"))]


# Every way in.


def test_every_kind_of_input_gives_what_keras_gives(
    run_id: str, classifier: keras.Model, float_file: bytes
) -> None:
    info = litert.log_model(float_file, name="m", run=run_id, input_example=X[:2])
    expected = np.asarray(classifier(X))
    wrapped = mlflow.pyfunc.load_model(info.model_uri)
    flat = [image.reshape(-1).tolist() for image in X]
    for data in (X, {"image": X}, pd.DataFrame({"image": flat})):
        np.testing.assert_allclose(wrapped.predict(data), expected, **close_to(expected))
    loaded = litert.load_model(info.model_uri)
    pixels = pd.DataFrame(X.reshape(len(X), -1))
    for data in (X.tolist(), X.astype("float64"), pixels, pd.DataFrame({"image": list(X)})):
        np.testing.assert_allclose(loaded.predict(data), expected, **close_to(expected))
    assert loaded.content == float_file


@pytest.mark.filterwarnings("ignore:Operation with range is deprecated")  # MLflow's own
def test_columns_as_example_make_a_signature_of_columns(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    table = pd.DataFrame(X[:, :, 0, 0], columns=list("abcd"))
    file = convert(model, table.to_numpy()).content
    litert.save_model(file, tmp_path / "model", input_example=table[:2])
    wrapped = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    expected = np.asarray(model(table.to_numpy()))
    assert wrapped.metadata.signature.inputs.input_names() == list("abcd")
    shuffled = table[["d", "c", "b", "a"]]  # by name, whatever the order
    for data in (table, shuffled):
        np.testing.assert_allclose(wrapped.predict(data), expected, **close_to(expected))


def test_several_inputs_and_outputs_go_by_name(
    run_id: str,
    two_inputs: keras.Model,
    two_inputs_file: bytes,
    pair: dict[str, np.ndarray],
) -> None:
    info = litert.log_model(two_inputs_file, name="m", run=run_id, input_example=pair)
    assert sorted(spec.name for spec in info.signature.inputs.inputs) == ["left", "right"]
    wrapped = mlflow.pyfunc.load_model(info.model_uri)
    table = pd.DataFrame({name: list(array) for name, array in pair.items()})
    lists = pd.DataFrame({name: array.tolist() for name, array in pair.items()})
    expected = two_inputs(pair)
    loaded = litert.load_model(info.model_uri)
    listed = [pair[tensor.name] for tensor in loaded.inputs]
    answers = [wrapped.predict(pair), wrapped.predict(lists)]
    answers += [loaded.predict(listed), loaded.predict(table)]
    for answer in answers:
        assert set(answer) == {"sum", "scaled"}
        for name, output in expected.items():
            np.testing.assert_allclose(answer[name], output, **close_to(np.asarray(output)))
    with pytest.raises(ValueError, match="send the inputs"):
        loaded.predict(X)
    with pytest.raises(ValueError, match="the inputs are"):
        loaded.predict({"left": pair["left"]})
    with pytest.raises(ValueError, match="needs the columns"):
        loaded.predict(lists[["left"]])
    with pytest.raises(ValueError, match="same count of samples"):
        loaded.predict({"left": pair["left"][:3], "right": pair["right"]})


def test_an_integer_model_takes_and_gives_real_numbers(
    run_id: str, classifier: keras.Model, integer_file: bytes
) -> None:
    info = litert.log_model(integer_file, name="m", run=run_id)
    wrapped = mlflow.pyfunc.load_model(info.model_uri)
    predicted = wrapped.predict(X)
    assert predicted.dtype == np.float32
    integers = wrapped.predict(X, params={"dequantize": False})
    assert integers.dtype == np.int8
    model = litert.load_model(info.model_uri)
    [image], [score] = model.inputs, model.outputs
    by_hand = (integers.astype(np.float64) - score.zero_point) * score.scale
    np.testing.assert_array_equal(predicted, by_hand.astype(np.float32))
    # Integers of the tensor's own dtype are taken as they are.
    encoded = np.round(X / image.scale) + image.zero_point
    encoded = np.clip(encoded, -128, 127).astype(np.int8)
    np.testing.assert_array_equal(model.predict(encoded), predicted)
    # A step of the output is a 256th of the range of answers; half of one is the least error.
    expected = np.asarray(classifier(X))
    assert score.scale / 2 <= np.abs(predicted - expected).max() < 8 * score.scale
    with pytest.raises(ValueError, match="NaN"):
        model.predict(np.full_like(X, np.nan))
    far = model.predict(np.full_like(X, 1e9))  # clipped, not wrapped round
    np.testing.assert_array_equal(far, model.predict(np.full_like(X, 1.0)))


def test_batches_and_threads_change_nothing(float_file: bytes) -> None:
    model = LiteRTModel(float_file)
    expected = model.predict(X)
    for params in ({"batch_size": 7}, {"num_threads": 2}, {"batch_size": 100, "num_threads": 3}):
        np.testing.assert_allclose(model.predict(X, params), expected, **close_to(expected))
    answers: dict[int, Any] = {}

    def predict(number: int) -> None:
        answers[number] = model.predict(X[number:], {"batch_size": number + 1})

    threads = [threading.Thread(target=predict, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, answer in answers.items():
        np.testing.assert_allclose(answer, expected[number:], **close_to(expected))
    assert sorted(answers) == list(range(6))


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ({"batchsize": 3}, "batchsize"),
        ({"batch_size": 0}, "from 1"),
        ({"num_threads": 1.5}, "whole number"),
        ({"output": "classes"}, "must be one of"),
    ],
)
def test_wrong_params_are_refused(
    float_file: bytes, params: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        LiteRTModel(float_file).predict(X, params)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (X[:0], "above 0"),
        (X[:, :3], r"takes the shape \(-1, 4, 4, 1\)"),
        (X[0], r"got \(4, 4, 1\)"),
        (X.astype(str), "takes numbers"),
        ({"picture": X}, "inputs are"),
    ],
)
def test_data_that_do_not_fit_are_refused(float_file: bytes, data: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        LiteRTModel(float_file).predict(data)


def test_a_file_of_one_sample_a_call_takes_any_number() -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    x = X[:5, :, 0, 0]
    for fixed in (1, 2):
        runner = LiteRTModel(convert(model, x, batch_size=fixed).content)
        assert runner.rows == fixed
        expected = np.asarray(model(x))
        np.testing.assert_allclose(runner.predict(x), expected, **close_to(expected))


@pytest.mark.quick
def test_it_can_be_registered(
    client: mlflow.MlflowClient, experiment: str, classifier: keras.Model, float_file: bytes
) -> None:
    name = f"litert-{experiment}"
    info = litert.log_model(float_file, name="m", input_example=X[:2], registered_model_name=name)
    client.set_registered_model_alias(name, "champion", "1")
    assert client.get_model_version(name, "1").source == info.model_uri
    uri = f"models:/{name}@champion"
    assert litert.load_model(uri).content == float_file
    expected = np.asarray(classifier(X))
    loaded = mlflow.pyfunc.load_model(uri)
    np.testing.assert_allclose(loaded.predict(X), expected, **close_to(expected))
    assert loaded.get_raw_model().content == float_file


# Evaluation by MLflow, which takes one number a sample.

PLAIN = {"log_model_explainability": False}  # else SHAP is run, which takes minutes


@pytest.fixture(scope="module")
def table_file() -> bytes:
    """A classifier of four columns."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    return convert(model, X[:, :, 0, 0]).content


@pytest.mark.filterwarnings("ignore")  # MLflow's and scikit-learn's own, by the dozen
def test_images_are_evaluated(
    client: mlflow.MlflowClient, experiment: str, classifier: keras.Model, float_file: bytes
) -> None:
    chosen = np.asarray(classifier(X)).argmax(axis=-1)
    labels = np.where(np.arange(len(X)) % 4 == 0, (chosen + 1) % 3, chosen)  # a quarter is wrong
    images = pd.DataFrame({"image": [image.reshape(-1).tolist() for image in X], "label": labels})
    classes = {"output": "class"}
    with mlflow.start_run():
        info = litert.log_model(float_file, name="m", predict_params=classes)
        result = mlflow.models.evaluate(
            info.model_uri,
            images,
            targets="label",
            model_type="classifier",
            evaluator_config=PLAIN,
        )
    assert result.metrics["accuracy_score"] == 0.75
    linked = {each.key: each.value for each in client.get_logged_model(info.model_id).metrics}
    assert linked["accuracy_score"] == 0.75
    loaded = mlflow.pyfunc.load_model(info.model_uri)
    np.testing.assert_array_equal(loaded.predict(X), chosen)
    scores = loaded.predict(X, params={"output": "scores"})
    assert scores.shape == (len(X), 3)
    # Arrays, which MLflow takes flat only, by a function: whatever the model was logged to give.
    with mlflow.start_run():
        result = mlflow.models.evaluate(
            partial(litert.load_model(info.model_uri).predict, params=classes),
            X.reshape(len(X), -1),
            targets=labels,
            model_type="classifier",
            model_id=info.model_id,
            evaluator_config=PLAIN,
        )
    assert result.metrics["accuracy_score"] == 0.75


@pytest.mark.filterwarnings("ignore")
def test_columns_are_evaluated_as_table_and_as_array(experiment: str, table_file: bytes) -> None:
    columns = pd.DataFrame(X[:, :, 0, 0], columns=list("abcd"))
    chosen = LiteRTModel(table_file).predict(columns, {"output": "class"})
    labels = np.where(np.arange(len(X)) % 4 == 0, (chosen + 1) % 3, chosen)
    ways: list[tuple[Any, Any, Any]] = [
        (columns.assign(label=labels), "label", None),
        (columns.to_numpy(), labels, list("abcd")),
    ]
    with mlflow.start_run():
        info = litert.log_model(
            table_file, name="m", input_example=columns[:2], predict_params={"output": "class"}
        )
        for data, targets, names in ways:
            result = mlflow.models.evaluate(
                info.model_uri,
                data,
                targets=targets,
                feature_names=names,
                model_type="classifier",
                evaluator_config=PLAIN,
            )
            assert result.metrics["accuracy_score"] == 0.75


@pytest.mark.filterwarnings("ignore")
def test_a_regressor_is_evaluated(experiment: str) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    x = X[:, :, 0, 0]
    columns = pd.DataFrame(x, columns=list("abcd"))
    expected = np.asarray(model(x))[:, 0]
    with mlflow.start_run():
        info = litert.log_model(
            convert(model, x).content,
            name="m",
            input_example=columns[:2],
            predict_params={"output": "value"},
        )
        result = mlflow.models.evaluate(
            info.model_uri,
            columns.assign(target=expected + 0.5),
            targets="target",
            model_type="regressor",
            evaluator_config=PLAIN,
        )
    # Of float32 numbers around 1, added up another way.
    assert result.metrics["mean_absolute_error"] == pytest.approx(0.5, abs=32 * EPS)


def test_the_signature_says_what_is_predicted_by_default(
    tmp_path: Path, integer_file: bytes
) -> None:
    asked = {"output": "class", "num_threads": 2}
    litert.save_model(integer_file, tmp_path / "model", predict_params=asked)
    signature = mlflow.models.Model.load(tmp_path / "model").signature
    assert {each.name: each.default for each in signature.params} == {
        "batch_size": 32,
        "num_threads": 2,
        "dequantize": True,
        "output": "class",
    }
    [output] = signature.outputs.inputs
    assert (output.type, output.shape) == (np.dtype("int64"), (-1,))
    loaded = litert.load_model(str(tmp_path / "model"))
    classes = loaded.predict(X)
    assert (classes.dtype, classes.shape) == (np.dtype("int64"), (len(X),))
    scores = loaded.predict(X, {"output": "scores"})
    np.testing.assert_array_equal(classes, scores.argmax(axis=-1))


def test_one_score_makes_no_class_and_nan_makes_none() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    runner = LiteRTModel(convert(model, X[:, :, 0, 0]).content)
    with pytest.raises(ValueError, match="no classes to choose among"):
        runner.predict(X[:, :, 0, 0], {"output": "class"})
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    runner = LiteRTModel(convert(model, X[:, :, 0, 0]).content, output="class")
    assert runner.predict(np.full((1, 4), np.nan, "float32")).tolist() == [-1]


# Bad files.


def test_a_damaged_file_is_refused_on_load(tmp_path: Path, float_file: bytes) -> None:
    litert.save_model(float_file, tmp_path / "model")
    stored = tmp_path / "model" / "data" / "litert" / "model.tflite"
    position = float_file.rindex(b"\x00\x00")  # one bit of a weight, which LiteRT would not mind
    stored.write_bytes(float_file[:position] + b"\x01" + float_file[position + 1 :])
    for load in (litert.load_model, mlflow.pyfunc.load_model):
        with pytest.raises(ValueError, match="not the file that was logged: its sha256"):
            load(str(tmp_path / "model"))
    stored.write_bytes(float_file)
    description = stored.with_name("model.json")
    for broken in ("{", "[]", "{}", '{"sha256": "", "params": 3}'):
        description.write_text(broken)
        with pytest.raises(ValueError, match="no complete LiteRT model"):
            litert.load_model(str(tmp_path / "model"))
    description.unlink()
    with pytest.raises(ValueError, match="no complete LiteRT model"):
        litert.load_model(str(tmp_path / "model"))


def test_truncated_and_hostile_files_are_refused_before_anything_is_created(
    client: mlflow.MlflowClient, experiment: str, tmp_path: Path, float_file: bytes
) -> None:
    size = len(float_file)
    random = np.random.default_rng(0)
    hostile = [float_file[: size // part] for part in (2, 3, 10)]
    hostile += [b"", b"PK\x03\x04" + bytes(100), b"\x1c\x00\x00\x00TFL3" + random.bytes(1000)]
    hostile += [b"\xff\xff\xff\xffTFL3" + float_file[8:]]
    for content in hostile:
        with pytest.raises(ValueError, match="not a .tflite file|cannot run this .tflite file"):
            litert.log_model(content, name="m")
    with pytest.raises(UserError, match="cannot be read"):
        litert.log_model(tmp_path / "gone.tflite", name="m")
    with pytest.raises(ValueError, match="content of a .tflite file or its path; got a dict"):
        litert.log_model({}, name="m")
    with pytest.raises(ValueError, match="takes the shape"):
        litert.log_model(float_file, name="m", input_example=X[:, :2])
    for name in ("ckpt/3", "a:b", "prune_0.8", ""):
        with pytest.raises(ValueError, match="cannot be called"):
            litert.log_model(float_file, name=name)
    assert client.search_logged_models([experiment]) == []


# Of each damaged file: refused with a ValueError, or run without a crash of the process.
DAMAGED = """
import runpy, sys
import numpy as np

LiteRTModel = runpy.run_path(sys.argv[1])["LiteRTModel"]
random, counts = np.random.default_rng(0), [0, 0]
for path in sys.argv[2:]:
    content = open(path, "rb").read()
    for number in range(300):
        damaged = bytearray(content)
        start = 4 * int(random.integers(2, len(content) // 4))
        if number % 3 == 0:
            del damaged[start:]
        else:
            damaged[start : start + 4] = random.bytes(4)
        try:
            LiteRTModel(bytes(damaged)).predict(np.zeros((2, 4, 4, 1), np.float32))
            counts[0] += 1
        except ValueError:
            counts[1] += 1
print(*counts)
"""


def test_damage_anywhere_in_a_file_ends_in_a_clear_error(
    tmp_path: Path, float_file: bytes, integer_file: bytes
) -> None:
    files = [tmp_path / "float.tflite", tmp_path / "integer.tflite"]
    for file, content in zip(files, (float_file, integer_file), strict=True):
        file.write_bytes(content)
    command = [sys.executable, "-c", DAMAGED, runtime.__file__, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ran, refused = map(int, done.stdout.split())
    assert ran + refused == 600
    assert refused > 300  # the others had other weights, no other structure


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_model_whose_logging_breaks_is_failed(
    client: mlflow.MlflowClient,
    run_id: str,
    experiment: str,
    monkeypatch: pytest.MonkeyPatch,
    float_file: bytes,
    error: BaseException,
) -> None:
    def broken(*arguments: Any) -> None:
        raise copy.copy(error)

    monkeypatch.setattr(mlflow.MlflowClient, "log_model_artifacts", broken)
    with pytest.raises(type(error)):
        litert.log_model(float_file, name="m", run=run_id)
    [logged] = client.search_logged_models([experiment])
    assert logged.status == LoggedModelStatus.FAILED


def test_something_else_is_not_loaded_as_litert(tmp_path: Path) -> None:
    mlflow.pyfunc.save_model(
        str(tmp_path / "model"),
        loader_module="mlflow.sklearn",
        data_path=__file__,
        pip_requirements=["mlflow"],
    )
    with pytest.raises(UserError, match="not a LiteRT model: its flavors are python_function"):
        litert.load_model(str(tmp_path / "model"))


# Where there is no TensorFlow.

WITHOUT_TENSORFLOW = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "keras", "tf_keras", *sys.argv[3:]):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import mlflow, numpy as np
if not sys.argv[3:]:
    from mlflow_keras_adv.flavors import litert
    litert.load_model(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[1])
np.save(sys.argv[2] + "/predicted.npy", model.predict(np.load(sys.argv[2] + "/x.npy")))
"""


@pytest.mark.slow
@pytest.mark.parametrize("blocked", [(), ("mlflow_keras_adv",)], ids=["flavor", "model"])
def test_it_loads_with_tensorflow_and_keras_blocked(
    tmp_path: Path, float_file: bytes, blocked: tuple[str, ...]
) -> None:
    litert.save_model(float_file, tmp_path / "model")
    np.save(tmp_path / "x.npy", X)
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, str(tmp_path / "model"), str(tmp_path)]
    done = subprocess.run([*command, *blocked], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    predicted = np.load(tmp_path / "predicted.npy")
    np.testing.assert_array_equal(predicted, LiteRTModel(float_file).predict(X))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # what it installs has to be downloaded where uv's cache is empty
def test_its_requirements_are_enough(tmp_path: Path, integer_file: bytes) -> None:
    litert.save_model(integer_file, tmp_path / "model")
    np.save(tmp_path / "x.npy", X)
    uv, python = Path(sys.executable).with_name("uv"), tmp_path / "venv" / "bin" / "python"

    def call(*command: Any) -> str:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [str(each) for each in command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call(uv, "venv", "--python", sys.executable, tmp_path / "venv")
    requirements = tmp_path / "model" / "requirements.txt"
    call(uv, "pip", "install", "--python", python, "-r", requirements)
    installed = call(uv, "pip", "freeze", "--python", python)
    assert not re.search(r"^(tensorflow|keras|mlflow-keras-adv)\b", installed, re.MULTILINE)
    call(python, "-c", WITHOUT_TENSORFLOW, tmp_path / "model", tmp_path, "mlflow_keras_adv")
    predicted = np.load(tmp_path / "predicted.npy")
    np.testing.assert_array_equal(predicted, LiteRTModel(integer_file).predict(X))


@pytest.mark.slow
def test_it_predicts_and_answers_over_http(
    tmp_path: Path, run_id: str, two_inputs_file: bytes, pair: dict[str, np.ndarray]
) -> None:
    info = litert.log_model(two_inputs_file, name="m", run=run_id, input_example=pair)
    expected = LiteRTModel(two_inputs_file).predict(pair)
    assert isinstance(expected, dict)
    payload = {"inputs": {name: array.tolist() for name, array in pair.items()}}
    (tmp_path / "payload.json").write_text(json.dumps(payload))
    mlflow_ = [sys.executable, "-m", "mlflow", "models"]
    place = ["-m", info.model_uri, "--env-manager", "local"]
    command = [*mlflow_, "predict", *place, "-i", "payload.json", "-o", "answer.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = [json.loads((tmp_path / "answer.json").read_text())["predictions"]]
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [*mlflow_, "serve", *place, "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_until_healthy(f"{address}/ping", process)
            sent = {**payload, "params": {"num_threads": 2}}
            answer = requests.post(f"{address}/invocations", json=sent, timeout=60)
            assert answer.status_code == 200, answer.text
            answers.append(answer.json()["predictions"])
            payload["inputs"].pop("left")
            refused = requests.post(f"{address}/invocations", json=payload, timeout=60)
            assert refused.status_code == 400
            assert "left" in refused.json()["message"]
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # its own session: it forks a server
            process.wait(timeout=30)
    for answer in answers:
        for name, output in expected.items():
            np.testing.assert_allclose(answer[name], output, **close_to(output))


def test_the_schema_of_the_signature_is_enforced(tmp_path: Path, float_file: bytes) -> None:
    litert.save_model(float_file, tmp_path / "model")
    wrapped = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    with pytest.raises(MlflowException, match=r"\(-1, 4, 4, 1\)"):
        wrapped.predict(X[:, :3])
    with pytest.raises(MlflowException, match="num_threads"):
        wrapped.predict(X, params={"num_threads": "many"})

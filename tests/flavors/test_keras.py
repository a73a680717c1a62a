import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from importlib import import_module, invalidate_caches
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

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.flavors import logging as model_logging
from mlflow_keras_adv.flavors.keras import load_model, log_model
from mlflow_keras_adv.tracking.run import track
from tests.mlflow_server import free_port, wait_until_healthy

ROOT = Path(__file__).parent.parent.parent
X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
Y = np.arange(6) % 3


@pytest.fixture(autouse=True)
def imports_as_before() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture
def run_id(client: mlflow.MlflowClient, experiment: str) -> str:
    return client.create_run(experiment).info.run_id


def classifier() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)], name="classifier")
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    invalidate_caches()
    return path


def test_the_model_belongs_to_its_run_without_an_active_one(
    client: mlflow.MlflowClient, run_id: str, experiment: str
) -> None:
    client.log_param(run_id, "sparsity", "0.8")
    client.log_param(run_id, "epochs", "3")
    client.log_metric(run_id, "val/loss", 0.5, step=7)
    info = log_model(
        classifier(),
        name="student",
        run=run_id,
        input_example=X[:2],
        step=7,
        model_type="classifier",
        params={"sparsity": 0.5},
        tags={"technique": "pruning"},
        metadata={"note": "kept"},
    )
    assert mlflow.active_run() is None
    logged = client.get_logged_model(info.model_id)
    assert logged.status == LoggedModelStatus.READY
    assert (logged.name, logged.model_type) == ("student", "classifier")
    assert (logged.source_run_id, logged.experiment_id) == (run_id, experiment)
    assert logged.params == {"sparsity": "0.5", "epochs": "3"}
    assert logged.tags["technique"] == "pruning"
    assert [(metric.key, metric.value) for metric in logged.metrics] == [("val/loss", 0.5)]
    [output] = client.get_run(run_id).outputs.model_outputs
    assert (output.model_id, output.step) == (info.model_id, 7)
    assert info.metadata == {"note": "kept"}


def test_the_model_is_in_the_experiment_of_its_run_and_not_in_the_current_one(
    client: mlflow.MlflowClient, experiment: str, tmp_path: Path
) -> None:
    other = client.create_experiment(f"other-{tmp_path}", (tmp_path / "other").as_uri())
    run_id = client.create_run(other).info.run_id
    info = log_model(classifier(), name="m", run=run_id, input_example=X[:2])
    assert client.get_logged_model(info.model_id).experiment_id == other


def test_the_active_run_of_the_thread_is_the_default(
    client: mlflow.MlflowClient, experiment: str
) -> None:
    with mlflow.start_run() as run:
        info = log_model(classifier(), name="m", input_example=X[:2])
        assert mlflow.active_run().info.run_id == run.info.run_id
    assert client.get_logged_model(info.model_id).source_run_id == run.info.run_id


def test_two_threads_log_to_two_runs(client: mlflow.MlflowClient, experiment: str) -> None:
    model = classifier()
    runs = [client.create_run(experiment).info.run_id for _ in range(2)]
    infos: dict[str, Any] = {}

    def log(run_id: str) -> None:
        infos[run_id] = log_model(model, name="m", run=run_id, input_example=X[:2])

    threads = [threading.Thread(target=log, args=(run_id,)) for run_id in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for run_id in runs:
        assert client.get_logged_model(infos[run_id].model_id).source_run_id == run_id
    assert model.compiled


def test_the_model_is_logged_uncompiled_and_stays_compiled(tmp_path: Path, run_id: str) -> None:
    model = classifier()
    model.fit(X, Y, verbose=0)
    optimizer, state = model.optimizer, [v.numpy() for v in model.optimizer.variables]
    info = log_model(model, name="m", run=run_id, input_example=X[:2])
    assert model.compiled
    assert model.optimizer is optimizer
    for variable, value in zip(optimizer.variables, state, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    folder = Path(mlflow.artifacts.download_artifacts(info.model_uri, dst_path=str(tmp_path)))
    with zipfile.ZipFile(folder / "data" / "keras" / "model.keras") as archive:
        assert "compile_config" not in archive.read("config.json").decode()
        assert b"optimizer/vars" not in archive.read("model.weights.h5")
    assert not load_model(info.model_uri).compiled


def test_the_logged_folder_says_what_a_caller_must_know(tmp_path: Path, run_id: str) -> None:
    info = log_model(classifier(), name="m", run=run_id, input_example=X[:2])
    [given], [returned] = info.signature.inputs.inputs, info.signature.outputs.inputs
    assert (given.name, given.type, given.shape) == (None, np.dtype("float32"), (-1, 4))
    assert (returned.name, returned.type, returned.shape) == (None, np.dtype("float32"), (-1, 3))
    folder = Path(mlflow.artifacts.download_artifacts(info.model_uri, dst_path=str(tmp_path)))
    assert json.loads((folder / "input_example.json").read_text()) == X[:2].tolist()
    pinned = [f"{name}=={version(name)}" for name in ("mlflow", "tensorflow", "keras", "numpy")]
    assert (folder / "requirements.txt").read_text().split() == pinned
    [loader] = (folder / "code").iterdir()
    assert loader.name.startswith("mlflow_keras_adv_loader_")
    assert not (folder / "data" / "keras" / "code").exists()
    assert mlflow.models.Model.load(folder).model_size_bytes > 0


def test_every_loader_gives_the_same_predictions(run_id: str) -> None:
    model = classifier()
    info = log_model(model, name="m", run=run_id, input_example=X[:2])
    expected = np.asarray(model(X))
    folder = mlflow.artifacts.download_artifacts(info.model_uri)
    for uri in (info.model_uri, f"runs:/{run_id}/m", folder):
        np.testing.assert_array_equal(load_model(uri)(X), expected)
    np.testing.assert_array_equal(mlflow.keras.load_model(info.model_uri)(X), expected)
    wrapped = mlflow.pyfunc.load_model(info.model_uri)
    # Keras predicts in a compiled graph, which may sum 4 products in another order.
    close = {"rtol": 0, "atol": 4 * np.finfo("float32").eps * np.abs(expected).max()}
    for data in (X, pd.DataFrame(X)):
        np.testing.assert_allclose(wrapped.predict(data), expected, **close)
    assert isinstance(wrapped.get_raw_model(), keras.Model)


def test_what_mlflow_keras_logged_loads_too(experiment: str) -> None:
    model = classifier()
    with mlflow.start_run():
        info = mlflow.keras.log_model(model, name="m", pip_requirements=["keras"])
    np.testing.assert_array_equal(load_model(info.model_uri)(X), model(X))


def test_loading_something_else_is_refused(experiment: str) -> None:
    with mlflow.start_run():
        info = mlflow.pyfunc.log_model(
            name="m",
            loader_module="mlflow.sklearn",
            data_path=__file__,
            pip_requirements=["mlflow"],
        )
    with pytest.raises(UserError, match="is not a Keras model: its flavors are python_function"):
        load_model(info.model_uri)


@pytest.mark.quick
def test_several_inputs_and_outputs_go_by_name(run_id: str) -> None:
    left, right = keras.Input((4,), name="left"), keras.Input((None, 2), name="right")
    pooled = keras.layers.GlobalAveragePooling1D()(right)
    joined = keras.layers.Concatenate()([left, pooled])
    outputs = [keras.layers.Dense(2, name="a")(joined), keras.layers.Dense(1, name="b")(joined)]
    model = keras.Model([left, right], outputs)
    example = [X, np.ones((6, 5, 2), "float32")]
    info = log_model(model, name="m", run=run_id, input_example=example)
    specs = [(spec.name, spec.shape) for spec in info.signature.inputs.inputs]
    assert specs == [("left", (-1, 4)), ("right", (-1, -1, 2))]
    assert [s.name for s in info.signature.outputs.inputs] == ["a", "b"]
    longer = {"right": np.ones((6, 7, 2), "float32"), "left": X}
    predicted = mlflow.pyfunc.load_model(info.model_uri).predict(longer)
    expected = model([X, longer["right"]])
    for name, output in zip("ab", expected, strict=True):
        scale = np.abs(output).max()  # 4 + 2 products
        close = {"rtol": 0, "atol": 6 * np.finfo("float32").eps * scale}
        np.testing.assert_allclose(predicted[name], output, **close)


PAIR = """
import keras

class Pair(keras.Model):
    def call(self, inputs):
        left, right = inputs
        return left - right, left + right
"""


def test_a_subclassed_model_of_a_list_is_given_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_id: str
) -> None:
    written(tmp_path, "mo_pair.py", PAIR)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = import_module("mo_pair").Pair()
    model([X, X])
    info = log_model(model, name="m", run=run_id, input_example=[3 * X, X])
    assert [spec.name for spec in info.signature.inputs.inputs] == ["input_0", "input_1"]
    predicted = mlflow.pyfunc.load_model(info.model_uri).predict({"input_1": X, "input_0": 3 * X})
    np.testing.assert_array_equal(predicted["output_0"], 3 * X - X)
    np.testing.assert_array_equal(predicted["output_1"], 3 * X + X)


def test_a_model_of_a_dict_takes_a_dict(run_id: str) -> None:
    inputs = {"u": keras.Input((4,), name="u"), "v": keras.Input((4,), name="v")}
    model = keras.Model(inputs, {"sum": keras.layers.Add()([inputs["u"], inputs["v"]])})
    example = {"u": X, "v": 2 * X}
    info = log_model(model, name="m", run=run_id, input_example=example)
    predicted = mlflow.pyfunc.load_model(info.model_uri).predict(example)
    np.testing.assert_array_equal(predicted["sum"], X + 2 * X)


LAYERS = """
import keras
from mo_constants import FACTOR

@keras.saving.register_keras_serializable("mo_layers")
class Scale(keras.layers.Layer):
    def call(self, inputs):
        return FACTOR * inputs

def squash(inputs):
    return keras.ops.tanh(inputs)
"""
SCRIPT = """
import json, sys
import keras
import mlflow_keras_adv as mka
import numpy as np
from mo_layers import Scale, squash

class Shift(keras.layers.Layer):
    def __init__(self, by, **kwargs):
        super().__init__(**kwargs)
        self.by = by

    def call(self, inputs):
        return inputs + self.by

    def get_config(self):
        return super().get_config() | {"by": self.by}

if __name__ == "__main__":
    x = np.array(json.loads(sys.argv[1]), "float32")
    dense = keras.layers.Dense(3, activation=squash)
    model = keras.Sequential([keras.Input((4,)), Scale(), Shift(by=2.0), dense])
    info = mka.log_model(model, name="m", input_example=x)
    loaded = mka.load_model(info.model_uri)
    assert type(loaded.layers[1]) is not Shift, "what the script is tomorrow is not what it was"
    print(json.dumps([info.model_uri, model.predict(x, verbose=0).tolist()]))
"""
FRESH = """
import json, sys
from importlib.util import find_spec
# As where this package is not installed: what the script imports has travelled with the model.
sys.meta_path[:] = [each for each in sys.meta_path if "editable" not in str(each)]
sys.path[:] = [each for each in sys.path if each != sys.argv[3]]
names = ("mo_layers", "steps", "mlflow_keras_adv")
assert [find_spec(name) for name in names] == [None] * 3
import mlflow, numpy
model = mlflow.pyfunc.load_model(sys.argv[2])
assert "mlflow_keras_adv" not in sys.modules
assert any(name.endswith(".mlflow_keras_adv") for name in sys.modules)
print(json.dumps(model.predict(numpy.array(json.loads(sys.argv[1]), "float32")).tolist()))
"""


@pytest.mark.slow
def test_custom_objects_load_in_a_process_that_has_only_the_model(
    tmp_path: Path, experiment: str
) -> None:
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    written(source, "steps/train.py", SCRIPT)
    written(source, "mo_layers.py", LAYERS)
    written(source, "mo_constants.py", "FACTOR = 3.0")
    elsewhere.mkdir()

    def printed(folder: Path, path: str, *arguments: str) -> Any:
        environment = {**os.environ, "PYTHONPATH": path}
        shown = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert shown.returncode == 0, shown.stderr
        return json.loads(shown.stdout.splitlines()[-1])

    x = json.dumps(X.tolist())
    uri, expected = printed(source, str(ROOT), "-m", "steps.train", x)
    # Both predict in a compiled graph on the same machine: the same sums in the same order.
    assert printed(elsewhere, "", "-c", FRESH, x, uri, str(ROOT)) == expected
    needed = Path(mlflow.pyfunc.get_model_dependencies(uri)).read_text()
    assert "lazy-loader==" in needed, "what has travelled is this package, and it imports that"


@pytest.mark.slow
def test_the_model_answers_over_http(tmp_path: Path, run_id: str) -> None:
    model = classifier()
    info = log_model(model, name="m", run=run_id, input_example=X[:2])
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", info.model_uri]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_until_healthy(f"{address}/ping", process)
            answer = requests.post(
                f"{address}/invocations", json={"inputs": X.tolist()}, timeout=60
            )
            assert answer.status_code == 200, answer.text
            expected = np.asarray(model(X))
            atol = 4 * np.finfo("float32").eps * np.abs(expected).max()  # 4 products
            predictions = answer.json()["predictions"]
            np.testing.assert_allclose(predictions, expected, rtol=0, atol=atol)
            short = {"inputs": X[:, :3].tolist()}
            refused = requests.post(f"{address}/invocations", json=short, timeout=60)
            assert refused.status_code == 400
            assert "(-1, 4)" in refused.json()["message"]
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # its own session: it forks a server
            process.wait(timeout=30)


@pytest.mark.parametrize("name", ["ckpt/3", "a:b", "prune_0.8", "80%", 'a"b', "a'b", ""])
def test_a_bad_name_is_refused_before_anything_is_created(
    client: mlflow.MlflowClient, experiment: str, name: str
) -> None:
    with pytest.raises(ValueError, match="cannot be called"):
        log_model(classifier(), name=name, input_example=X[:2])
    assert client.search_logged_models([experiment]) == []


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_what_cannot_be_loaded_is_refused_before_anything_is_created(
    client: mlflow.MlflowClient, experiment: str
) -> None:
    class Hidden(keras.layers.Layer):
        def call(self, inputs):
            return inputs

    with pytest.raises(UserError, match="Hidden"):
        log_model(keras.Sequential([keras.Input((4,)), Hidden()]), name="m", input_example=X)
    doubled = keras.layers.Lambda(lambda inputs: 2 * inputs)
    with pytest.raises(UserError, match="lambda"):
        log_model(keras.Sequential([keras.Input((4,)), doubled]), name="m", input_example=X)
    with pytest.raises(UserError, match=r"no file or folder 'gone\.py'"):
        log_model(classifier(), name="m", input_example=X, code_paths=["gone.py"])
    with pytest.raises(ValueError, match="input_example"):
        log_model(classifier(), name="m")
    unbuilt = keras.Sequential([keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="has not been built"):
        log_model(unbuilt, name="m", input_example=X)
    assert not unbuilt.built
    assert client.search_logged_models([experiment]) == []


def test_a_code_path_travels_and_supplies_a_class_defined_elsewhere(
    tmp_path: Path, run_id: str
) -> None:
    class MoSupplied(keras.layers.Layer):
        def call(self, inputs):
            return inputs + 1

    text = "import keras\n\nclass MoSupplied(keras.layers.Layer):\n"
    text += "    def call(self, inputs):\n        return inputs + 1\n"
    path = written(tmp_path, "mo_supplied.py", text)
    model = keras.Sequential([keras.Input((4,)), MoSupplied()])
    info = log_model(model, name="m", run=run_id, input_example=X, code_paths=[path])
    np.testing.assert_array_equal(load_model(info.model_uri)(X), X + 1)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_model_whose_logging_breaks_is_failed(
    client: mlflow.MlflowClient,
    run_id: str,
    experiment: str,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    def broken(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(mlflow.MlflowClient, "log_model_artifacts", broken)
    with pytest.raises(type(error)):
        log_model(classifier(), name="m", run=run_id, input_example=X[:2])
    [logged] = client.search_logged_models([experiment])
    assert logged.status == LoggedModelStatus.FAILED


def test_a_given_signature_and_requirements_are_kept(tmp_path: Path, run_id: str) -> None:
    model = classifier()
    signature = mlflow.models.infer_signature(X.astype("float64"))
    with pytest.warns(UserWarning, match="An input example was not provided"):  # MLflow's advice
        info = log_model(
            model, name="m", run=run_id, signature=signature, pip_requirements=["keras>=3"]
        )
    assert info.signature == signature
    folder = Path(mlflow.artifacts.download_artifacts(info.model_uri, dst_path=str(tmp_path)))
    assert "keras>=3" in (folder / "requirements.txt").read_text().split()


def test_a_registered_model_version_points_to_the_model(
    client: mlflow.MlflowClient, run_id: str
) -> None:
    name = f"registered-{run_id}"
    info = log_model(
        classifier(), name="m", run=run_id, input_example=X[:2], registered_model_name=name
    )
    assert client.get_model_version(name, "1").source == info.model_uri
    assert load_model(f"models:/{name}/1").count_params() == 15


def test_a_model_that_is_logged_in_an_outage_is_the_same_model_afterwards(
    client: mlflow.MlflowClient, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = classifier()
    with track(log_system_metrics=False) as run:
        monkeypatch.setattr(model_logging, "answers", lambda uri: False)
        info = log_model(
            model, name="m", input_example=X[:2], tags={"variant": "a"}, params={"p": 1}
        )
        run.log_metrics({"final/accuracy": 0.5}, model_id=info.model_id)
    assert info.model_id.startswith("pending-")
    [logged] = client.search_logged_models([experiment])
    assert (logged.name, logged.status) == ("m", LoggedModelStatus.READY)
    assert (logged.tags["variant"], logged.params) == ("a", {"p": "1"})
    assert [metric.value for metric in logged.metrics] == [0.5]
    loaded = load_model(f"models:/{logged.model_id}")
    np.testing.assert_array_equal(loaded(X), model(X))
    served = mlflow.pyfunc.load_model(f"models:/{logged.model_id}")
    np.testing.assert_array_equal(served.predict(X), model(X))
    assert served.metadata.run_id == run.run_id

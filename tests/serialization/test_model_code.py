"""Each loaded model is made of the code that was logged with it, and of no other."""

import copy
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import import_module, invalidate_caches
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import mlflow
import numpy as np
import pytest

from mlflow_keras_adv import registry
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.evaluation.measure_models import measure_models
from mlflow_keras_adv.flavors.keras import load_model, log_model
from tests.warm import PYTHON

X = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
Y = np.argmax(X, axis=1)

# A package whose answer hangs on five modules, each imported in another way.
PROJECT = {
    "mc_consts.py": "SIGN = {sign}\n",
    "mc_net/__init__.py": "from .layers import Signed\nfrom mc_net import deep\n",
    "mc_net/layers.py": """
import importlib
import keras
import mc_consts as consts
import mc_net.late.early
from mc_net.deep.parts import OFFSET, shift

@keras.saving.register_keras_serializable("mc")
class Signed(keras.layers.Layer):
    def call(self, inputs):
        from mc_net.late.values import ZERO  # imported when it runs
        from .late import others
        assert importlib.import_module("mc_net.late.named").SIGN == consts.SIGN
        assert mc_net.late.early.SIGN == others.SIGN == consts.SIGN
        return shift(consts.SIGN * inputs) - OFFSET + ZERO

class Plain(keras.layers.Layer):
    def call(self, inputs):
        return consts.SIGN * inputs

def bent(x):
    return consts.SIGN * x

@keras.saving.register_keras_serializable("mc")
def named(x):
    return consts.SIGN * x
""",
    "mc_net/deep/__init__.py": "",
    "mc_net/deep/parts.py": """
from mc_consts import SIGN
OFFSET = 2.0 * SIGN
def shift(x):
    return x + OFFSET
""",
    "mc_net/late/__init__.py": "",
    "mc_net/late/early.py": "from mc_consts import SIGN\n",
    "mc_net/late/named.py": "from mc_consts import SIGN\n",
    "mc_net/late/others.py": "from mc_consts import SIGN\n",
    "mc_net/late/values.py": "from mc_consts import SIGN\nZERO = 0.0 * SIGN\n",
    "mc_net/unused.py": "import mc_secret\n",
    "mc_net/.env": "PASSWORD=secret",
    "mc_net/credentials.json": "{}",
    "mc_net/.git/config": "[remote]",
    "mc_net/data/weights.npz": "x" * 1000,
    "mc_net/data/words.txt": "a b",
}
NEEDED = {
    "mc_consts.py",
    "mc_net/__init__.py",
    "mc_net/layers.py",
    "mc_net/deep/__init__.py",
    "mc_net/deep/parts.py",
    *(f"mc_net/late/{name}.py" for name in ("__init__", "early", "named", "others", "values")),
}


def write(folder: Path, sign: str) -> None:
    for name, text in PROJECT.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{sign}", sign))
    invalidate_caches()


def forget(*tops: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
        del sys.modules[name]


def net(layers: ModuleType) -> keras.Model:
    inner = keras.layers.TimeDistributed(layers.Plain())
    stack = [layers.Signed(), layers.Plain(), keras.layers.Activation(layers.bent)]
    stack += [keras.layers.Activation(layers.named)]
    stack += [keras.layers.Reshape((1, 3)), inner, keras.layers.Reshape((3,))]
    return keras.Sequential([keras.Input((3,)), *stack])  # SIGN to the power of 5


@pytest.fixture(scope="module")
def uris(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, ModuleType]]:
    """Models of two versions of one project, and the program's own module, a third."""
    store, project = tmp_path_factory.mktemp("store"), tmp_path_factory.mktemp("project")
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'm.db'}")
        experiment = mlflow.create_experiment("code", (store / "artifacts").as_uri())
        patch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
        patch.syspath_prepend(str(project))
        for sign in ("1.0", "-1.0"):
            forget("mc_net", "mc_consts")
            write(project, sign)
            with mlflow.start_run():
                model = net(import_module("mc_net.layers"))
                found.append(log_model(model, name="m", input_example=X[:2]).model_uri)
        forget("mc_net", "mc_consts")
        write(project, "100.0")
        layers = import_module("mc_net.layers")
        net(layers)(X)  # it imports late
        yield found[0], found[1], layers
    forget("mc_net", "mc_consts")


@pytest.fixture(autouse=True)
def the_program_stays_as_it_is(uris: Any) -> Iterator[None]:
    layers = uris[2]

    def program() -> Any:
        table = keras.saving.get_custom_objects()
        ours = {name: module for name, module in sys.modules.items() if name.startswith("mc_")}
        own_names = {key: each for key, each in table.items() if key.startswith("mc>")}
        return list(sys.path), ours, own_names

    before = program()
    yield
    assert program() == before
    assert keras.saving.get_registered_object("mc>Signed") is layers.Signed
    own = keras.Sequential([keras.Input((3,)), layers.Plain()])
    assert isinstance(own.layers[0], layers.Plain)
    np.testing.assert_array_equal(own(X), 100 * X)


def loaded(how: str, uri: str) -> Any:
    if how == "pyfunc":
        return mlflow.pyfunc.load_model(uri).predict
    model = load_model(uri)
    return lambda x: model.predict(x, verbose=0)


@pytest.mark.parametrize("first", ["pyfunc", "mka"])
@pytest.mark.parametrize("second", ["pyfunc", "mka"])
def test_two_versions_of_a_project_are_loaded_side_by_side(
    uris: tuple[str, str, ModuleType], first: str, second: str
) -> None:
    (a, b), again = (loaded(first, uris[0]), loaded(second, uris[1])), loaded(second, uris[0])
    for _ in range(2):
        np.testing.assert_allclose(a(X), X, atol=1e-6)
        np.testing.assert_allclose(b(X), -X, atol=1e-6)
    np.testing.assert_allclose(again(X), X, atol=1e-6)


def test_threads_load_versions_side_by_side(uris: tuple[str, str, ModuleType]) -> None:
    answers: dict[int, Any] = {}

    def load(number: int) -> None:
        answers[number] = load_model(uris[number % 2])(X)

    threads = [threading.Thread(target=load, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number in range(6):
        np.testing.assert_allclose(answers[number], X * (1, -1)[number % 2], atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*compiled metrics:UserWarning")
def test_a_loaded_model_is_copied_pickled_and_saved_with_its_own_code(
    uris: tuple[str, str, ModuleType], tmp_path: Path
) -> None:
    a, b = load_model(uris[0]), load_model(uris[1])
    for model, sign in ((a, 1), (b, -1)):
        model.save(tmp_path / "again.keras")
        others = [
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            keras.models.clone_model(model),
            keras.Sequential.from_config(model.get_config()),
            keras.saving.load_model(tmp_path / "again.keras"),
        ]
        for other in others:
            np.testing.assert_allclose(other(X), sign * X, atol=1e-6)
            assert type(other.layers[0]) is type(model.layers[0])


def test_a_loaded_model_is_logged_again_with_its_own_code(
    uris: tuple[str, str, ModuleType], tmp_path: Path
) -> None:
    with mlflow.start_run():
        info = log_model(load_model(uris[1]), name="again", input_example=X[:2])
    for uri, folder in ((uris[1], "first"), (info.model_uri, "second")):
        mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path / folder))
    for place in ("data/keras/loading.json", "data/keras/code/mc_consts.py"):
        first, second = (tmp_path / each / place for each in ("first", "second"))
        assert first.read_text() == second.read_text()
    np.testing.assert_allclose(loaded("pyfunc", info.model_uri)(X), -X, atol=1e-6)


def test_two_codes_in_one_model_are_refused(uris: tuple[str, str, ModuleType]) -> None:
    a, b = load_model(uris[0]), load_model(uris[1])
    both = keras.Sequential([keras.Input((3,)), a.layers[0], b.layers[1]])
    with mlflow.start_run(), pytest.raises(UserError, match="needs two versions of mc_consts.py"):
        log_model(both, name="both", input_example=X[:2])
    twice = keras.Sequential([keras.Input((3,)), a.layers[0], b.layers[0]])
    with mlflow.start_run(), pytest.raises(UserError, match="two versions of 'mc>Signed'"):
        log_model(twice, name="both", input_example=X[:2])


def test_the_classes_of_the_program_are_used_where_it_says_so(
    uris: tuple[str, str, ModuleType],
) -> None:
    layers = uris[2]
    mine = load_model(uris[0], custom_objects={"mc>Signed": layers.Signed})
    assert isinstance(mine.layers[0], layers.Signed)
    np.testing.assert_allclose(mine(X), 100 * X, rtol=1e-5)  # the other four layers keep it


def test_a_promotion_measures_the_champion_with_its_own_code(
    uris: tuple[str, str, ModuleType],
) -> None:
    samples = registry.Samples(X, Y, name="code-test")
    gates = [registry.floor("accuracy", 0.9), registry.non_inferiority("accuracy", margin=0.02)]
    first = registry.promote("mc", uris[0], data=samples, gates=gates, measure=measure_models)
    assert first.outcome == "promoted"
    second = registry.promote("mc", uris[1], data=samples, gates=gates, measure=measure_models)
    assert second.outcome == "refused"
    measured = {role: each.metrics["accuracy"] for role, each in second.evidence.measured.items()}
    assert measured["champion"] == 1.0
    assert measured["candidate"] < 0.5


def test_only_what_is_needed_travels_and_the_record_says_what(
    uris: tuple[str, str, ModuleType], tmp_path: Path
) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(uris[0], dst_path=str(tmp_path)))
    code = folder / "data" / "keras" / "code"
    assert {file.relative_to(code).as_posix() for file in code.rglob("*.*") if file.is_file()} == (
        NEEDED
    )
    assert not any("secret" in str(file) or ".env" in str(file) for file in folder.rglob("*"))
    logged = mlflow.MlflowClient().get_logged_model(uris[0].removeprefix("models:/"))
    assert logged.tags["code"].startswith(f"{len(NEEDED)} files, ")
    assert set(logged.tags["code"].partition(": ")[2].split(", ")) == NEEDED


READS = """
import keras
from pathlib import Path

class Counts(keras.layers.Layer):
    def build(self, shape):
        self.count = len(Path(__file__).with_name("words.txt").read_text().split())

    def call(self, inputs):
        return self.count * inputs
"""


def test_data_of_a_package_travel_where_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "mc_reads"
    package.mkdir()
    for name, text in {
        "__init__.py": "",
        "layers.py": READS,
        "words.txt": "a b",
        ".env": "",
    }.items():
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    invalidate_caches()
    model = keras.Sequential([keras.Input((3,)), import_module("mc_reads.layers").Counts()])
    try:
        with mlflow.start_run():
            with pytest.raises(UserError, match=r"(?s)No such file.*words.txt.*package_data"):
                log_model(model, name="m", input_example=X)
            with pytest.raises(UserError, match=r"no file is found by 'mc_reads/\*\.csv'"):
                log_model(model, name="m", input_example=X, package_data=["mc_reads/*.csv"])
            info = log_model(model, name="m", input_example=X, package_data=["mc_reads/*"])
            again = log_model(load_model(info.model_uri), name="again", input_example=X)
    finally:
        forget("mc_reads")
    for each in (info, again):
        assert ".env" not in str(each.signature)
        np.testing.assert_array_equal(loaded("pyfunc", each.model_uri)(X), 2 * X)
        logged = mlflow.MlflowClient().get_logged_model(each.model_id)
        assert "mc_reads/words.txt" in logged.tags["code"]
        assert ".env" not in logged.tags["code"]


GONE = """
import sys, shutil, mlflow, numpy
from pathlib import Path
folder = mlflow.artifacts.download_artifacts(sys.argv[1], dst_path=sys.argv[2])
model = mlflow.pyfunc.load_model(folder)
shutil.rmtree(folder)
answer = model.predict(numpy.ones((1, 3), "float32"))  # imports what call() imports
place = Path(sys.modules[type(model.get_raw_model().layers[0]).__module__].__file__)
assert place.exists()
print(place)
assert (answer == -1).all(), answer
"""


@pytest.mark.slow
def test_a_process_that_has_only_a_model_needs_its_download_no_longer(
    uris: tuple[str, str, ModuleType], tmp_path: Path
) -> None:
    command = [PYTHON, "-c", GONE, uris[1], str(tmp_path)]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.strip().splitlines()[-1]).exists()

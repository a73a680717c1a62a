"""`mlflow run . -e distill` from the command line, read back through MLflow's client."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.image
import mlflow
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow.models import Model, get_model_info

from mlflow_keras_adv.lessons import entry_point
from projects import distill
from projects.data import Data, load
from tests.mlflow_run import (
    Recorded,
    cold_path,
    copy_project,
    mlflow_run,
    mlflow_run_command,
    new_shell,
    store_in,
)
from tests.mlflow_server import free_port
from tests.warm import PYTHON

pytestmark = pytest.mark.slow

EPOCHS = 2  # of the run that `distill_store` makes
VARIANTS = ("teacher", "scratch", "distilled")
EXPERIMENT = "0"
SCRIPT = (PYTHON, "-m", "projects.distill")
EPS = float(np.finfo("float32").eps)

Curves = dict[str, dict[int, float]]


@pytest.fixture
def client(distill_store: Recorded, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """Reads the store of the run; so do MLflow's functions that take no client."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", distill_store.uri)
    return MlflowClient()


@pytest.fixture
def runs(client: MlflowClient) -> dict[str, Run]:
    """By name; the run of `mlflow run`, to which MLflow gave a name, is `parent`."""
    return runs_by_name(client)


@pytest.fixture
def models(client: MlflowClient) -> dict[str, LoggedModel]:
    return {model.name: model for model in client.search_logged_models([EXPERIMENT])}


@pytest.fixture(scope="module")
def images() -> Data:
    return load("digits", seed=0)


@pytest.fixture
def batch_sizes(runs: dict[str, Run], images: Data) -> list[int]:
    """Of one epoch; all are full but the last."""
    size = int(runs["parent"].data.params["batch_size"])
    full, rest = divmod(len(images.x_train), size)
    return [size] * full + [rest] * (rest > 0)


@pytest.fixture
def steps_per_epoch(batch_sizes: list[int]) -> int:
    return len(batch_sizes)


def runs_by_name(client: MlflowClient) -> dict[str, Run]:
    found = client.search_runs([EXPERIMENT])
    named = {
        run.info.run_name if "mlflow.parentRunId" in run.data.tags else "parent": run
        for run in found
    }
    assert len(named) == len(found), "two runs of one name"
    return named


def statuses(folder: Path) -> dict[str, str]:
    runs = runs_by_name(MlflowClient(store_in(folder)))
    return {name: run.info.status for name, run in runs.items()}


def final(run: Run) -> dict[str, float]:
    return {key: value for key, value in run.data.metrics.items() if key.startswith("final/")}


# What one run leaves.


def test_mlflow_run_succeeds_and_every_run_of_it_is_finished(
    distill_store: Recorded, runs: dict[str, Run]
) -> None:
    assert distill_store.run.returncode == 0, distill_store.run.stderr
    assert set(runs) == {"parent", *VARIANTS}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert all(run.info.end_time >= run.info.start_time for run in runs.values())


def test_the_parent_is_the_run_of_mlflow_run(runs: dict[str, Run]) -> None:
    parent = runs["parent"]

    assert parent.data.tags["mlflow.source.type"] == "PROJECT"
    assert parent.data.tags["mlflow.project.entryPoint"] == "distill"
    assert parent.data.tags["mlflow.project.backend"] == "local"
    assert {runs[name].data.tags["mlflow.parentRunId"] for name in VARIANTS} == {parent.info.run_id}


def test_progress_says_which_phase_of_how_many(distill_store: Recorded) -> None:
    phases = re.findall(r"^\[\d/\d\] .*$", distill_store.run.stdout, re.MULTILINE)

    assert phases == ["[1/3] teacher", "[2/3] scratch", "[3/3] distilled"]
    epochs = re.findall(r"^Epoch \d+/\d+$", distill_store.run.stdout, re.MULTILINE)
    assert epochs == [f"Epoch {number}/{EPOCHS}" for number in range(1, EPOCHS + 1)] * 3


def test_the_three_runs_have_the_same_metric_keys(runs: dict[str, Run]) -> None:
    keys = {name: set(runs[name].data.metrics) for name in VARIANTS}

    assert keys["distilled"] - keys["scratch"] == {
        f"{split}/{part}_loss" for split in ("train", "val") for part in ("student", "distillation")
    }
    beside = ("agreement", "difference", "difference_max")
    assert keys["scratch"] - keys["teacher"] == {f"final/{key}" for key in beside}
    assert keys["teacher"] < keys["scratch"] < keys["distilled"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_curves_of_steps_have_every_step(
    runs: dict[str, Run],
    curves: Callable[[str], Curves],
    steps_per_epoch: int,
    variant: str,
) -> None:
    found = curves(runs[variant].info.run_id)
    every_step = list(range(1, EPOCHS * steps_per_epoch + 1))

    for key in ("batch/loss", "gradient/norm", "optimizer/learning_rate"):
        assert sorted(found[key]) == every_step, key
        assert np.isfinite(list(found[key].values())).all(), key
    assert min(found["gradient/norm"].values()) > 0
    assert set(found["optimizer/learning_rate"].values()) == {float(np.float32(1e-3))}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_curves_of_epochs_stand_where_the_epoch_ended(
    runs: dict[str, Run],
    curves: Callable[[str], Curves],
    steps_per_epoch: int,
    variant: str,
) -> None:
    found = curves(runs[variant].info.run_id)
    ends = [steps_per_epoch * epoch for epoch in range(1, EPOCHS + 1)]
    of_epochs = {key for key in found if key.startswith(("train/", "val/"))}

    assert of_epochs >= {
        *("train/loss", "train/accuracy", "val/loss", "val/accuracy"),
        *("train/epoch", "train/examples_per_second", "train/step_ms"),
    }
    for key in of_epochs:
        assert sorted(found[key]) == ends, key
    assert [found["train/epoch"][end] for end in ends] == list(range(1, EPOCHS + 1))
    assert found["train/loss"][ends[-1]] < found["train/loss"][ends[0]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_losses_of_an_epochs_batches_average_to_its_train_loss(
    runs: dict[str, Run],
    curves: Callable[[str], Curves],
    batch_sizes: list[int],
    variant: str,
) -> None:
    found = curves(runs[variant].info.run_id)
    steps = len(batch_sizes)

    for end, loss in found["train/loss"].items():
        losses = [found["batch/loss"][step] for step in range(end - steps + 1, end + 1)]
        # Keras sums in float32: a product and a sum for each batch.
        tolerance = 2 * steps * EPS
        assert loss == pytest.approx(np.average(losses, weights=batch_sizes), rel=tolerance)


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_distilled_loss_is_the_mixture_of_its_two_parts(
    runs: dict[str, Run], curves: Callable[[str], Curves], steps_per_epoch: int, split: str
) -> None:
    found = curves(runs["distilled"].info.run_id)
    alpha = float(runs["distilled"].data.params["alpha"])

    assert alpha == 0.5
    for step, loss in found[f"{split}/loss"].items():
        student = found[f"{split}/student_loss"][step]
        distillation = found[f"{split}/distillation_loss"][step]
        assert distillation > 0
        # Three running float32 means, a product and a sum for each batch.
        tolerance = 3 * 2 * steps_per_epoch * EPS
        expected = (1 - alpha) * student + alpha * distillation
        assert loss == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("name", ["parent", *VARIANTS])
def test_the_final_values_are_logged_once_at_step_0(
    runs: dict[str, Run], curves: Callable[[str], Curves], name: str
) -> None:
    found = curves(runs[name].info.run_id)
    values = {key: list(points) for key, points in found.items() if key.startswith("final/")}

    assert set(values) >= {
        *("final/accuracy", "final/parameters", "final/sparsity"),
        *("final/size_bytes", "final/gzip_bytes", "final/latency_ms_p50", "final/latency_ms_p95"),
    }
    assert all(steps == [0] for steps in values.values())


def test_the_students_are_alike_and_smaller_than_the_teacher(runs: dict[str, Run]) -> None:
    teacher, scratch, distilled = (final(runs[name]) for name in VARIANTS)

    assert scratch["final/parameters"] == distilled["final/parameters"]
    for key in ("final/parameters", "final/size_bytes", "final/gzip_bytes"):
        assert scratch[key] < teacher[key]
        assert distilled[key] < teacher[key]


def test_students_of_one_architecture_have_one_size(runs: dict[str, Run]) -> None:
    scratch, distilled = (final(runs[name]) for name in ("scratch", "distilled"))

    assert scratch["final/size_bytes"] == distilled["final/size_bytes"]


def test_params_that_mlflow_run_has_logged_in_its_spelling_stay_and_are_no_conflict(
    runs: dict[str, Run],
) -> None:
    params = runs["parent"].data.params

    assert (params["epochs"], params["temperature"], params["lr"]) == ("2", "3", "1e-3")
    assert set(params) == {
        *("data", "epochs", "batch_size", "lr", "temperature", "alpha", "quantize", "seed"),
    }
    assert [tag for run in runs.values() for tag in run.data.tags if tag.startswith("param.")] == []


def test_the_params_that_were_given_are_those_of_the_trainings(runs: dict[str, Run]) -> None:
    for name in VARIANTS:
        params = runs[name].data.params
        assert int(params["fit.epochs"]) == EPOCHS
        assert params["optimizer.class"] == "Adam"
        assert float(params["optimizer.learning_rate"]) == 1e-3
    distilled = runs["distilled"].data.params
    assert (float(distilled["temperature"]), float(distilled["alpha"])) == (3.0, 0.5)


def test_the_runs_say_what_made_them(runs: dict[str, Run]) -> None:
    assert runs["parent"].data.tags["technique"] == "distill"
    for name in VARIANTS:
        assert {"tensorflow", "keras", "dtype_policy"} <= set(runs[name].data.tags)


def test_the_dataset_is_an_input_of_the_parent(runs: dict[str, Run], images: Data) -> None:
    (dataset_input,) = runs["parent"].inputs.dataset_inputs

    assert dataset_input.dataset.name == "digits"
    assert dataset_input.dataset.digest == images.digest


def test_the_distilled_student_descends_from_the_teacher(
    runs: dict[str, Run], models: dict[str, LoggedModel]
) -> None:
    teacher = models["teacher"].model_id

    assert runs["distilled"].data.tags["parent_model_id"] == teacher
    assert models["distilled"].tags["parent_model_id"] == teacher
    assert "parent_model_id" not in models["scratch"].tags | models["teacher"].tags


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_finished_model_is_a_complete_logged_model(
    runs: dict[str, Run], models: dict[str, LoggedModel], images: Data, variant: str
) -> None:
    assert set(models) == set(VARIANTS)
    model = models[variant]
    assert model.status == "READY"
    assert model.source_run_id == runs[variant].info.run_id

    info = get_model_info(model.model_uri)
    (inputs,), (outputs,) = info.signature.inputs.inputs, info.signature.outputs.inputs
    assert (inputs.type, inputs.shape) == (np.dtype("float32"), (-1, *images.input_shape))
    assert (outputs.type, outputs.shape) == (np.dtype("float32"), (-1, images.classes))

    folder = Path(mlflow.artifacts.download_artifacts(model.model_uri))
    requirements = (folder / "requirements.txt").read_text().split()
    assert [line.partition("==")[0] for line in requirements] == [
        *("mlflow", "tensorflow", "keras", "numpy")
    ]
    assert all("==" in line for line in requirements)
    example = Model.load(folder).load_input_example(str(folder))
    assert len(example) > 0
    np.testing.assert_array_equal(example, images.x_test[: len(example)])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_final_values_are_linked_to_model_and_dataset(
    client: MlflowClient,
    runs: dict[str, Run],
    models: dict[str, LoggedModel],
    images: Data,
    variant: str,
) -> None:
    metrics = client.get_logged_model(models[variant].model_id).metrics

    assert {metric.key: metric.value for metric in metrics} == final(runs[variant])
    assert {(metric.dataset_name, metric.dataset_digest) for metric in metrics} == {
        ("digits", images.digest)
    }
    assert {(metric.run_id, metric.step) for metric in metrics} == {(runs[variant].info.run_id, 0)}


def test_the_parent_carries_the_winners_values(runs: dict[str, Run]) -> None:
    winner = runs["parent"].data.tags["winner"]
    score = {name: runs[name].data.metrics["val/accuracy"] for name in ("scratch", "distilled")}

    assert score[winner] == max(score.values())
    ours = final(runs["parent"])
    assert {key: ours[key] for key in ours if "/claim/" not in key} == final(runs[winner])


def test_the_parents_table_compares_the_three(client: MlflowClient, runs: dict[str, Run]) -> None:
    table = mlflow.load_table("comparison.json", run_ids=[runs["parent"].info.run_id])
    table = table.set_index("variant")

    assert list(table.index) == list(VARIANTS)
    assert set(table.columns) == set(final(runs["distilled"]))
    for name in VARIANTS:
        row = table.loc[name].dropna().to_dict()
        assert row == pytest.approx(final(runs[name]), rel=0, abs=1e-10)  # JSON with 10 decimals


def test_the_parents_figure_has_a_line_for_each_run(
    client: MlflowClient, runs: dict[str, Run], tmp_path: Path
) -> None:
    path = client.download_artifacts(
        runs["parent"].info.run_id, "learning_curves.png", str(tmp_path)
    )
    pixels = matplotlib.image.imread(path)[..., :3]

    for color in ("C0", "C1", "C2"):  # matplotlib's first three
        # Half a step of an 8-bit channel, and float32.
        drawn = np.isclose(pixels, to_rgb(color), rtol=0, atol=0.5 / 255 + EPS).all(axis=-1)
        assert drawn.sum() > 100, color


def test_the_description_begins_with_the_result(
    distill_store: Recorded, runs: dict[str, Run]
) -> None:
    result = runs["parent"].data.tags["mlflow.note.content"].splitlines()[0]
    accuracy = {name: f"{runs[name].data.metrics['final/accuracy']:.1%}" for name in VARIANTS}
    agreement = {
        name: f"{runs[name].data.metrics['final/agreement']:.1%}"
        for name in ("scratch", "distilled")
    }

    assert re.findall(r"[\d.]+%", result) == [
        *(accuracy["distilled"], accuracy["scratch"], accuracy["teacher"]),
        *(agreement["distilled"], agreement["scratch"]),
    ]
    assert f"\n{result}\n" in distill_store.run.stdout


def test_the_claims_are_of_the_finished_models(runs: dict[str, Run]) -> None:
    accuracy = {name: runs[name].data.metrics["final/accuracy"] for name in VARIANTS}
    metrics = runs["parent"].data.metrics

    kept = accuracy["distilled"] / accuracy["teacher"]
    assert metrics["final/claim/accuracy_kept"] == pytest.approx(kept, rel=0, abs=1e-12)
    gain = accuracy["distilled"] - accuracy["scratch"]
    assert metrics["final/claim/accuracy_gain"] == pytest.approx(gain, rel=0, abs=1e-12)
    assert runs["parent"].data.tags["claims"].split(":")[0] in ("hold", "missed")


def test_mlflow_records_the_machine_on_the_parent_alone(
    client: MlflowClient, runs: dict[str, Run]
) -> None:
    # `distill_store` has MLflow sample each second instead of each 10, its default.
    training = runs["distilled"].info.end_time - runs["teacher"].info.start_time
    assert training > 2000, "too short for a sample"
    samples = client.get_metric_history(
        runs["parent"].info.run_id, "system/cpu_utilization_percentage"
    )

    assert samples
    assert not [
        key for name in VARIANTS for key in runs[name].data.metrics if key.startswith("system/")
    ]


def test_the_models_load_in_a_fresh_process_and_score_what_the_record_says(
    distill_store: Recorded,
    runs: dict[str, Run],
    models: dict[str, LoggedModel],
    images: Data,
    tmp_path: Path,
) -> None:
    script = (
        "import sys, mlflow, numpy as np\n"
        "for model_id in sys.argv[1:]:\n"
        "    model = mlflow.pyfunc.load_model(f'models:/{model_id}')\n"
        "    np.save(model_id, model.predict(np.load('x.npy')))\n"
        "print('mlflow_keras_adv.flavors.keras' in sys.modules)\n"
    )
    ids = {name: models[name].model_id for name in VARIANTS}
    np.save(tmp_path / "x.npy", images.x_test)
    done = subprocess.run(
        [PYTHON, "-c", script, *ids.values()],
        cwd=tmp_path,
        env=new_shell(MLFLOW_TRACKING_URI=distill_store.uri),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == "False\n"  # a model needs Keras and MLflow only
    chosen = {name: np.load(tmp_path / f"{ids[name]}.npy").argmax(axis=-1) for name in VARIANTS}
    assert len(images.y_test) == 450
    ulp = float(np.spacing(np.float32(1)))
    for name in VARIANTS:
        recorded = runs[name].data.metrics
        accuracy = np.mean(chosen[name] == images.y_test)
        assert recorded["final/accuracy"] == pytest.approx(accuracy, rel=0, abs=ulp)
        if name != "teacher":
            agreement = np.mean(chosen[name] == chosen["teacher"])
            assert recorded["final/agreement"] == pytest.approx(agreement, rel=0, abs=ulp)


def test_the_student_is_quantized_if_asked(experiment: str) -> None:
    distill.main(epochs=1, quantize=True)

    client = MlflowClient()
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    student, file = (runs[name].data.metrics for name in ("distilled", "distilled_int8"))
    assert file["final/size_bytes"] < student["final/size_bytes"] / 2
    models = {model.name: model for model in client.search_logged_models([experiment])}
    parent = models["distilled_int8"].tags["parent_model_id"]
    assert parent == models["distilled"].model_id


# Bad input.


# What TensorFlow's C++ writes to stderr, whatever its log level.
TENSORFLOW_LOG = re.compile(r"[IWE]\d{4} |WARNING: All log messages before absl")


def complaint(said: str) -> str:
    """The one line that a script which refuses to run says."""
    lines = [line for line in said.splitlines() if not TENSORFLOW_LOG.match(line)]
    assert len(lines) == 1, said
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Calls the script in a folder of its own, where it refuses to run; what it says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            entry_point.run(distill.main, arguments)
        assert exit_.value.code not in (0, None)
        printed, said = capfd.readouterr()
        assert printed == ""
        assert not (tmp_path / "mlflow.db").exists()
        return complaint(said)

    return call


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("epochs", "abc", "valid integer"),
        ("epochs", "0", "greater than 0"),
        ("temperature", "0", "greater than 0"),
        ("alpha", "2", "less than or equal to 1"),
        ("data", "keras:minst", "keras:mnist"),
        ("data", "missing.npz", "No such file"),
    ],
)
def test_a_bad_value_is_one_clear_line_and_no_run(
    refused: Callable[..., str], option: str, value: str, expected: str
) -> None:
    line = refused(f"--{option}", value)

    assert value in line
    assert expected in line


def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "x_train": random.random((100, 8, 8), dtype=np.float32),
        "y_train": np.arange(100) % 10,
        "x_test": random.random((20, 8, 8), dtype=np.float32),
        "y_test": np.arange(20) % 10,
    }


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"x_train": np.zeros((100, 64), "float32")}, r"x_train has the shape \(100, 64\)"),
        ({"x_train": np.zeros((100, 8, 8), "int64")}, r"x_train has the dtype int64"),
        ({"y_test": np.full(20, 99)}, r"y_test holds label 99"),
    ],
    ids=["shape", "dtype", "label"],
)
def test_a_file_that_holds_something_else_is_one_clear_line_and_no_run(
    refused: Callable[..., str], tmp_path: Path, changed: dict[str, np.ndarray], expected: str
) -> None:
    file = tmp_path / "images.npz"
    np.savez(file, **arrays() | changed)

    line = refused("--data", str(file))

    assert "images.npz" in line
    assert re.search(expected, line)


def test_a_corrupt_file_is_one_clear_line_and_no_run(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    file = tmp_path / "images.npz"
    np.savez(file, **arrays())
    content = bytearray(file.read_bytes())
    middle = len(content) // 2  # inside x_train, whose checksum no longer fits
    content[middle : middle + 100] = bytes(100)
    file.write_bytes(content)

    line = refused("--data", str(file))

    assert str(file) in line
    assert "cannot be read" in line


def call(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in a new shell."""
    return subprocess.run(
        command,
        cwd=folder,
        env=new_shell(**variables),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    copy_project(tmp_path)
    # Root writes anywhere, by a capability that a child can do without.
    prefix = ("setpriv", "--bounding-set=-dac_override") if os.geteuid() == 0 else ()
    tmp_path.chmod(0o555)
    try:
        done = call(tmp_path, *prefix, sys.executable, *SCRIPT[1:])
    finally:
        tmp_path.chmod(0o755)

    assert done.returncode == 1
    assert f"{tmp_path}/mlflow.db cannot be written" in complaint(done.stderr)
    assert done.stdout == ""
    assert not (tmp_path / "mlflow.db").exists()


def test_without_a_server_it_is_recorded_here_and_carried_over_later(tmp_path: Path) -> None:
    copy_project(tmp_path)
    variables = {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}",
        "MLFLOW_KERAS_ADV_HOME": str(tmp_path / "home"),
    }

    done = call(tmp_path, *SCRIPT, "--epochs", "1", **variables)

    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "cannot be used now" in line)
    assert f"The tracking server {variables['MLFLOW_TRACKING_URI']} cannot be used now" in line
    assert "`mlflow-keras-adv sync` delivers it" in line

    home = {"MLFLOW_KERAS_ADV_HOME": variables["MLFLOW_KERAS_ADV_HOME"]}
    carried = call(tmp_path, "mlflow-keras-adv", "sync", "--to", store_in(tmp_path), **home)

    assert carried.returncode == 0, carried.stdout + carried.stderr
    assert statuses(tmp_path) == dict.fromkeys(["parent", *VARIANTS], "FINISHED")
    client = MlflowClient(store_in(tmp_path))
    models = client.search_logged_models([EXPERIMENT])
    assert {model.name for model in models} == set(VARIANTS)


def test_bad_input_of_mlflow_run_leaves_its_run_failed(tmp_path: Path) -> None:
    done = mlflow_run(copy_project(tmp_path), "epochs=abc")

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("error: epochs: got 'abc', which should be a valid integer") == 1
    assert "Traceback" not in done.stderr
    assert statuses(tmp_path) == {"parent": "FAILED"}


# Being stopped.


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Lets children see Ctrl-C: a shell starts background jobs, such as this one, deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def stop_in_training(command: list[str], folder: Path, number: signal.Signals) -> int:
    """Signals the process group, as a terminal does, in the third epoch; returns the exit code."""
    with (folder / "stderr.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *command[1:]],
            cwd=folder,
            env=new_shell(PATH=cold_path()),  # a process from tests.warm is in no group of ours
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        assert any("Epoch 3/" in line for line in process.stdout), (
            folder / "stderr.log"
        ).read_text()
        os.killpg(process.pid, number)
        process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_in_mid_training_every_open_run_is_killed(
    tmp_path: Path, interruptible: None, number: signal.Signals, code: int
) -> None:
    command = [*SCRIPT, "--epochs", "100000"]
    copy_project(tmp_path)

    assert stop_in_training(command, tmp_path, number) == code

    assert statuses(tmp_path) == {"parent": "KILLED", "teacher": "KILLED"}
    client = MlflowClient(store_in(tmp_path))
    teacher = runs_by_name(client)["teacher"]
    assert teacher.data.metrics["train/epoch"] == 2
    assert "Traceback" not in (tmp_path / "stderr.log").read_text()
    assert client.search_logged_models([EXPERIMENT]) == []


def test_after_ctrl_c_the_next_run_in_the_folder_succeeds_and_adds_to_the_store(
    tmp_path: Path, interruptible: None
) -> None:
    copy_project(tmp_path)
    command = mlflow_run_command("epochs=100000")

    assert stop_in_training(command, tmp_path, signal.SIGINT) != 0

    # `mlflow run` sets FAILED even after the script has set KILLED: it means to leave a terminated
    # run alone, but compares the name of the status with numbers (RunStatus.is_terminated).
    interrupted = statuses(tmp_path)
    assert interrupted.pop("parent") in ("FAILED", "KILLED")
    assert interrupted == {"teacher": "KILLED"}

    done = call(tmp_path, *SCRIPT, "--epochs=1", "--lr=1E-3", "--alpha=.25")

    assert done.returncode == 0, done.stderr
    runs = MlflowClient(store_in(tmp_path)).search_runs([EXPERIMENT])
    finished = {run.info.run_name: run for run in runs if run.info.status == "FINISHED"}
    assert (len(runs), len(finished)) == (2 + 4, 4)
    assert set(VARIANTS) < set(finished)
    assert float(finished["distilled"].data.params["alpha"]) == 0.25


# With an environment of its own.


@pytest.mark.timeout(3600)  # what it installs has to be downloaded where uv's cache is empty
def test_with_uv_the_code_that_runs_is_the_folders(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    copy_project(folder)
    environments = tmp_path / "environments"

    def run() -> subprocess.CompletedProcess[str]:
        return mlflow_run(folder, "epochs=1", env_manager="uv", MLFLOW_ENV_ROOT=str(environments))

    done = run()
    assert done.returncode == 0, done.stderr
    assert "[1/3] teacher\n" in done.stdout
    (environment,) = (path for path in environments.iterdir() if path.is_dir())
    assert f"source {environment}/bin/activate" in done.stderr

    (folder / "projects" / "distill.py").write_text("print('The edited script')")
    done = run()

    assert done.returncode == 0, done.stderr
    assert "The edited script" in done.stdout
    assert [path for path in environments.iterdir() if path.is_dir()] == [environment]
    client = MlflowClient(store_in(folder))
    assert {run.info.status for run in client.search_runs([EXPERIMENT])} == {"FINISHED"}

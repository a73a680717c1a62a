"""One training on several machines: each value beside that of a plain loop in one process."""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from tests.machines.net import BATCH, EPOCHS, RATE, STEPS, Truth, truth
from tests.machines.page import Row, rows_of
from tests.machines.processes import Ended, alone, with_servers, workers

pytestmark = pytest.mark.slow

# A sum over replicas is taken in another order, and steps build on each other.
ROUNDING = 100 * float(np.finfo(np.float32).eps)
ALL = list(range(1, EPOCHS * STEPS + 1))
ENDS = [STEPS, 2 * STEPS]

Curves = dict[str, dict[int, float]]


def read(run_id: str) -> Curves:
    """Every metric of a run: value by step, by key. No step may have been logged twice."""
    client = mlflow.MlflowClient()
    found: Curves = {}
    for key in client.get_run(run_id).data.metrics:
        history = client.get_metric_history(run_id, key)
        found[key] = {point.step: point.value for point in history}
        assert len(found[key]) == len(history), f"{key} holds a step twice"
    return found


def new_run() -> str:
    """A run that a launcher has opened, as `mlflow run` does."""
    return str(mlflow.MlflowClient().create_run("0", run_name="launched").info.run_id)


def shared(run_id: str) -> dict[str, str]:
    return {"MLFLOW_RUN_ID": run_id}


def curve(values: list[float]) -> Any:
    return pytest.approx(dict(zip(ALL, values, strict=True)), rel=ROUNDING)


def epochs_of(losses: list[float]) -> Any:
    means = np.mean(np.reshape(losses, (EPOCHS, STEPS)), axis=1)
    return pytest.approx(dict(zip(ENDS, means, strict=True)), rel=ROUNDING)


def assert_trained(ended: Ended, expected: Truth) -> None:
    for own, weight in zip(ended.found["weights"], expected.weights, strict=True):
        np.testing.assert_allclose(own, weight.numpy(), rtol=ROUNDING, atol=ROUNDING)


def assert_values(found: Curves, ended: Ended, expected: Truth) -> None:
    """Holds a run against the truth: each step, each layer, each epoch, and what was trained."""
    assert_trained(ended, expected)
    assert found["batch/loss"] == curve(expected.losses)
    assert found["gradient/norm"] == curve(expected.norms)
    assert found["optimizer/learning_rate"] == curve([RATE] * len(ALL))
    assert found["train/loss"] == epochs_of(expected.losses)
    for step in ENDS:
        seconds = STEPS * found["train/step_ms"][step] / 1000
        pace = found["train/examples_per_second"][step]
        assert pace * seconds == pytest.approx(STEPS * BATCH)
    norms = layer_norms(ended.found["run_id"])
    for layer, values in expected.layers.items():
        name = next(each for each in norms.columns if each.endswith(layer))
        np.testing.assert_allclose(norms[name].loc[ALL], values, rtol=ROUNDING)


def layer_norms(run_id: str) -> pd.DataFrame:
    path = mlflow.artifacts.download_artifacts(f"runs:/{run_id}/gradients/layers.parquet")
    return pd.read_parquet(path).pivot(index="step", columns="layer", values="gradient_norm")


CALLBACKS = ["norms", "checkpoints", "stalls", "predictions"]


@pytest.fixture(scope="module")
def together(
    tmp_path_factory: pytest.TempPathFactory, store: str, warm_python: None
) -> tuple[str, list[Ended]]:
    """Two workers in one run, both observed, the whole inside of the scope."""
    run_id = new_run()
    settings = {"inside": True, "callbacks": CALLBACKS, "models": True}
    folder = tmp_path_factory.mktemp("together")
    return run_id, workers(folder, settings, settings, environment=shared(run_id)).ended()


def test_the_values_are_those_of_the_global_batch(together: tuple[str, list[Ended]]) -> None:
    run_id, ended = together
    expected, found = truth(), read(run_id)
    for each in ended:
        assert each.found["losses"] == pytest.approx(expected.losses, rel=ROUNDING)
        assert_trained(each, expected)
    assert_values(found, ended[0], expected)
    assert found["val/loss"] == {STEPS: 1.0, 2 * STEPS: 0.9}


def test_one_training_is_one_run(together: tuple[str, list[Ended]]) -> None:
    run_id, ended = together
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert [each.found["run_id"] for each in ended] == [run_id, run_id]
    assert len(run.outputs.model_outputs) == 1
    points = sum(len(client.get_metric_history(run_id, key)) for key in run.data.metrics)
    assert int(run.data.tags["points.produced"]) == points
    assert run.data.tags["points.pending"] == run.data.tags["points.refused"] == "0"
    assert run.data.params["seed"] == "0"
    assert not [key for key in run.data.tags if key.endswith(".changed")]
    assert len(client.list_artifacts(run_id, "checkpoints")) > 1
    assert "rank 1 of a training (TF_CONFIG)" in ended[1].output
    assert "Run " in ended[0].output
    assert "mlflow ui" not in ended[1].output


def test_what_each_rank_has(
    together: tuple[str, list[Ended]], request: pytest.FixtureRequest
) -> None:
    run_id, ended = together
    expected, found, tape = truth(), read(run_id), "a tape in one process"
    rows = rows_of(request.config)
    for key, values in (
        ("batch/loss", expected.losses),
        ("gradient/norm", expected.norms),
        ("optimizer/learning_rate", [RATE] * len(ALL)),
    ):
        assert found[key] == curve(values)
        rows.append(Row(f"`{key}`", tape, [f"equal at {len(values)} steps", "not on record"]))
    assert found["train/loss"] == epochs_of(expected.losses)
    rows.append(Row("`train/loss`", "their mean", [f"equal at {EPOCHS} epochs", "not on record"]))
    for each in ended:
        assert each.found["losses"] == pytest.approx(expected.losses, rel=ROUNDING)
        means = list(epochs_of(expected.losses).expected.values())
        assert each.found["history"]["loss"] == pytest.approx(means, rel=ROUNDING)
        assert_trained(each, expected)
    rows.append(Row("epoch values that callbacks see", "their mean", ["equal"] * 2))
    rows.append(Row("weights in the end", tape, ["equal"] * 2))
    run = mlflow.MlflowClient().get_run(run_id)
    assert len(run.outputs.model_outputs) == 1
    rows.append(Row("params, tags, files, the model", "", ["once", "not on record"]))


def test_all_ranks_know_the_same_of_their_epochs(together: tuple[str, list[Ended]]) -> None:
    _, (chief, other) = together
    assert chief.found["history"] == other.found["history"]
    assert chief.found["collectives"] == other.found["collectives"]


@pytest.fixture(scope="module")
def chief_only(
    tmp_path_factory: pytest.TempPathFactory, store: str, warm_python: None
) -> list[Ended]:
    """Two workers, of which the second has the bare loop."""
    settings = {"record": "reduced"}
    folder = tmp_path_factory.mktemp("chief")
    return workers(folder, settings, {**settings, "observed": False}).ended()


def test_a_loop_on_the_chief_alone_adds_no_collective_operation(chief_only: list[Ended]) -> None:
    chief, other = chief_only
    expected, found = truth(), read(chief.found["run_id"])
    assert chief.found["collectives"] == other.found["collectives"]
    assert_trained(chief, expected)
    assert found["batch/loss"] == curve(expected.losses)
    assert found["gradient/norm"] == curve(expected.norms)
    assert found["train/loss"] == epochs_of(expected.losses)


def test_three_workers_with_several_steps_a_call_and_clipping(
    tmp_path: Path, store: str, warm_python: None
) -> None:
    """What is applied is the sum of clipped shares; of a sum before that, nobody computes one."""
    settings = {"way": "run", "clipnorm": 0.1, "record": "reduced"}
    ended = workers(tmp_path, *[settings] * 3).ended()
    expected, found = truth(replicas=3, clipnorm=0.1), read(ended[0].found["run_id"])
    for each in ended:
        assert_trained(each, expected)
        for name, values in each.found["history"].items():  # TensorFlow adds three in any order
            assert values == pytest.approx(ended[0].found["history"][name], rel=ROUNDING)
    assert found["batch/loss"] == curve(expected.losses)
    assert found["gradient/norm_clipped"] == curve(expected.norms)
    assert "gradient/norm" not in found
    assert "whose sum before that is computed nowhere" in ended[0].output
    assert found["train/loss"] == epochs_of(expected.losses)
    assert list(found["train/examples_per_second"]) == ENDS


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
@pytest.mark.parametrize("way", ["batches", "fit"])
def test_two_replicas_in_one_process(
    library: str, way: str, tmp_path: Path, store: str, warm_python: None
) -> None:
    settings = {"strategy": "mirrored", "library": library, "way": way, "inside": True}
    callbacks = CALLBACKS if library == "keras" else ["norms"]
    ended = alone(tmp_path, {**settings, "callbacks": callbacks})
    expected, found = truth(), read(ended.found["run_id"])
    assert_values(found, ended, expected)


@pytest.mark.parametrize("way", ["batches", "fit"])
def test_tf_keras_on_two_workers(way: str, tmp_path: Path, store: str, warm_python: None) -> None:
    settings = {"library": "tf_keras", "way": way, "callbacks": ["norms"]}
    ended = workers(tmp_path, settings, settings).ended()
    expected, found = truth(), read(ended[0].found["run_id"])
    assert_values(found, ended[0], expected)
    assert ended[0].found["history"] == ended[1].found["history"]


@pytest.mark.parametrize("advances", [True, False])
def test_servers_of_parameters_have_values_of_epochs(
    advances: bool, tmp_path: Path, store: str, warm_python: None
) -> None:
    """Their workers take steps at moments of their own: what is in them cannot be seen."""
    ended = with_servers(tmp_path, {"advances": advances})
    found, history = read(ended.found["run_id"]), ended.found["history"]
    assert list(found["train/loss"].values()) == pytest.approx(history["loss"])
    assert list(found["train/epoch"].values()) == [1.0, 2.0]
    ends = list(found["train/loss"])
    if advances:
        assert ends == ENDS
    else:  # two workers may both count one update
        assert 0 < ends[0] <= STEPS
        assert ends[0] < ends[1] <= 2 * STEPS
    assert ("train/examples_per_second" in found) == advances
    assert not [key for key in found if not key.startswith("train/")]
    assert ended.output.count("at moments of their own") == 1
    assert ended.output.count("loop.record cannot reach") == 1

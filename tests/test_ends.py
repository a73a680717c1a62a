"""Every training has an end that somebody owns: who opened the run, times how the training ends.

Each cell is a process with a time limit. It ends with the exit code that plain Keras has; its run
has the status that is true, and a point of `batch/loss` for each step that was made.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import pytest
from mlflow import MlflowClient

from mlflow_keras_adv.tracking.sync import sync
from tests.ends_program import BATCHES, EPOCHS, IN_FIT, LAST, LOOPS

ROOT = Path(__file__).parent.parent
SECONDS = 120  # of one process, on a machine that has much to do
ALL = BATCHES * EPOCHS


@dataclass(frozen=True)
class End:
    """What is true of a training that ends so.

    Attributes:
        code: Exit code of the process.
        status: Of the run.
        error: What the run's tag `error` names; for a status that is FAILED.
        steps: Training steps that were made.
    """

    code: int
    status: str
    error: str = ""
    steps: int = LAST


ENDS = {
    "return": End(0, "FINISHED", steps=ALL),
    "step": End(1, "FAILED", "InvalidArgumentError", steps=LAST - 1),
    "batch": End(1, "FAILED", "RuntimeError: in a batch's hook"),
    "epoch": End(1, "FAILED", "RuntimeError: at an epoch's end", steps=BATCHES),
    "validation": End(1, "FAILED", "InvalidArgumentError", steps=BATCHES),
    "step_caught": End(0, "FAILED", "InvalidArgumentError", steps=LAST - 1),
    "batch_caught": End(0, "FAILED", "RuntimeError: in a batch's hook"),
    "interrupt": End(-2, "KILLED"),
    "interrupt_caught": End(0, "KILLED"),
    "terminate": End(143, "KILLED"),
    "exit": End(3, "FAILED", "SystemExit: 3"),
    "os_exit": End(3, "KILLED"),
    "again": End(0, "KILLED"),
}
GENERATORS = {
    "track": End(0, "FINISHED", steps=ALL),
    "with_start_run": End(0, "FINISHED", steps=ALL),
    "start_run": End(0, "FINISHED", steps=ALL),
    "track_loop": End(0, "FINISHED"),
    "loop": End(0, "FINISHED"),
}


class Nursery:
    """A process that has imported TensorFlow, and forks one for each cell."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.ends_program"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._answer() == "ready"

    def run(self, owner: str, end: str, folder: Path, **environment: str) -> int | None:
        """The exit code of a cell; None if it has not ended in time."""
        asked = {
            "owner": owner,
            "end": end,
            "environment": environment,
            "said": str(folder / "said"),
            "record": str(folder / "record"),
            "seconds": SECONDS,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        code = self._answer()
        assert code is None or isinstance(code, int)
        return code

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def _answer(self) -> object:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@pytest.fixture(scope="module")
def nurseries(store: str) -> Iterator["SimpleQueue[Nursery]"]:
    """Two, each to be taken and put back."""
    made, idle = [Nursery(), Nursery()], SimpleQueue[Nursery]()
    for nursery in made:
        idle.put(nursery)
    yield idle
    for nursery in made:
        nursery.close()


def steps_made(record: Path) -> list[int]:
    """How many steps each training of a process has made."""
    made: dict[int, int] = {}
    for line in record.read_text().splitlines():
        training, step = json.loads(line)
        made[training] = step
    return list(made.values())


def found_in(client: MlflowClient, experiment_id: str) -> list[tuple[str, int, str]]:
    """Status, number of losses and error of each run, the oldest first."""
    found = []
    runs = client.search_runs([experiment_id], order_by=["attributes.start_time ASC"])
    for run in runs:
        losses = client.get_metric_history(run.info.run_id, "batch/loss")
        steps = [point.step for point in losses]
        assert len(set(steps)) == len(steps), "a step is on record twice"
        found.append((run.info.status, len(steps), run.data.tags.get("error", "").split("\n")[0]))
    return found


def expected_of(owner: str, end: str) -> list[tuple[str, int, str]]:
    """What a cell leaves: status, number of losses and the beginning of the error, for each run."""
    true = GENERATORS[owner] if end == "generator" else ENDS[end]
    status, error = true.status, true.error
    if owner == "with_start_run" and status == "KILLED" and end != "os_exit":
        status = "FAILED"  # says MLflow, which ends it
    if owner == "with_start_run":
        error = ""
    if owner == "start_run" and end.endswith("_caught"):
        status, error = "FINISHED", ""  # the run was not the training's, and the program went on
    if end != "again":
        return [(status, true.steps, error)]
    if owner == "start_run":
        return [("FINISHED", true.steps + ALL, "")]
    return [(status, true.steps, error), ("FINISHED", ALL, "")]


def begin(
    nurseries: "SimpleQueue[Nursery]", client: MlflowClient, owner: str, end: str, folder: Path
) -> tuple[int | None, str]:
    """Runs a cell of the matrix: its exit code, and the experiment of its own."""
    folder.mkdir()
    experiment_id = client.create_experiment(str(folder), folder.as_uri())
    environment = {"MLFLOW_EXPERIMENT_ID": experiment_id}
    if owner == "mlflow_run":
        environment["MLFLOW_RUN_ID"] = client.create_run(experiment_id).info.run_id
    nursery = nurseries.get()
    try:
        return nursery.run(owner, end, folder, **environment), experiment_id
    finally:
        nurseries.put(nursery)


def differences(
    client: MlflowClient, owner: str, end: str, folder: Path, code: int | None, experiment_id: str
) -> list[str]:
    """What is not as it should be in a cell that has ended."""
    said = (folder / "said").read_text()
    true = GENERATORS[owner] if end == "generator" else ENDS[end]
    wrong = []
    if code != true.code:
        wrong.append(f"exit code {code}, not {true.code}")
    expected = expected_of(owner, end)
    made = steps_made(folder / "record")
    if sum(made) != sum(steps for _, steps, _ in expected):
        wrong.append(f"{made} steps were made, of {expected}")
    if end == "os_exit":
        if [status for status, *_ in found_in(client, experiment_id)] != ["RUNNING"]:
            wrong.append("the run is not RUNNING before the sync")
        sync()
    found = found_in(client, experiment_id)
    if len(found) != len(expected):
        wrong.append(f"{len(found)} runs")
    for (status, steps, error), (is_status, is_steps, is_error) in zip(
        expected, found, strict=False
    ):
        if status != is_status:
            wrong.append(f"status {is_status}, not {status}")
        if steps != is_steps:
            wrong.append(f"{is_steps} losses of {steps} steps")
        if not is_error.startswith(error) or bool(error) != bool(is_error):
            wrong.append(f"error {is_error!r}, not {error!r}")
    for complaint in ("Exception ignored", "Error in atexit"):
        if complaint in said:
            wrong.append(said[said.index(complaint) :][:300])
    return [f"{owner} x {end}: {'; '.join(wrong)}"] if wrong else []


@pytest.mark.slow
@pytest.mark.parametrize("owner", [*IN_FIT, *LOOPS])
def test_whoever_owns_it_every_end_is_on_record(
    client: MlflowClient, nurseries: "SimpleQueue[Nursery]", tmp_path: Path, owner: str
) -> None:
    ends = [*ENDS, *(["generator"] if owner in GENERATORS else [])]
    only = os.environ.get("MLFLOW_KERAS_ADV_TEST_ENDS", "")
    ends = [end for end in ends if not only or end in only.split(",")]
    with ThreadPoolExecutor(2) as pool:
        begun = [pool.submit(begin, nurseries, client, owner, end, tmp_path / end) for end in ends]
    wrong: list[str] = []
    for end, cell in zip(ends, begun, strict=True):
        wrong += differences(client, owner, end, tmp_path / end, *cell.result())
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.slow
def test_the_exit_codes_are_those_of_plain_keras(
    nurseries: "SimpleQueue[Nursery]", tmp_path: Path
) -> None:
    """But for SIGTERM, which we make an exception of: 143 is what a shell says of it."""
    nursery, codes = nurseries.get(), {}
    for end in ENDS:
        folder = tmp_path / end
        folder.mkdir()
        codes[end] = nursery.run("plain", end, folder)
    nurseries.put(nursery)
    expected = {end: true.code for end, true in ENDS.items()}
    assert codes == expected | {"terminate": -15}

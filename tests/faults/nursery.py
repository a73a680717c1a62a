"""Producers as processes, what they have said, and what the store holds of it."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from mlflow_keras_adv.tracking.outbox import HAND_OVER_SECONDS
from mlflow_keras_adv.tracking.store import normalized_uri
from tests.faults.producer import EPOCH_MS, ROWS, Plan, loss, norm

ROOT = Path(__file__).parent.parent.parent


class Nursery:
    """A process that has imported MLflow, and forks producers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.producer"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._answer() == "ready"

    def start(self, uri: str, steps: int, *, home: Path | None = None, **plan: Any) -> "Producer":
        """A producer at work, with journals of its own if `home` does not say otherwise."""
        self._count += 1
        place = self._folder / f"producer-{self._count}"
        place.mkdir()
        made = Plan(uri, str(home or place / "home"), str(place / "record"), place.name, steps)
        made = Plan(**{**asdict(made), **plan})
        pid = self._ask({**asdict(made), "log": str(place / "log")})
        return Producer(self, pid, made, place)

    def poll(self, pid: int) -> int | None:
        """Exit code of a producer; None as long as it works."""
        return self._ask({"poll": pid})

    def close(self) -> None:
        """Ends it; producers go on."""
        with self._process:  # closes its pipes, and waits for it
            pass

    def _ask(self, question: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the nursery has ended"
        return json.loads(line)


@dataclass(frozen=True)
class Producer:
    """One producer.

    Attributes:
        nursery: Its parent.
        pid: Its process id.
        plan: What it does.
        place: Its folder.
    """

    nursery: Nursery
    pid: int
    plan: Plan
    place: Path

    @property
    def record(self) -> list[dict[str, Any]]:
        """What it has noted; a last line that is torn is left out."""
        path = Path(self.plan.record)
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    @property
    def said(self) -> str:
        """What it has logged and printed."""
        return (self.place / "log").read_text()

    @property
    def home(self) -> Path:
        """Folder of its journals and offline runs."""
        return Path(self.plan.home)

    @property
    def run_id(self) -> str:
        """The run that it was given on entering `track`; empty if it has not come so far."""
        return next((line["run_id"] for line in self.record if "run_id" in line), "")

    @property
    def last_step(self) -> int:
        """The last step of which everything was handed in."""
        return max((line["step"] for line in self.record if "step" in line), default=0)

    @property
    def certain_step(self) -> int:
        """The last step after which everything so far stood in the journal: it did not wait."""
        lines = (line for line in self.record if line.get("waited", 1) < HAND_OVER_SECONDS)
        return max((line["step"] for line in lines), default=0)

    @property
    def longest_wait(self) -> float:
        """Seconds that a step waited for the logging at most."""
        return max((line["waited"] for line in self.record if "waited" in line), default=0.0)

    @property
    def leaving(self) -> float:
        """Seconds that leaving `track` took."""
        return next(line["left"] for line in self.record if "left" in line)

    @property
    def receipt(self) -> dict[str, Any]:
        """The receipt, as `track` was left."""
        return next(line["receipt"] for line in self.record if "receipt" in line)

    def wait(self, seconds: float = 120) -> int:
        """Waits for its end, and returns the exit code."""
        deadline = time.monotonic() + seconds
        while (code := self.nursery.poll(self.pid)) is None:
            assert time.monotonic() < deadline, f"it did not end:\n{self.said}"
            time.sleep(0.02)
        return code

    def wait_for_step(self, step: int, seconds: float = 60) -> None:
        """Waits until it has come so far."""
        deadline = time.monotonic() + seconds
        while True:
            ended = self.nursery.poll(self.pid) is not None  # asked first: it may go on to its end
            if self.last_step >= step:
                return
            assert not ended, self.said
            assert time.monotonic() < deadline, f"it is at {self.last_step}:\n{self.said}"
            time.sleep(0.01)

    def kill(self, number: int) -> None:
        """Sends it a signal."""
        os.kill(self.pid, number)


@dataclass(frozen=True)
class Holding:
    """What a store holds of a producer's run.

    Attributes:
        run_id: The run.
        status: Its status.
        tags: Its tags.
        params: Its params.
        points: Values by key and step.
        duplicates: Points that stand there once more.
        wrong: Points with another value or time than was handed in.
    """

    run_id: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    points: Mapping[str, Mapping[int, float]]
    duplicates: int
    wrong: int
    files: frozenset[str] = field(default_factory=frozenset)

    @property
    def delivered(self) -> int:
        """Points, each counted once."""
        return sum(len(steps) for steps in self.points.values())


def held(uri: str, producer: Producer) -> Holding:
    """Reads back the one run of a producer: by its name, since offline it has another id."""
    client = MlflowClient(normalized_uri(uri))
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(everywhere, f"run_name = '{producer.plan.name}'")
    points: dict[str, dict[int, float]] = {}
    duplicates = wrong = 0
    for key in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, key)
        times = Counter(point.step for point in history)
        duplicates += sum(times.values()) - len(times)
        points[key] = {point.step: point.value for point in history}
        for point in history:
            if key == "loss":
                wrong += point.value != loss(point.step)
            elif key == "norm":
                expected = (norm(point.step), EPOCH_MS + point.step)
                wrong += (point.value, point.timestamp) != expected
    files = frozenset(
        Path(file.path).name for file in client.list_artifacts(run.info.run_id, "notes")
    )
    data = run.data
    return Holding(
        run.info.run_id, run.info.status, data.tags, data.params, points, duplicates, wrong, files
    )


def expected(steps: int) -> dict[str, set[int]]:
    """Steps by key, after so many."""
    return {"loss": set(range(1, steps + 1)), "norm": set(range(1, steps // ROWS * ROWS + 1))}

"""Runs each entry point of MLproject for one epoch, in the environment that is active.

It is the one that README's first command made, and the folder its working folder. Two at a time;
those about runs and models of others come last. Needs what the package needs, and nothing else.
Each is a process, forked from one that has imported Keras and MLflow, which takes seconds.
"""

import contextlib
import multiprocessing
import runpy
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

# Beside `epochs`, for a short run; what an entry point has no word for is left out.
SHORT = {
    "benchmark": {"what": "loop", "steps": 5},
    "cluster": {"clusters": 16, "cluster_epochs": 1},
    "compress": {"prune_epochs": 1, "tune_epochs": 1},
    "initializers": {"depth": 2},
    "optimizers": {"seeds": 1},
    "promote": {"limit": 0.1},
    "prune": {"sparsities": 0.8},
    "quantize": {"schemes": "int8,qat", "qat_epochs": 1},
    "segmentation": {"examples": 32},
    "sequence": {"examples": 64},
    "tune": {"max_trials": 2, "max_epochs": 2, "seeds": 2},
}
BY_MLFLOW = {"main"}
# Nothing to do for distill: it is README's first command.
OF_OTHERS = ("compare", "promote")

ENTRY_POINTS = yaml.safe_load(Path("MLproject").read_text())["entry_points"]

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["keras", "mlflow"])


def given(name: str) -> dict[str, object]:
    """What an entry point is told for a short run."""
    known = ENTRY_POINTS[name]["parameters"]
    return ({"epochs": 1} if "epochs" in known else {}) | SHORT.get(name, {})


def as_module(name: str, output: str) -> None:
    """What `python -m projects.<name>` does, with all that it says in a file."""
    sys.argv = [name, *(f"--{key.replace('_', '-')}={value}" for key, value in given(name).items())]
    sys.path.insert(0, str(Path.cwd()))
    with (
        Path(output).open("w") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        runpy.run_module(f"projects.{name}", run_name="__main__", alter_sys=True)


def by_mlflow(name: str, output: str) -> int:
    """`mlflow run . -e <name>`; its exit code."""
    settings = [text for key, value in given(name).items() for text in ("-P", f"{key}={value}")]
    command = ["mlflow", "run", ".", "-e", name, "--env-manager", "local", *settings]
    with Path(output).open("w") as file:
        return subprocess.run(command, stdout=file, stderr=file, check=False).returncode


def run(name: str) -> bool:
    """Whether it succeeded; if not, what it said is shown."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        if name in BY_MLFLOW:
            code = by_mlflow(name, str(output))
        else:
            process = FORKS.Process(target=as_module, args=(name, str(output)))
            process.start()
            process.join()
            code = process.exitcode
        took = f"{time.monotonic() - begun:.0f} s"
        if code != 0:
            print(output.read_text() if output.exists() else "", flush=True)
            took = f"exit code {code} after {took}"
    print(f"{name}: {took}", flush=True)
    return code == 0


def main() -> None:
    """Ends with exit code 1 if one fails."""
    # Two that find a new store at the same moment both make its tables, and one of them fails.
    subprocess.run(["mlflow", "experiments", "search"], check=True, capture_output=True)
    first = [name for name in ENTRY_POINTS if name not in (*OF_OTHERS, "distill")]
    with ThreadPoolExecutor(2) as threads:
        succeeded = list(threads.map(run, first)) + list(threads.map(run, OF_OTHERS))
    if not all(succeeded):
        sys.exit(1)


if __name__ == "__main__":
    main()

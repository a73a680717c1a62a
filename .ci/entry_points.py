"""Runs each entry point of MLproject for one epoch, in the environment that is active.

It is the one that README's first command made, and the folder its working folder. Two at a time;
those about runs and models of others come last. Needs what the package needs, and nothing else.
"""

import subprocess
import sys
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


def command(name: str) -> list[str]:
    """As somebody would type it."""
    known = ENTRY_POINTS[name]["parameters"]
    given = {"epochs": 1} if "epochs" in known else {}
    given |= SHORT.get(name, {})
    if name in BY_MLFLOW:
        settings = [text for key, value in given.items() for text in ("-P", f"{key}={value}")]
        return ["mlflow", "run", ".", "-e", name, "--env-manager", "local", *settings]
    settings = [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
    return [sys.executable, "-m", f"projects.{name}", *settings]


def run(name: str) -> bool:
    """Whether it succeeded; if not, what it said is shown."""
    begun = time.monotonic()
    done = subprocess.run(
        command(name), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    took = f"{time.monotonic() - begun:.0f} s"
    if done.returncode != 0:
        print(done.stdout, flush=True)
        took = f"exit code {done.returncode} after {took}"
    print(f"{name}: {took}", flush=True)
    return done.returncode == 0


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

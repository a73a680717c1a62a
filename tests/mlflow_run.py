"""The project as a user runs it: a copy of the working tree, a new shell, the default store."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.warm import BIN, PYTHON

ROOT = Path(__file__).parent.parent
PROJECT = ("mlflow_keras_adv", "projects", "MLproject", "conda.yaml", "pyproject.toml")


@dataclass(frozen=True)
class Recorded:
    """A folder in which the project has run once, and what that printed."""

    folder: Path
    run: subprocess.CompletedProcess[str]

    @property
    def uri(self) -> str:
        """The address of the store in it."""
        return store_in(self.folder)


def store_in(folder: Path) -> str:
    """The store that MLflow makes in a folder where none is chosen."""
    return f"sqlite:///{folder / 'mlflow.db'}"


def copy_project(folder: Path) -> Path:
    """Copies what `mlflow run` needs of the working tree, without the stores of earlier runs."""
    for name in PROJECT:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, folder)
    return folder


def new_shell(**variables: str) -> dict[str, str]:
    """An environment in which no store is chosen, no run is open and nothing extra importable."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MLFLOW_") and name != "PYTHONPATH"
    }
    path = os.pathsep.join([str(BIN), cold_path()])
    return kept | {"PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"} | variables


def cold_path() -> str:
    """A PATH by which `python` is a new interpreter, and uv is found, also without `activate`."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def mlflow_run_command(*parameters: str, env_manager: str = "local") -> list[str]:
    """`mlflow run . -e distill` with parameters such as `epochs=2`."""
    command = [PYTHON, "-m", "mlflow", "run", ".", "-e", "distill"]
    command += ["--env-manager", env_manager]
    for parameter in parameters:
        command += ["-P", parameter]
    return command


def mlflow_run(
    folder: Path, *parameters: str, env_manager: str = "local", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs it in a copy of the project, with these environment variables."""
    return subprocess.run(
        mlflow_run_command(*parameters, env_manager=env_manager),
        cwd=folder,
        env=new_shell(**variables),
        capture_output=True,
        text=True,
        check=False,
    )

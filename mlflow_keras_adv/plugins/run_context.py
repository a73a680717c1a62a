"""Tags that every run started here gets: versions, dtype policy, devices, uncommitted changes.

MLflow imports this module and makes a `KerasRunContext` while `import mlflow` runs, in each program
of an environment in which this package is installed. So it imports neither TensorFlow nor Keras,
and reads what they know only where the program has imported them itself.

The tags are those of `mlflow.start_run` and of new LoggedModels, not of runs that
`MlflowClient.create_run` makes. Where a training is recorded by `MlflowLogger`, its `dtype_policy`
is that of the model, and takes the place of the global one.
"""

import hashlib
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mlflow.tracking.context.abstract_context import RunContextProvider

_PACKAGES = ("mlflow-keras-adv", "mlflow", "tensorflow", "keras")
# A run is not to wait for a huge repository.
_GIT_SECONDS = 2.0
# The same text for the same changes, whatever the user's git shows them like.
_DIFF = (
    *("git", "--no-optional-locks", "-c", "core.fsmonitor=false", "diff", "HEAD", "--full-index"),
    *("--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/"),
    *("--unified=3", "--diff-algorithm=myers", "--ignore-submodules=dirty"),
)


class KerasRunContext(RunContextProvider):
    """MLflow's hook for tags of new runs.

    The tags are:

    - `mlflow_keras_adv`, `mlflow`, `tensorflow`, `keras`: versions, as installed;
    - `dtype_policy`: Keras' global one, if Keras has been imported;
    - `devices`: those that TensorFlow sees, such as `CPU:0, GPU:0`, if it has been imported. It is
      not initialized by that: its threads and visible devices can still be set;
    - `git_diff_sha256`: of the uncommitted changes of tracked files, in the repository of the
      running script, or `clean`: beside MLflow's own `mlflow.source.git.commit`. Read once in a
      process, as that is; absent without git or where git takes longer than two seconds.
    """

    def __init__(self) -> None:
        self._fixed: dict[str, str] | None = None

    def in_context(self) -> bool:
        """Always: the versions are there without TensorFlow too."""
        return True

    def tags(self) -> dict[str, str]:
        """The tags; what cannot be known has none."""
        if self._fixed is None:
            self._fixed = {**_versions(), **_changes()}
        return {**self._fixed, **_dtype_policy(), **_devices()}


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package.replace("-", "_")] = version(package)
        except PackageNotFoundError:  # as tensorflow is where tensorflow-cpu is installed
            continue
    return found


def _dtype_policy() -> dict[str, str]:
    try:
        return {"dtype_policy": sys.modules["keras"].config.dtype_policy().name}
    except (KeyError, AttributeError):  # not imported, or only in part yet
        return {}


def _devices() -> dict[str, str]:
    try:
        devices = sys.modules["tensorflow"].config.list_physical_devices()
    except (KeyError, AttributeError):
        return {}
    return {"devices": ", ".join(each.name.removeprefix("/physical_device:") for each in devices)}


def _changes() -> dict[str, str]:
    script = Path(sys.argv[0]) if sys.argv and sys.argv[0] else None
    if script is None or not script.is_file():  # a console: MLflow gives no commit either
        return {}
    try:
        shown = subprocess.run(
            _DIFF,
            cwd=script.resolve().parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    if shown.returncode:
        return {}  # no repository, no commit yet, or one of somebody else
    return {
        "git_diff_sha256": hashlib.sha256(shown.stdout).hexdigest() if shown.stdout else "clean"
    }

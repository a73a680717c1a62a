"""Where this user's journals and offline runs are kept."""

import os
from pathlib import Path


def state_folder() -> Path:
    """MLFLOW_KERAS_ADV_HOME, else `mlflow_keras_adv` where the user's programs keep their state."""
    if chosen := os.environ.get("MLFLOW_KERAS_ADV_HOME"):
        return Path(chosen).absolute()
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state).absolute() / "mlflow_keras_adv"


def journals_folder() -> Path:
    """Where each run that is on its way to its store has a folder."""
    return state_folder() / "journals"


def offline_uri() -> str:
    """The store for runs whose own cannot be reached."""
    return f"sqlite:///{state_folder() / 'offline.db'}"


def offline_artifacts() -> Path:
    """Where the artifacts of offline runs are."""
    return state_folder() / "offline-artifacts"

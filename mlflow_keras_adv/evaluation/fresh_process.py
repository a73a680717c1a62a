"""Predictions of a logged model in a new process, which has none of the program's modules."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import mlflow
import numpy as np

from mlflow_keras_adv.errors import UserError

_PROGRAM = """
import json, sys, mlflow, numpy
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
names, samples = json.loads(sys.argv[3]), list(numpy.load("samples.npz").values())
numpy.save("answer.npy", model.predict(dict(zip(names, samples)) if names else samples[0]))
"""


def predict_in_new_process(model_uri: str, x: np.ndarray | Mapping[str, np.ndarray]) -> np.ndarray:
    """Loads a model with MLflow in a new process, in an empty folder, and predicts with it.

    `mlflow.models.predict(env_manager="local")` predicts in this process, whose classes and modules
    the model would find.

    Args:
        model_uri: A logged or registered model with one output.
        x: Samples, numbers or texts, shape [n, ...]; for a model with several inputs a dict of
            these by name.

    Returns:
        The predictions, shape [n, ...].

    Raises:
        UserError: The model cannot be loaded there, or fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        names = list(x) if isinstance(x, Mapping) else []
        arrays = list(x.values()) if isinstance(x, Mapping) else [x]
        np.savez(Path(folder, "samples.npz"), *(_plain(each) for each in arrays))
        command = [sys.executable, "-c", _PROGRAM]
        command += [mlflow.get_tracking_uri(), model_uri, json.dumps(names)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{model_uri} does not answer in a process of its own: {reason}")
        return np.asarray(np.load(Path(folder, "answer.npy")))


def _plain(values: np.ndarray) -> np.ndarray:
    """An array without Python objects, which NumPy would pickle."""
    values = np.asarray(values)
    return values.astype(str) if values.dtype == object else values

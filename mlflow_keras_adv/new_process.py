"""What a logged model answers where nothing is loaded yet: the test of whether it travels."""

import subprocess
import sys
import tempfile
from pathlib import Path

import mlflow
import numpy as np

from mlflow_keras_adv.errors import UserError

_PROGRAM = """
import sys, mlflow, numpy
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
numpy.save("answer.npy", model.predict(numpy.load("samples.npy")))
"""


def predict_in_new_process(model_uri: str, x: np.ndarray) -> np.ndarray:
    """Loads a model by MLflow in a new process, in an empty folder, and has it predict.

    `mlflow.models.predict(env_manager="local")` answers in this process, whose classes and modules
    the model would find.

    Args:
        model_uri: A logged or registered model with one input and one output.
        x: Samples, shape [n, ...].

    Returns:
        The answers, shape [n, ...].

    Raises:
        UserError: The model cannot be loaded there, or does not answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "samples.npy"), x)
        command = [sys.executable, "-c", _PROGRAM, mlflow.get_tracking_uri(), model_uri]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{model_uri} does not answer in a process of its own: {reason}")
        return np.asarray(np.load(Path(folder, "answer.npy")))

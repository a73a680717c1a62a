"""Fits: the end of a `fit` is known, whatever was imported first and whoever made the callback."""

import subprocess
import sys
from typing import Any

import keras
import mlflow
import numpy as np
import pytest

from mlflow_keras_adv.training.fits import know_fits
from mlflow_keras_adv.training.trainings import end_all, training_around, training_of

X, Y = np.ones((16, 2), np.float32), np.ones((16, 1), np.float32)

# The first fit of a process, whose callback is made in the call itself.
PROGRAM = """
{imports}
import numpy as np

class Breaks(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            raise ValueError("broken")

model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
try:
    model.fit(np.ones((16, 2)), np.ones((16, 1)), batch_size=4, verbose=0,
              callbacks=[{logger}(), Breaks()])
except ValueError:
    pass
assert not {{"train_step", "compute_loss", "compile", "save"}} & set(vars(model)), vars(model)
assert not {{"apply", "_clip_gradients"}} & set(vars(model.optimizer))
"""
IMPORTS = {
    "ours first": ("import mlflow_keras_adv as mka\nimport keras", "mka.MlflowLogger"),
    "keras first": ("import keras\nimport mlflow_keras_adv as mka", "mka.MlflowLogger"),
    "mlflow first": (
        "import mlflow\nimport keras\nimport mlflow_keras_adv as mka",
        "mka.MlflowLogger",
    ),
    "by name": ("import keras\nfrom mlflow_keras_adv import MlflowLogger", "MlflowLogger"),
    "by tensorflow": (
        "import mlflow_keras_adv as mka\nimport tensorflow as tf\nkeras = tf.keras",
        "mka.MlflowLogger",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("order", IMPORTS)
def test_the_first_fit_of_a_process_has_an_end(
    order: str, experiment: str, client: mlflow.MlflowClient
) -> None:
    imports, logger = IMPORTS[order]
    program = PROGRAM.format(imports=imports, logger=logger)
    command = [sys.executable, "-c", program]
    shown = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == "ValueError: broken"
    assert len(client.get_metric_history(run.info.run_id, "batch/loss")) == 3


def test_an_import_of_keras_is_as_without_us() -> None:
    program = (
        "import sys, mlflow_keras_adv, keras\n"
        "from importlib.machinery import SourceFileLoader as plain\n"
        "assert type(keras.__loader__) is type(keras.__spec__.loader) is plain\n"
        "assert keras.Model.fit.__module__.startswith('keras')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_a_fit_without_ours_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    known: list[Any] = []

    class Looks(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            known.append(training_of(self.model))

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    before = keras.Model.fit
    know_fits()
    assert keras.Model.fit is before
    model.fit(X, Y, verbose=0, callbacks=[Looks()])
    assert known == [None]
    with pytest.raises(TypeError, match="no_such_argument"):
        model.fit(X, Y, no_such_argument=1)


def test_nothing_is_under_way_between_trainings() -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    assert training_of(model) is None
    assert training_around(model) is None
    end_all(None)

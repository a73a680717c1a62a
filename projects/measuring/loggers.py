"""The loggers that are compared, each as its documentation says, each with a run of its own."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras
import mlflow
from mlflow.keras import MlflowCallback

import mlflow_keras_adv as mka
from mlflow_keras_adv.extras import MissingExtraError, extra, missing
from projects.measuring.stores import scratch_run

# Enters a run; gives callbacks, and what waits until they have delivered everything.
Logger = Callable[[], AbstractContextManager[tuple[list[Any], Callable[[], object]]]]


@contextmanager
def bare() -> Iterator[tuple[list[Any], Callable[[], object]]]:
    """No logger."""
    yield [], lambda: None


@contextmanager
def ours() -> Iterator[tuple[list[Any], Callable[[], object]]]:
    """Loss, gradient norms and rate of each step."""
    with scratch_run(), mka.track() as run:
        yield [mka.MlflowLogger()], run.flush


@contextmanager
def ours_layers() -> Iterator[tuple[list[Any], Callable[[], object]]]:
    """The same and the norms of each layer."""
    with scratch_run(), mka.track() as run:
        yield [mka.MlflowLogger(), mka.LayerNorms()], run.flush


@contextmanager
def mlflow_epoch() -> Iterator[tuple[list[Any], Callable[[], object]]]:
    """MLflow's callback as it comes: metrics of each epoch."""
    with scratch_run():
        yield [MlflowCallback()], mlflow.flush_async_logging


@contextmanager
def mlflow_step() -> Iterator[tuple[list[Any], Callable[[], object]]]:
    """MLflow's callback at each step."""
    with scratch_run():
        callback = MlflowCallback(log_every_epoch=False, log_every_n_steps=1)
        yield [callback], mlflow.flush_async_logging


@contextmanager
def wandb_step() -> Iterator[tuple[list[Any], Callable[[], object]]]:
    """Weights & Biases at each step, offline; its own process writes, and cannot be waited for."""
    with extra("benchmark"):
        import wandb
        from wandb.integration.keras import WandbMetricsLogger

    settings = wandb.Settings(console="off", silent=True, x_disable_stats=True)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        wandb.init(mode="offline", dir=folder, settings=settings),
    ):
        yield [WandbMetricsLogger(log_freq="batch")], lambda: None


@contextmanager
def tensorboard_step() -> Iterator[tuple[list[Any], Callable[[], object]]]:
    """TensorBoard at each step; it writes files from the training thread."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield [keras.callbacks.TensorBoard(folder, update_freq="batch")], lambda: None


def loggers() -> dict[str, Logger]:
    """Those that are installed, by name; it is said what is not."""
    found: dict[str, Logger] = {"ours": ours, "ours_layers": ours_layers}
    found |= {"mlflow_epoch": mlflow_epoch, "mlflow_step": mlflow_step}
    if lacking := missing("benchmark"):
        print(f"Left out: {MissingExtraError('benchmark', *lacking)}")
    else:
        found["wandb_step"] = wandb_step
    return found | {"tensorboard_step": tensorboard_step}

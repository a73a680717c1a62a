"""The store side: which run to write to, how it ends, and what writes to it."""

from mlflow_keras_adv.tracking.run import Run, current_run, track

__all__ = ["Run", "current_run", "track"]

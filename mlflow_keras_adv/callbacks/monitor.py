"""Monitor: a value of the epoch's logs, and whether it is better lower or higher."""

import logging
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np

from mlflow_keras_adv.metrics.directions import mode_of_name

_logger = logging.getLogger(__name__)


class Monitor:
    """A value of the epoch's logs.

    Args:
        name: Its name in the logs.
        mode: "min" or "max": whether lower or higher is better; "auto": as Keras' metric of that
            name; a loss is minimized.

    Raises:
        ValueError: If `mode` is none of these.
    """

    def __init__(self, name: str, mode: str) -> None:
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"Received mode={mode!r}; expected 'auto', 'min' or 'max'.")
        self.name = name
        self.mode = mode
        self._said = False

    def read(self, logs: Mapping[str, Any], model: Any) -> float | None:
        """The value of this epoch, NaN included.

        None, said once, where the logs have none of that name, or no single number, or it cannot
        be told which way is better.
        """
        if self.name not in logs:
            as_logs = self.name.removeprefix("train/").replace("/", "_")
            near = [as_logs] if as_logs in logs else get_close_matches(self.name, logs, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            self._say(f"the epoch's logs hold {', '.join(logs) or 'nothing'}{hint}")
            return None
        value = number_in(logs[self.name])
        if value is None:
            self._say(f"it is {_described(logs[self.name])}, and a single number is needed")
            return None
        if self.mode == "auto":
            self.mode = _direction(self.name, model)
        if self.mode == "auto":
            self._say("pass mode='max' or mode='min', whichever is better")
            return None
        return value

    def improves(self, value: float, on: float, *, by: float = 0.0) -> bool:
        """Whether `value` is better than `on` by more than `by`; NaN never is."""
        return value < on - by if self.mode == "min" else value > on + by

    def _say(self, reason: str) -> None:
        if not self._said:
            self._said = True
            _logger.warning("%r cannot be watched: %s.", self.name, reason)


def number_in(value: Any) -> float | None:
    """The number that a value is, NaN and infinity included; None if it is none, or several."""
    try:
        array = np.asarray(value)
        return float(array.item()) if array.size == 1 else None
    except Exception:  # whatever a value that is not ours answers
        return None


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is None and isinstance(value, list | tuple):
        shape = [len(value)]
    return f"of shape {list(shape)}" if shape else repr(value)[:80]


def _direction(name: str, model: Any) -> str:
    """Says "min", "max", or "auto" where neither the model nor Keras knows such a metric."""
    metrics = getattr(model, "metrics", [])
    own = mode_of_name(name, metrics)  # a name may begin with `val_` by itself
    return own or mode_of_name(name.removeprefix("val_"), metrics) or "auto"

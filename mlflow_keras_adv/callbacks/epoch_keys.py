"""EpochKeys: maps the logs of an epoch to metric keys."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from mlflow_keras_adv.callbacks.monitor import number_in
from mlflow_keras_adv.tracking.values import entries_of

_logger = logging.getLogger(__name__)

# The pace, which the logger measures itself: the user's metrics of these names get a suffix.
PACE = frozenset(
    f"train/{name}"
    for name in ("epoch", "step_ms", "examples_per_second", "input_wait_share", "callback_ms")
)
# Where callbacks of Keras, and of tf_keras, put the learning rate of the epoch.
_RATES = ("learning_rate", "lr")


class EpochKeys:
    """Tells validation from training, the user's metrics from what callbacks put into the logs.

    `fit` adds what validation found as `val_<name>`; but a metric of the training may have such a
    name itself, as that of an output `val_arousal` has. So what the steps and the validation say
    is noted as it comes.

    Args:
        model: The model that is trained.
        class_names: What to call the entries of a metric with a value for each class.
    """

    def __init__(self, model: Any, class_names: Sequence[str] = ()) -> None:
        self._model = model
        self._class_names = class_names
        self._in_steps: set[str] = set()
        self._in_validation: set[str] = set()
        self._rates: dict[str, float] = {}
        self._said: set[str] = set()

    def see_steps(self, columns: Mapping[str, "np.ma.MaskedArray[Any, Any]"]) -> None:
        """Notes what steps have recorded, by metric key."""
        for key, column in columns.items():
            if key.startswith("batch/"):
                self._in_steps.add(key.removeprefix("batch/"))
            elif key.endswith("learning_rate") and (rates := np.ma.compressed(column)).size:
                self._rates[key] = float(rates[-1])

    def see_validation(self, logs: Mapping[str, Any]) -> None:
        """Notes what a validation has found: the logs of `on_test_end`."""
        self._in_validation |= {str(name) for name in logs}

    def values(self, logs: Mapping[str, Any]) -> dict[str, Any]:
        """Selects the values to record from the logs of `on_epoch_end`, by metric key.

        None of the keys is one of `PACE`. What is no number is handed on, to be refused by name.
        """
        named = {str(name): value for name, value in logs.items()}
        training = self._training_names(named)
        keys = {
            name: self._key(name, training)
            for name, value in named.items()
            if name not in _RATES or name in training or not self._is_on_record(value)
        }
        taken = PACE | set(keys.values())
        found: dict[str, Any] = {}
        for name, key in keys.items():
            try:
                entries = list(entries_of(key, named[name], self._class_names))
            except Exception:  # no number: its refusal says so
                entries = [(key, named[name])]
            for plain, number in entries:
                entry = plain
                if plain != key or key in PACE:
                    while entry in taken:
                        entry += ".2"
                    taken |= {entry}
                if entry != plain:
                    self._say(f"{name!r} is recorded as {entry}, since there is {plain} already.")
                found[entry] = number
        self._in_validation.clear()
        return found

    def _key(self, name: str, training: Iterable[str]) -> str:
        inner = name.removeprefix("val_")
        if inner == name or (inner not in self._in_validation and name in training):
            return f"train/{name}"
        if name in self._in_validation:
            self._say(
                f"Training and validation both have a value named {name!r} in Keras' logs, where "
                f"the later takes the place of the first: val/{inner} is recorded, train/{name} "
                "is not."
            )
        return f"val/{inner}"

    def _training_names(self, logs: Iterable[str]) -> set[str]:
        """Names of the training's own values, as far as it matters which these are."""
        unclear = any(
            name in _RATES
            or (name.startswith("val_") and name.removeprefix("val_") not in self._in_validation)
            for name in logs
        )
        if not unclear:
            return set()
        try:
            return self._in_steps | {str(name) for name in self._model.get_metrics_result()}
        except Exception:  # a metric that has seen nothing, or a model of the user's own kind
            return self._in_steps

    def _is_on_record(self, value: Any) -> bool:
        """Whether it is the rate of the last update, or of the next one."""
        rate = number_in(value)
        known = list(self._rates.values())
        with suppress(Exception):  # an optimizer of the user's own kind
            known.append(float(self._model.optimizer.learning_rate))
        return rate is not None and any(np.float32(rate) == np.float32(each) for each in known)

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            _logger.warning(message)

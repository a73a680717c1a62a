"""Saves a finished model without optimizer and compile arguments."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import keras

from mlflow_keras_adv.compat.keras import layers_of
from mlflow_keras_adv.replacing import Replacement

_saving = threading.RLock()


def save_without_optimizer(model: keras.Model, path: str | Path) -> None:
    """Writes a model to a `.keras` file without optimizer state and compile arguments.

    Those of the models inside it are left out, too. The model itself stays compiled, with the same
    optimizer. Another thread may train it meanwhile, but not save it.

    Args:
        model: A built model, compiled or not.
        path: Where to write; ends in `.keras`.

    Raises:
        ValueError: `model` has no weights yet.
    """
    if not model.built:
        raise ValueError(
            f"model {model.name!r} has not been built: it has no weights to save. "
            "Call it on a batch of data first."
        )
    # Keras asks every model for its compile arguments and every optimizer for its variables. For
    # one save they answer nothing; what training reads is not touched. (Keras' own
    # `include_optimizer=False` is for HDF5 only.) The model itself stands in by a shallow copy
    # without an optimizer, of which not even an empty group is left in the file: it weighs the same
    # compiled or not.
    model = _without_attribute(model, "optimizer")
    with _saving, ExitStack() as answers:
        for layer in layers_of(model):  # at any depth; the public `layers` is one level
            if isinstance(layer, keras.Model):
                answers.enter_context(Replacement(layer, "get_compile_config", _nothing))
            for optimizer in _optimizers_of(layer):
                answers.enter_context(Replacement(optimizer, "save_own_variables", _nothing))
        keras.saving.save_model(model, path)


def _without_attribute(instance: Any, name: str) -> Any:
    """A shallow copy; not by `copy.copy`, which in Keras saves and loads."""
    shadow = object.__new__(type(instance))
    vars(shadow).update({key: value for key, value in vars(instance).items() if key != name})
    return shadow


def _optimizers_of(owner: object) -> Iterator[keras.optimizers.Optimizer]:
    """Optimizers among the attributes of `owner`, and inside them: loss scaling wraps one."""
    for value in list(vars(owner).values()):
        if isinstance(value, dict):
            members = list(value.values())
        else:
            members = list(value) if isinstance(value, (list, tuple)) else [value]
        for member in members:
            if isinstance(member, keras.optimizers.Optimizer):
                yield member
                yield from _optimizers_of(member)


def _nothing(*_: object) -> None:
    return None

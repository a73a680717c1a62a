"""Restores the state that predicting changes: random seeds, and states of RNNs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from mlflow_keras_adv.compat.keras import layers_of


@contextmanager
def left_alone(model: Any) -> Iterator[None]:
    """Puts back what answering has moved in a model: seeds of its noise, states of its RNNs."""
    kept = [*model.non_trainable_variables, *_states_of(model)]
    found = [(variable, np.array(variable)) for variable in kept]
    try:
        yield
    finally:
        for variable, value in found:
            if not np.array_equal(np.array(variable), value, equal_nan=value.dtype.kind == "f"):
                variable.assign(value)


def _states_of(model: Any) -> list[Any]:
    """The states of RNNs between batches, which Keras does not count as variables."""
    return [
        state
        for layer in layers_of(model)  # at any depth; the public `layers` is one level
        if getattr(layer, "stateful", False)
        for state in keras.tree.flatten(getattr(layer, "states", None))
        if hasattr(state, "assign")
    ]

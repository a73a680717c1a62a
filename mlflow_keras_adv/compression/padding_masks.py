"""Passes padding masks around tfmot's wrappers, which drop them or give them to other layers."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from mlflow_keras_adv.compat.tfmot import (
    ClusterWeights,
    PruneLowMagnitude,
    QuantizeAnnotate,
    QuantizeLayer,
    QuantizeWrapper,
)
from mlflow_keras_adv.replacing import Replacement


@contextmanager
def masks_past_wrappers() -> Iterator[None]:
    """A wrapped layer has the mask that it has alone, and so does what comes behind it.

    tfmot copies models by their configurations, so that it is the classes that have to know it.
    """
    with ExitStack() as stack:
        for wrapper in (ClusterWeights, PruneLowMagnitude, QuantizeAnnotate, QuantizeWrapper):
            stack.enter_context(Replacement(wrapper, "call", _call_of(wrapper.call)))
            stack.enter_context(Replacement(wrapper, "compute_mask", _mask_behind))
        stack.enter_context(Replacement(QuantizeLayer, "compute_mask", _same_mask))
        yield


def _call_of(call: Callable[..., Any]) -> Callable[..., Any]:
    # Without functools.wraps: tf.function binds arguments by the signature of what is inside.
    def called(self: Any, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        if "mask" not in inspect.signature(self.layer.call).parameters:
            kwargs.pop("mask", None)
        return call(self, inputs, training=training, **kwargs)

    return called


def _mask_behind(self: Any, inputs: Any, mask: Any = None) -> Any:
    return self.layer.compute_mask(inputs, mask)


def _same_mask(self: Any, inputs: Any, mask: Any = None) -> Any:  # noqa: ARG001
    return mask  # it rounds numbers, and is none of the model's layers

"""Tells whether models give logits or probabilities, and which of them losses expect."""

import inspect
from collections.abc import Mapping
from typing import Any

import keras

from mlflow_keras_adv.compat.keras import maker_of

# Endings after which an output gives probabilities.
PROBABILITIES = ("softmax", "sigmoid")


def endings_of(model: Any) -> list[str | None]:
    """The "softmax" or "sigmoid" that each output ends in, in the order of `outputs`.

    Returns:
        "linear" where a layer ends without an activation, None for another ending; an empty list
        where the graph is not known, as of a subclassed model.
    """
    if isinstance(model, keras.Sequential):
        return [_name_of(model.layers[-1])] if model.layers else []
    makers = [maker_of(each) for each in getattr(model, "outputs", ())]
    if None in makers:
        return []
    return [_name_of(*maker) for maker in makers if maker is not None]


def probability_ending(model: keras.Model) -> str | None:
    """The softmax or sigmoid that a model ends in, where its graph is known."""
    sequential = isinstance(model, keras.Sequential)
    operations = model.layers if sequential else getattr(model, "operations", [])
    if not operations:
        return None
    last = operations[-1]
    if isinstance(last, keras.Model):
        return probability_ending(last)
    for function in (keras.activations.softmax, keras.activations.sigmoid):
        # keras.ops.softmax and keras.layers.Softmax are told by their class alone.
        is_class = type(last).__name__.lower() == function.__name__
        if is_class or getattr(last, "activation", None) is function:
            return f"{function.__name__} ({last.name!r})"
    return None


def _name_of(operation: Any, place: int = 0) -> str | None:
    if hasattr(operation, "layers") and hasattr(operation, "outputs"):  # a model inside
        inner = endings_of(operation)
        return inner[place] if place < len(inner) else None
    activation = getattr(getattr(operation, "activation", None), "__name__", "")
    names = {type(operation).__name__.lower(), activation}
    return next((name for name in ("softmax", "sigmoid", "linear") if name in names), None)


def takes_logits(loss: Any) -> bool | None:
    """Whether a loss takes logits; None of one that has no opinion, as a mean squared error."""
    function = keras.losses.get(loss)
    if isinstance(function, keras.losses.Loss):
        found = function.get_config().get("from_logits")
        return None if found is None else bool(found)
    parameter = inspect.signature(function).parameters.get("from_logits")
    return None if parameter is None else bool(parameter.default)


def require_losses_fit(losses: Mapping[str, Any], gives: Mapping[str, str | None]) -> None:
    """Refuses losses for the labels that take what the student gives for something else.

    Args:
        losses: By output: a name, a function or a loss.
        gives: By output what the student ends in, as of `endings_of`; unknown ones are logits.

    Raises:
        ValueError: There is no loss, or one of logits for probabilities, or the other way round.
    """
    example = "keras.losses.SparseCategoricalCrossentropy(from_logits=True)"
    if not any(loss is not None for loss in losses.values()):
        raise ValueError(f"compile received no loss; expected one for the labels, as {example}.")
    for output, loss in losses.items():
        wanted = None if loss is None else takes_logits(loss)
        ending = gives.get(output)
        if wanted is None or wanted == (ending not in PROBABILITIES):
            continue
        if wanted:
            raise ValueError(
                f"compile received loss={loss!r}, which expects logits (from_logits=True); the "
                f"student ends in a {ending}, so it gives probabilities. Leave its last "
                "activation out, or from_logits=True."
            )
        raise ValueError(
            f"compile received loss={loss!r}, which expects probabilities (from_logits=False); "
            f"the student gives logits. Pass an object such as {example}."
        )

"""Whether models give logits or probabilities, and which of them losses expect."""

import inspect
from typing import Any

import keras


def endings_of(model: Any) -> list[str | None]:
    """The "softmax" or "sigmoid" that each output ends in, in the order of `outputs`.

    Returns:
        None for another ending; an empty list where the graph is not known, as of a subclassed
        model.
    """
    if isinstance(model, keras.Sequential):
        return [_name_of(model.layers[-1])] if model.layers else []
    # Which operation a tensor comes from has no public name.
    histories = [getattr(each, "_keras_history", None) for each in getattr(model, "outputs", ())]
    if None in histories:
        return []
    return [_name_of(history[0], history[2]) for history in histories if history is not None]


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
    return next((name for name in ("softmax", "sigmoid") if name in names), None)


def require_loss_on_logits(loss: Any) -> None:
    """Refuses a loss that takes its predictions for probabilities.

    Args:
        loss: What `compile` received: a name, a function, a loss, or a nesting of them.

    Raises:
        ValueError: If there is none, or one with `from_logits=False`, as a name stands for.
    """
    example = "keras.losses.SparseCategoricalCrossentropy(from_logits=True)"
    if loss is None:
        raise ValueError(f"compile received no loss; expected one for the labels, as {example}.")
    for each in keras.tree.flatten(loss):
        function = keras.losses.get(each)
        if isinstance(function, keras.losses.Loss):
            from_logits = function.get_config().get("from_logits", True)
        else:
            parameter = inspect.signature(function).parameters.get("from_logits")
            from_logits = parameter is None or parameter.default
        if not from_logits:
            raise ValueError(
                f"compile received loss={each!r}, which expects probabilities (from_logits=False); "
                f"the student gives logits. Pass an object such as {example}."
            )

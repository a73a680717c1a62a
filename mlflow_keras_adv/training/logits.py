"""Whether models give logits, and losses expect them: softening needs both."""

import inspect
from typing import Any

import keras


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

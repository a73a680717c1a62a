"""Values per sample of losses and metrics that are means over samples, for paired tests."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mlflow_keras_adv.compat.keras import mask_of, metrics_by_output, wrapped_by
from mlflow_keras_adv.metrics.judge import Judge

# How far a mean over samples may be from the value that Keras computed in float32 and still be it.
_CLOSE = 1e-4

Array = np.ndarray[Any, Any]


class PerSample:
    """Collects them over batches.

    Args:
        judge: Whose metrics they are of.
        configured: What it was configured with.
        output_names: Names of the outputs, if there are several.
    """

    def __init__(
        self, judge: Judge, configured: Mapping[str, Any], output_names: Sequence[str]
    ) -> None:
        self._judge = judge
        self._loss = configured.get("loss")
        self._names = output_names
        self._parts: dict[str, list[tuple[Array, Array]]] = {}
        self._batches = 0

    def add(self, labels: Any, answers: Any, weight: Any) -> None:
        """Takes a batch: labels, what was answered, and sample weights or None."""
        self._batches += 1
        ours, theirs = self._by_output(answers), self._by_output(labels)
        weights = self._by_output(weight)
        for output, name, function in self._functions():
            answer, label = ours.get(output), theirs.get(output)
            if answer is None or label is None:
                continue
            weighed = weights.get(output, weights.get(""))
            try:
                values = np.asarray(function(tf.convert_to_tensor(label), answer), np.float64)
            except Exception:  # it wants another form; the mean that Keras computed is on record
                continue
            rows = int(tf.shape(answer)[0])
            if not values.ndim or len(values) != rows:
                continue
            mask = mask_of(answer)
            shown = _shown(values, mask, weighed).reshape(rows, -1)
            values = values.reshape(rows, -1)
            # A loss divides by how many there are, a metric by the weights.
            if name == "loss" and weighed is not None:
                values, shown = values * shown, np.ones_like(values)
            total = shown.sum(axis=1)
            means = (values * shown).sum(axis=1) / np.where(total > 0, total, 1)
            key = f"{output}/{name}" if output else name
            self._parts.setdefault(key, []).append((means, total))

    def joined(self, values: Mapping[str, float]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Numbers and their weights, float64 of shape [samples], of those that make up a value."""
        numbers, weights = {}, {}
        for key, parts in self._parts.items():
            if len(parts) != self._batches or key not in values:
                continue
            found, total = (np.concatenate(each) for each in zip(*parts, strict=True))
            if not total.sum() > 0:
                continue
            mean, value = float(np.average(found, weights=total)), values[key]
            if abs(mean - value) <= _CLOSE * max(1.0, abs(value)):
                numbers[key], weights[key] = found, total
        return numbers, weights

    def _by_output(self, nested: Any) -> dict[str, Any]:
        """By the name of each output; "" where there is one, or one for all."""
        if isinstance(nested, Mapping):
            return {str(key): each for key, each in nested.items()}
        if isinstance(nested, (list, tuple)):
            names = self._names if len(self._names) == len(nested) else range(len(nested))
            return {str(name): each for name, each in zip(names, nested, strict=True)}
        return {} if nested is None else {"": nested}

    def _functions(self) -> list[tuple[str, str, Callable[..., Any]]]:
        """Output, name and function of each, in which order Keras has them."""
        found: list[tuple[str, str, Callable[..., Any]]] = []
        losses = self._loss
        if isinstance(losses, (list, tuple)):
            losses = dict(zip(self._names, losses, strict=False))
        for output, loss in (losses if isinstance(losses, Mapping) else {"": losses}).items():
            if loss is not None and not keras.tree.is_nested(loss):
                known = keras.losses.get(loss)
                called = known.call if isinstance(known, keras.losses.Loss) else known
                found.append((str(output), "loss", called))
        for output, metric in metrics_by_output(self._judge.metrics):
            function, named = wrapped_by(metric)
            if function is not None:
                found.append((output, metric.name, lambda a, b, f=function, n=named: f(a, b, **n)))
        return found


def _shown(values: Array, mask: Any, weight: Any) -> Array:
    """The weight of each value: mask times sample weight, in the shape of the values."""
    shown = np.ones_like(values)
    for part in (mask, weight):
        if part is not None and np.ndim(part):
            given = np.asarray(part, np.float64)
            if given.ndim > values.ndim:
                given = given.reshape(given.shape[: values.ndim])
            shown = shown * given.reshape(given.shape + (1,) * (values.ndim - given.ndim))
    return shown

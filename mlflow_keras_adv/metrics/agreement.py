"""Differences of two models on the same samples: of their outputs, and of their decisions."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.metrics.criteria import Criteria
from mlflow_keras_adv.metrics.score import Scores
from mlflow_keras_adv.metrics.task import Task, scale_of, task_of

_DECISIONS: tuple[Task, ...] = ("classification", "binary", "multi-label")
# The sum of a float16 softmax over a thousand classes is that far from 1 at most.
_OF_ONE = 1e-2


def difference(answers: Any, other: Any) -> dict[str, float]:
    """Measures the difference of two models' outputs.

    Args:
        answers: Arrays of shape [samples, …], or a structure of these.
        other: The outputs of the model to compare with.

    Returns:
        `difference`: the root mean square difference, relative to the root mean square of `other`;
        `difference_max`: the largest difference, relative to the largest value of `other`. Of
        several outputs the worst counts.
    """
    worst = {"difference": 0.0, "difference_max": 0.0}
    for ours, theirs in zip(keras.tree.flatten(answers), keras.tree.flatten(other), strict=True):
        a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        if a.shape != b.shape:
            raise UserError(f"Two models' answers differ in shape: {a.shape} and {b.shape}.")
        tiny = np.finfo(np.float64).tiny
        root = np.sqrt(np.mean((a - b) ** 2)) / max(np.sqrt(np.mean(b**2)), tiny)
        most = np.max(np.abs(a - b)) / max(np.max(np.abs(b)), tiny)
        worst["difference"] = max(worst["difference"], float(root))
        worst["difference_max"] = max(worst["difference_max"], float(most))
    return worst


def agreement(
    answers: np.ndarray, other: np.ndarray, task: Task | None, loss: Any = None
) -> float | None:
    """Computes the share of equal decisions of two models; None for outputs without decisions.

    Args:
        answers: Answers of one output, shape [samples, …].
        other: The other model's, of the same shape.
        task: Task of that output.
        loss: What the model was compiled with: of logits and margins 0 decides, not 0.5.

    Raises:
        UserError: The answers differ in shape.
    """
    if task not in _DECISIONS:
        return None
    answers, other = np.asarray(answers), np.asarray(other)
    if answers.shape != other.shape:
        raise UserError(f"Two models' answers differ in shape: {answers.shape} and {other.shape}.")
    if task == "classification":
        same = answers.argmax(axis=-1) == other.argmax(axis=-1)
        known = ~(np.isnan(answers).any(axis=-1) | np.isnan(other).any(axis=-1))
    else:
        threshold = 0.5 if scale_of(other, loss=loss) == "probabilities" else 0.0
        same = (answers > threshold) == (other > threshold)
        known = ~(np.isnan(answers) | np.isnan(other))
    return float(np.mean(same & known))


def decides(loss: Any, answers: np.ndarray) -> Task | None:
    """The kind of decision of an output, by its loss, or if it is a probability distribution.

    Args:
        loss: As `compile` was given it, or None.
        answers: What is answered, of shape [samples, …].
    """
    task = task_of(loss, answers)
    if task is not None or loss is not None or np.ndim(answers) < 2 or np.shape(answers)[-1] < 2:
        return task
    answers = np.asarray(answers, np.float64)
    of_one = (answers >= 0).all() and np.allclose(answers.sum(axis=-1), 1, atol=_OF_ONE)
    return "classification" if of_one else None


def losses_by_output(criteria: Criteria) -> dict[str, Any]:
    """The loss of each output, by the name that the output has in a file."""
    names = keras.tree.flatten(criteria.outputs or "output_0")
    losses = criteria.configured.get("loss")
    if losses is None:
        return {}
    if isinstance(losses, Mapping):
        if set(losses) <= set(names):
            return dict(losses)
        found = dict(zip(criteria.output_names, names, strict=False))
        return {found[key]: loss for key, loss in losses.items() if key in found}
    if isinstance(losses, (list, tuple)):
        return dict(zip(names, losses, strict=False))
    return dict.fromkeys(names, losses)


def compared(found: Scores, other: Scores, loss: Any = None) -> dict[str, float]:
    """Compares two models' outputs: their `difference`, and the `agreement` of decisions.

    Args:
        found: With the answers of the one.
        other: With those of the other.
        loss: What one of them was compiled with; see `agreement`.

    Raises:
        UserError: The answers differ in shape or structure.
    """
    try:
        apart = difference(found.answers, other.answers)
    except ValueError as error:  # of another structure
        raise UserError(f"Two models' answers differ in structure: {error}") from error
    share = agreement(found.answers, other.answers, found.task or other.task, loss)
    return apart if share is None else {"agreement": share, **apart}

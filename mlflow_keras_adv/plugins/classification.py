"""How a classifier answers, class by class, and whether it is as sure as it is right."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

Array = np.ndarray[Any, Any]


def probabilities(scores: Array, *, from_logits: bool | None = None) -> Array:
    """A classifier's scores as probabilities.

    Args:
        scores: Floats of shape (samples, classes).
        from_logits: Whether they are logits, of which the softmax is taken. Default: unless all are
            from 0 to 1 and rows sum to 1 within 5 % on average, as those of an int8 softmax do too.

    Returns:
        float64 of that shape; NaN in a row that holds NaN.
    """
    scores = np.asarray(scores, np.float64)
    if from_logits is None:
        known = scores[~np.isnan(scores).any(axis=1)]
        in_range = bool(((known >= 0) & (known <= 1)).all())
        from_logits = not (in_range and len(known) and abs(known.sum(axis=1).mean() - 1) <= 0.05)
    if not from_logits:
        return scores
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def calibration_table(confidence: Array, correct: Array, *, bins: int = 15) -> pd.DataFrame:
    """Confidence against accuracy, in bins of equal width.

    Args:
        confidence: The probability of the chosen class, shape (samples,).
        correct: Bools of that shape: whether the chosen class is the label.
        bins: How many; the m-th holds confidences above (m - 1) / bins, up to m / bins.

    Returns:
        A row for each bin: `above`, `up_to`, `samples`, mean `confidence` and `accuracy`; the means
        of an empty bin are NaN.

    Raises:
        ValueError: `bins` is less than 1.
    """
    if bins < 1:
        raise ValueError(f"calibration needs at least 1 bin; got {bins}")
    edges = np.linspace(0, 1, bins + 1)
    place = np.digitize(confidence, edges[1:-1], right=True)
    samples = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 in empty bins
        means = [
            np.bincount(place, weights=values, minlength=bins) / samples
            for values in (confidence, correct)
        ]
    return pd.DataFrame(
        {
            "above": edges[:-1],
            "up_to": edges[1:],
            "samples": samples,
            "confidence": means[0],
            "accuracy": means[1],
        }
    )


def expected_calibration_error(table: pd.DataFrame) -> float:
    """Mean distance of confidence and accuracy over the bins, weighted by their samples.

    Equation 3 of Guo et al. 2017, "On Calibration of Modern Neural Networks", ICML
    (arXiv:1706.04599). From 0, and comparable only for the same number of bins.

    Args:
        table: From `calibration_table`.

    Returns:
        The error; NaN if a confidence is NaN.
    """
    filled = table[table["samples"] > 0]
    distances = (filled["accuracy"] - filled["confidence"]).abs()
    return float(np.average(distances, weights=filled["samples"]))


def confusion_counts(labels: Array, chosen: Array, classes: int) -> Array:
    """How often each label was answered by each class.

    Args:
        labels: Integers below `classes`, shape (samples,).
        chosen: Of that shape too; -1 for no answer (NaN), which stands in no column.
        classes: How many.

    Returns:
        int64 of shape (classes, classes): rows are labels, columns are answers.
    """
    answered = chosen >= 0
    flat = labels[answered] * classes + chosen[answered]
    return np.bincount(flat, minlength=classes**2).reshape(classes, classes)


def per_class_table(labels: Array, chosen: Array, names: Sequence[Any]) -> pd.DataFrame:
    """How well each class is found.

    Args:
        labels: As in `confusion_counts`.
        chosen: As there.
        names: Names of the classes.

    Returns:
        A row for each class: `class`, `samples` with that label, how many were `predicted` to have
        it, `precision`, `recall` and `f1`; NaN for 0 / 0.
    """
    counts = confusion_counts(labels, chosen, len(names))
    right, predicted = np.diag(counts), counts.sum(axis=0)
    samples = np.bincount(labels, minlength=len(names))
    with np.errstate(invalid="ignore"):
        return pd.DataFrame(
            {
                "class": list(names),
                "samples": samples,
                "predicted": predicted,
                "precision": right / predicted,
                "recall": right / samples,
                "f1": 2 * right / (samples + predicted),
            }
        )

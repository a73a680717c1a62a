"""Classification: confusion matrix, metrics of each class, reliability diagram.

For whole samples, and for each step of a sequence (tagging).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import softmax  # type: ignore[import-untyped]

from mlflow_keras_adv.metrics.task import classes_of
from mlflow_keras_adv.metrics.views.pictures import (
    confusion_figure,
    reliability_figure,
    samples_figure,
)
from mlflow_keras_adv.metrics.views.view import (
    Array,
    Output,
    View,
    are_images,
    counted_at_all,
    per_sample,
    spread,
    worst_first,
)

# The table holds the beginning of a longer sequence.
MAX_WORDS = 60


def classification(output: Output) -> View:
    """Shows one choice a sample among several classes: scores of shape [samples, classes]."""
    decided = Decided.of(output)
    sure = decided.confidence()
    correct = decided.labels == decided.chosen
    names = decided.names
    predicted = _named(np.array(list(names), object), decided.chosen)
    rows = worst_first(
        {
            "label": np.array(list(names), object)[decided.labels],
            "predicted": predicted,
            "confidence": sure,
            "correct": correct,
        },
        np.where(correct, 0.0, 1.0),
        decided.weights > 0,
    )
    view = decided.view(rows)
    if not are_images(output.inputs):
        return view

    def samples() -> Any:
        shown = rows.head(25)
        captions = [f"{a} → {b}" for a, b in zip(shown.label, shown.predicted, strict=True)]
        images = np.asarray(output.inputs)[shown["index"]]
        return samples_figure(images, captions, shown["correct"].to_numpy())

    return View(
        view.numbers,
        view.directions,
        rows,
        view.tables,
        {**view.figures, "samples": samples},
        view.unseen,
    )


def tagging(output: Output) -> View:
    """Shows a choice at each step of a sequence: scores of shape [samples, steps, classes].

    Scores of shape [samples, steps, 1] are those of a yes at each step. What is masked, or weighs
    nothing, is not counted and not shown.
    """
    decided = Decided.of(output)
    wrong = np.where(decided.labels == decided.chosen, 0.0, 1.0)
    counted = decided.weights > 0
    badness = per_sample(wrong, decided.weights)
    texts = np.array([str(name) for name in decided.names], object)
    columns = {
        "steps": counted.reshape(len(counted), -1).sum(axis=1),
        "wrong": (wrong * counted).reshape(len(counted), -1).sum(axis=1).astype(int),
        "accuracy": 1 - badness,
        "label": _sequences(texts, decided.labels, counted),
        "predicted": _sequences(texts, decided.chosen, counted),
    }
    rows = worst_first(columns, badness, counted_at_all(counted))
    return decided.view(rows)


class Decided:
    """Choices among classes at each place of an answer.

    Args:
        output: What was answered.
        labels: Classes, of the shape of the places.
        chosen: The choices, of that shape too; -1 for no answer.
        shares: Probabilities of each class at each place.

    Attributes:
        weights: Weights of that shape; 0 where nothing counts.
        names: Names of the classes.
    """

    def __init__(self, output: Output, labels: Array, chosen: Array, shares: Array) -> None:
        self.output, self.labels, self.chosen = output, labels, chosen
        self.weights = spread(output.weights, labels.shape)
        self.names = output.names_of(shares.shape[-1])
        self._shares = shares
        known = labels[self.weights > 0]
        if known.size and (known.min() < 0 or known.max() >= len(self.names)):
            raise ValueError(
                f"The labels go up to {known.max()}, from {known.min()}; the model has "
                f"{len(self.names)} classes, from 0."
            )
        # What does not count may have a label that is none, as -1 or 255.
        self.labels = np.where(self.weights > 0, labels, 0)

    @classmethod
    def of(cls, output: Output) -> "Decided":
        """The decisions by scores of classes, or by a single score."""
        answers = np.asarray(output.answers, np.float64)
        if answers.shape[-1] == 1:
            yes = yes_shares(answers[..., 0], output.scale)
            labels = np.asarray(output.labels).reshape(yes.shape) > 0
            chosen = np.where(np.isnan(yes), -1, yes > 0.5).astype(np.int64)
            return cls(output, labels.astype(np.int64), chosen, np.stack([1 - yes, yes], axis=-1))
        flat = answers.reshape(-1, answers.shape[-1])
        unknown = np.asarray(np.isnan(answers).any(axis=-1))
        chosen = np.where(unknown, -1, np.where(unknown[..., None], 0, answers).argmax(axis=-1))
        shares = probabilities(flat, from_logits=output.from_logits).reshape(answers.shape)
        return cls(output, classes_of(output.labels, answers), chosen, shares)

    def confidence(self) -> Array:
        """The share of the class that was chosen."""
        return self._shares.max(axis=-1)

    def counts(self) -> Array:
        """The confusion matrix."""
        weights = None if self.output.weights is None else self.weights.reshape(-1)
        kept = self.weights.reshape(-1) > 0
        return confusion_counts(
            self.labels.reshape(-1)[kept],
            self.chosen.reshape(-1)[kept],
            len(self.names),
            None if weights is None else weights[kept],
        )

    def view(self, rows: pd.DataFrame) -> View:
        """Numbers, tables and figures of classes."""
        kept = self.weights.reshape(-1) > 0
        labels, chosen = self.labels.reshape(-1)[kept], self.chosen.reshape(-1)[kept]
        weights = None if self.output.weights is None else self.weights.reshape(-1)[kept]
        if not kept.any():
            raise ValueError("All samples are masked, or have the weight 0.")
        right = np.average(labels == chosen, weights=weights)
        sure = self.confidence().reshape(-1)[kept]
        bins = calibration_table(sure, labels == chosen, bins=self.output.bins, weights=weights)
        error = expected_calibration_error(bins)
        counts, names = self.counts(), self.names
        per_class = per_class_table(labels, chosen, names, weights)
        return View(
            numbers={
                "accuracy": float(right),
                "ece": error,
                "f1_macro": float(per_class["f1"].mean()),
            },
            directions={"accuracy": "max", "ece": "min", "f1_macro": "max"},
            rows=rows,
            tables={
                "per_class": per_class,
                "confusion_counts": pd.DataFrame(counts, columns=names).assign(label=names),
                "calibration": bins,
            },
            figures={
                "confusion_matrix": lambda: confusion_figure(counts, names),
                "reliability": lambda: reliability_figure(bins, error),
            },
        )


def yes_shares(answers: Array, scale: str) -> Array:
    """Answers of yes as numbers of which 0.5 decides: probabilities, or 0 and 1 of margins."""
    answers = np.asarray(answers, np.float64)
    if scale == "probabilities":
        return answers
    if scale == "margins":
        return np.where(np.isnan(answers), np.nan, np.where(answers > 0, 1.0, 0.0))
    return 0.5 * (1 + np.tanh(answers / 2))  # the sigmoid, which does not overflow


def probabilities(scores: Array, *, from_logits: bool | None = None) -> Array:
    """Converts a classifier's scores to probabilities.

    Args:
        scores: Floats of shape (samples, classes).
        from_logits: Whether they are logits, whose softmax is computed. Default: unless all are
            from 0 to 1 and rows sum to 1 within 5 % on average, as those of an int8 softmax do.

    Returns:
        Probabilities, float64 of that shape; NaN in a row that contains NaN.
    """
    scores = np.asarray(scores, np.float64)
    if from_logits is None:
        known = scores[~np.isnan(scores).any(axis=1)]
        in_range = bool(((known >= 0) & (known <= 1)).all())
        from_logits = not (in_range and len(known) and abs(known.sum(axis=1).mean() - 1) <= 0.05)
    if not from_logits:
        return scores
    return np.asarray(softmax(scores, axis=1))


def calibration_table(
    confidence: Array, correct: Array, *, bins: int = 15, weights: Array | None = None
) -> pd.DataFrame:
    """Tabulates accuracy by confidence, in bins of equal width.

    Args:
        confidence: The probability of the chosen class, shape (samples,).
        correct: Bools of that shape: whether the chosen class is the label.
        bins: Number of bins; the m-th has confidences above (m - 1) / bins, up to m / bins.
        weights: Weights of the samples, of that shape; default: 1.

    Returns:
        A row for each bin: `above`, `up_to`, `samples` (or their weight), mean `confidence` and
        `accuracy`; the means of an empty bin are NaN.

    Raises:
        ValueError: `bins` is less than 1.
    """
    if bins < 1:
        raise ValueError(f"calibration needs at least 1 bin; got {bins}")
    edges = np.linspace(0, 1, bins + 1)
    place = np.digitize(confidence, edges[1:-1], right=True)
    samples = np.bincount(place, weights=weights, minlength=bins)
    each = 1 if weights is None else weights
    with np.errstate(invalid="ignore"):  # 0 / 0 in empty bins
        means = [
            np.bincount(place, weights=values * each, minlength=bins) / samples
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
    """Computes the mean distance of confidence and accuracy, over bins weighted by their samples.

    Equation 3 of Guo et al. 2017, "On Calibration of Modern Neural Networks", ICML
    (arXiv:1706.04599). It is 0 or more, and comparable only for the same number of bins.

    Args:
        table: From `calibration_table`.

    Returns:
        The error; NaN if a confidence is NaN.
    """
    filled = table[table["samples"] > 0]
    distances = (filled["accuracy"] - filled["confidence"]).abs()
    return float(np.average(distances, weights=filled["samples"]))


def confusion_counts(
    labels: Array, chosen: Array, classes: int, weights: Array | None = None
) -> Array:
    """Counts how often each class was predicted for each label.

    Args:
        labels: Integers below `classes`, shape (samples,).
        chosen: The predictions, of that shape; -1 for none (NaN), which is counted in no column.
        classes: Number of classes.
        weights: Weights of the samples, of that shape; default: 1.

    Returns:
        int64 of shape (classes, classes), float64 with weights: rows are labels, columns answers.
    """
    answered = chosen >= 0
    flat = labels[answered] * classes + chosen[answered]
    each = None if weights is None else weights[answered]
    return np.bincount(flat, weights=each, minlength=classes**2).reshape(classes, classes)


def per_class_table(
    labels: Array, chosen: Array, names: Sequence[Any], weights: Array | None = None
) -> pd.DataFrame:
    """Tabulates precision, recall and F1 of each class.

    Args:
        labels: As in `confusion_counts`.
        chosen: As there.
        names: Names of the classes.
        weights: As there.

    Returns:
        A row for each class: `class`, `samples` with that label (or their weight), how many were
        `predicted` to have it, `precision`, `recall` and `f1`; NaN for 0 / 0.
    """
    counts = confusion_counts(labels, chosen, len(names), weights)
    right, predicted = np.diag(counts), counts.sum(axis=0)
    samples = np.bincount(labels, weights=weights, minlength=len(names))
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


def _named(names: Array, chosen: Array) -> Array:
    """Names of classes; None where there is no answer."""
    return np.array([names[each] if each >= 0 else None for each in chosen], object)


def _sequences(names: Array, classes: Array, counted: Array) -> list[str]:
    """The steps of each sample that count, as text."""
    found = []
    for row, known in zip(
        classes.reshape(len(classes), -1), counted.reshape(len(counted), -1), strict=True
    ):
        words = ["?" if each < 0 else str(names[each]) for each in row[known]]
        found.append(" ".join([*words[:MAX_WORDS], *(["…"] if len(words) > MAX_WORDS else [])]))
    return found

"""Binary decisions: one per sample, or several labels per sample."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import (
    PrecisionRecallDisplay,
    RocCurveDisplay,
    auc,
    average_precision_score,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_curve,
)

from mlflow_keras_adv.metrics.views.classes import (
    calibration_table,
    confusion_counts,
    expected_calibration_error,
    per_class_table,
    yes_shares,
)
from mlflow_keras_adv.metrics.views.pictures import (
    bars_figure,
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
    like_answers,
    per_sample,
    spread,
    worst_first,
)


def binary(output: Output) -> View:
    """Shows answers that are one yes or no each, at all places that the output has."""
    answers = np.asarray(output.answers, np.float64)
    labels = like_answers(output.labels, answers) > 0
    weights = spread(output.weights, answers.shape)
    shares = yes_shares(answers, output.scale)
    decided = shares > 0.5
    correct = (labels == decided) & ~np.isnan(answers)
    names = output.names_of(2)

    kept = weights > 0
    if not kept.any():
        raise ValueError("All samples are masked, or have the weight 0.")
    label, answer, share = labels[kept], answers[kept], shares[kept]
    weight = None if output.weights is None else weights[kept]
    chosen = np.where(np.isnan(answer), -1, decided[kept]).astype(np.int64)
    counts = confusion_counts(label.astype(np.int64), chosen, 2, weight)
    per_class = per_class_table(label.astype(np.int64), chosen, names, weight)
    threshold = 0.5 if output.scale == "probabilities" else 0.0
    numbers = {
        "accuracy": float(np.average(label == chosen, weights=weight)),
        "threshold": threshold,
        **{key: float(per_class[key].iloc[1]) for key in ("precision", "recall", "f1")},
    }
    tables = {
        "per_class": per_class,
        "confusion_counts": pd.DataFrame(counts, columns=names).assign(label=names),
    }
    figures: dict[str, Any] = {"confusion_matrix": lambda: confusion_figure(counts, names)}
    unseen = []
    if label.all() or not label.any() or np.isnan(answer).any():
        why = "some answers are NaN" if np.isnan(answer).any() else "all labels are the same"
        unseen.append(f"Curves and their areas: {why}.")
    else:
        false, true, _ = roc_curve(label, answer, sample_weight=weight)
        numbers["roc_auc"] = area = float(auc(false, true))
        precision, recall, _ = precision_recall_curve(label, answer, sample_weight=weight)
        mean = float(average_precision_score(label, answer, sample_weight=weight))
        numbers["average_precision"] = mean
        base = float(np.average(label, weights=weight))
        figures |= {
            "roc": lambda: _drawn(RocCurveDisplay(fpr=false, tpr=true, roc_auc=area)),
            "precision_recall": lambda: _drawn(
                PrecisionRecallDisplay(precision, recall, average_precision=mean), base
            ),
        }
    if output.scale == "margins":
        unseen.append("Calibration: the answers are margins, not probabilities.")
    else:
        bins = calibration_table(share, label, bins=output.bins, weights=weight)
        numbers["ece"] = error = expected_calibration_error(bins)
        tables["calibration"] = bins
        figures["reliability"] = lambda: reliability_figure(bins, error)

    rows = _rows(output, labels, shares, correct, weights, names)
    if are_images(output.inputs) and answers.size == len(answers):

        def samples() -> Figure:
            shown = rows.head(25)
            captions = [f"{a} → {b}" for a, b in zip(shown.label, shown.predicted, strict=True)]
            images = np.asarray(output.inputs)[shown["index"]]
            return samples_figure(images, captions, shown["correct"].to_numpy())

        figures["samples"] = samples
    directions: dict[str, Any] = {name: "max" for name in numbers if name != "threshold"}
    if "ece" in directions:
        directions["ece"] = "min"
    return View(numbers, directions, rows, tables, figures, unseen)


def multi_label(output: Output) -> View:
    """Shows several labels a sample, each there or not: answers of shape [samples, labels]."""
    answers = np.asarray(output.answers, np.float64)
    labels = like_answers(output.labels, answers) > 0
    names = output.names_of(answers.shape[-1])
    weights = spread(output.weights, answers.shape[:-1])
    shares = yes_shares(answers, output.scale)
    decided = shares > 0.5
    wrong = (labels != decided) | np.isnan(answers)
    kept = weights > 0
    if not kept.any():
        raise ValueError("All samples are masked, or have the weight 0.")
    label, answer, weight = labels[kept], answers[kept], weights[kept]
    precision, recall, f1, _ = precision_recall_fscore_support(
        label,
        (decided & ~np.isnan(answers))[kept],
        sample_weight=weight,
        zero_division=np.nan,
    )
    # Undefined of a label that no sample has, or with answers that are no numbers.
    known = np.asarray(label.any(axis=0) & ~np.isnan(answer).any(axis=0))
    mean = np.full(len(names), np.nan)
    for place in np.flatnonzero(known):
        mean[place] = average_precision_score(
            label[:, place], answer[:, place], sample_weight=weight
        )
    table = pd.DataFrame(
        {
            "label": names,
            "samples": label.sum(axis=0),
            "predicted": decided[kept].sum(axis=0),
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "average_precision": mean,
        }
    )
    rights = 1 - wrong[kept]
    numbers = {
        "binary_accuracy": float(np.average(rights.mean(axis=-1), weights=weight)),
        "exact_match": float(np.average(rights.all(axis=-1), weights=weight)),
        "threshold": 0.5 if output.scale == "probabilities" else 0.0,
        "f1_macro": float(table["f1"].mean()),
        "average_precision_macro": float(table["average_precision"].mean()),
    }
    missing = [str(name) for name, has in zip(names, known, strict=True) if not has]
    unseen = [f"The average precision of {', '.join(missing)}: no sample has it."] * bool(missing)
    lists = np.array([str(name) for name in names], object)
    rows = worst_first(
        {
            "labels": [", ".join(lists[each]) for each in labels],
            "predicted": [", ".join(lists[each]) for each in decided],
            "wrong": wrong.sum(axis=-1),
            "correct": ~wrong.any(axis=-1),
        },
        wrong.sum(axis=-1).astype(float),
        kept,
    )
    return View(
        numbers,
        {name: "max" for name in numbers if name != "threshold"},
        rows,
        {"per_label": table},
        {
            "per_label": lambda: bars_figure(
                names, table["f1"].to_numpy(), what="F1", title="F1 of each label"
            ),
            "average_precision": lambda: bars_figure(
                names, mean, what="average precision", title="average precision of each label"
            ),
        },
        unseen,
    )


def _rows(
    output: Output,
    labels: Array,
    shares: Array,
    correct: Array,
    weights: Array,
    names: list[Any],
) -> pd.DataFrame:
    """A row a sample: its own answer, or of several the share that is right."""
    if labels.size == len(labels):
        flat = {"label": labels.reshape(-1), "share": shares.reshape(-1)}
        named = np.array(names, object)
        predicted = named[(flat["share"] > 0.5).astype(int)]
        predicted[np.isnan(flat["share"])] = None
        columns = {"label": named[flat["label"].astype(int)], "predicted": predicted}
        if output.scale != "margins":
            columns["probability"] = flat["share"]
        columns["correct"] = correct.reshape(-1)
        return worst_first(columns, 1.0 - correct.reshape(-1), weights.reshape(-1) > 0)
    wrong = per_sample(1.0 - correct, weights)
    return worst_first({"accuracy": 1 - wrong}, wrong, counted_at_all(weights > 0))


def _drawn(display: Any, base: float | None = None) -> Figure:
    """A display of scikit-learn, with what chance would reach."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    display.plot(ax=axes)
    if base is None:
        axes.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
    else:
        axes.axhline(base, color="black", linestyle="--", linewidth=1)
    return figure

"""Errors of numbers: regression, forecasts, reconstruction."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import PredictionErrorDisplay, r2_score

from mlflow_keras_adv.metrics.views.pictures import MAX_PAIRS, columns_figure, in_unit_range
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

MAX_POINTS = 2000
MAX_PANELS = 9
# Of more targets the table of samples has no columns of their own.
MAX_COLUMNS = 8
_QUANTILES = (1, 5, 25, 50, 75, 95, 99)


def regression(output: Output) -> View:
    """Shows numbers: the last axis is that of the targets, each place has one of each."""
    labels, answers = _numbers(output)
    if answers.ndim == 1:
        labels, answers = labels[:, None], answers[:, None]
    targets = answers.shape[-1]
    names = output.names_of(targets)
    places = spread(output.weights, answers.shape[:-1])
    kept = places > 0
    if not kept.any():
        raise ValueError("All samples are masked, or have the weight 0.")
    true, found, weight = labels[kept], answers[kept], places[kept]  # [places, targets]
    numbers = errors(true, found, weight)
    unseen = []
    if "r2" not in numbers:
        unseen.append("R²: it needs two samples, and answers that are finite.")
    table = pd.DataFrame(
        [
            {"target": name, **errors(true[:, [each]], found[:, [each]], weight)}
            for each, name in enumerate(names)
        ]
    )
    quantiles = _quantile_table(found - true, weight, names)
    error = answers - labels
    badness = per_sample(np.abs(error).mean(axis=-1), places)
    columns: dict[str, Any] = {}
    if answers.size == len(answers) * targets and targets <= MAX_COLUMNS:
        flat = [each.reshape(len(answers), targets) for each in (labels, answers, error)]
        for target, name in enumerate(names):
            end = "" if targets == 1 else f"/{name}"
            for key, values in zip(("true", "predicted", "error"), flat, strict=True):
                columns[key + end] = values[:, target]
    if targets > 1 or not columns:
        columns["absolute_error"] = badness
    rows = worst_first(columns, badness, counted_at_all(kept))
    figures: dict[str, Callable[[], Figure]] = {}
    if np.isfinite(found).all() and np.isfinite(true).all():
        figures = {
            "predicted_over_true": lambda: _error_figure(true, found, names, "actual_vs_predicted"),
            "residuals": lambda: _error_figure(true, found, names, "residual_vs_predicted"),
        }
    else:
        unseen.append("Residuals: some numbers are NaN or infinite.")
    return View(
        numbers,
        _directions(numbers),
        rows,
        {"per_target": table, "error_quantiles": quantiles},
        figures,
        unseen,
    )


def forecast(output: Output) -> View:
    """Shows forecasts of several steps: answers of shape [samples, steps] or [samples, steps, …].

    What the model was given, of shape [samples, steps] or [samples, steps, 1], is drawn before it.
    """
    labels, answers = _numbers(output)
    if answers.ndim < 2:
        raise ValueError(
            f"Received answers of shape {answers.shape}; a forecast needs [samples, steps, …]."
        )
    labels = labels.reshape(*labels.shape[:2], -1)
    answers = answers.reshape(*answers.shape[:2], -1)
    weights = spread(output.weights, answers.shape[:2])
    kept = weights > 0
    if not kept.any():
        raise ValueError("All samples are masked, or have the weight 0.")
    numbers = errors(labels[kept], answers[kept], weights[kept])
    steps = pd.DataFrame(
        [
            {
                "step": step + 1,
                **errors(labels[rows, step], answers[rows, step], weights[rows, step]),
                "bias": float(
                    np.average(
                        (answers - labels)[rows, step].mean(axis=-1), weights=weights[rows, step]
                    )
                ),
            }
            for step in range(answers.shape[1])
            if (rows := kept[:, step]).any()
        ]
    )
    badness = per_sample(np.abs(answers - labels).mean(axis=-1), weights)
    columns: dict[str, Any] = {"absolute_error": badness}
    if answers.shape[1] <= MAX_COLUMNS and answers.shape[2] == 1:
        for step in range(answers.shape[1]):
            columns[f"error/{step + 1}"] = (answers - labels)[:, step, 0]
    rows = worst_first(columns, badness, counted_at_all(kept))
    before = np.asarray(output.inputs) if hasattr(output.inputs, "shape") else None
    if before is not None and (before.ndim not in (2, 3) or before.shape[2:] not in ((), (1,))):
        before = None
    chosen = rows["index"].to_numpy()[np.linspace(0, len(rows) - 1, 6).round().astype(int)]
    return View(
        numbers,
        _directions(numbers),
        rows,
        {"per_step": steps},
        {
            "error_per_step": lambda: _steps_figure(steps),
            "series": lambda: _series_figure(
                labels[..., 0], answers[..., 0], before, list(dict.fromkeys(chosen.tolist()))
            ),
        },
        [] if "r2" in numbers else ["R²: it needs two samples, and answers that are finite."],
    )


def reconstruction(output: Output) -> View:
    """Shows answers that should equal what was given, of any shape."""
    labels, answers = _numbers(output)
    flat = answers.reshape(len(answers), -1)
    weights = spread(output.weights, answers.shape[:1] if answers.ndim < 3 else answers.shape[:-1])
    kept = weights > 0
    if not kept.any():
        raise ValueError("All samples are masked, or have the weight 0.")
    trailing = answers.shape[weights.ndim :]
    true = labels.reshape(*weights.shape, int(np.prod(trailing)))[kept]
    found = answers.reshape(*weights.shape, int(np.prod(trailing)))[kept]
    numbers = {key: v for key, v in errors(true, found, weights[kept]).items() if key != "r2"}
    off = np.abs(answers - labels).reshape(*weights.shape, -1)
    badness = per_sample(off.mean(axis=-1), weights)
    squares = per_sample((off**2).mean(axis=-1), weights)
    columns = {"absolute_error": badness, "squared_error": squares}
    rows = worst_first(columns, badness, counted_at_all(kept))
    order = rows["index"].to_numpy()
    shown = order[np.linspace(0, len(order) - 1, min(MAX_PAIRS, len(order))).round().astype(int)]
    captions = [f"{badness[each]:.3g}" for each in shown]

    def pairs() -> Figure:
        if are_images(labels):
            asked, got = in_unit_range(labels[shown], answers[shown])
            lost = np.abs(got - asked)
            columns = {"target": asked, "answer": got, "difference": lost}
            return columns_figure(columns, captions)
        return _lines_figure(labels.reshape(flat.shape)[shown], flat[shown], captions)

    return View(numbers, _directions(numbers), rows, {}, {"pairs": pairs})


def errors(labels: Array, answers: Array, weights: Array) -> dict[str, float]:
    """Mean, root mean square and quantiles of what answers are off by, and R².

    Args:
        labels: Shape [places, targets].
        answers: Answers of that shape too.
        weights: Shape [places], above 0.

    Returns:
        By name: `mae`, `rmse`, `r2` (the mean of that of each target; absent of a single sample or
        numbers that are not finite), and of the absolute error `error_p50`, `error_p90` and
        `error_p99`.
    """
    off = np.abs(answers - labels)
    found = {
        "mae": float(np.average(off.mean(axis=-1), weights=weights)),
        "rmse": float(np.sqrt(np.average((off**2).mean(axis=-1), weights=weights))),
    }
    if len(labels) > 1 and np.isfinite(off).all():
        found["r2"] = float(r2_score(labels, answers, sample_weight=weights))
    spread_out = np.repeat(weights, off.shape[-1])
    values = quantiles(off.reshape(-1), spread_out, (50, 90, 99))
    return found | {
        f"error_p{percent}": float(value)
        for percent, value in zip((50, 90, 99), values, strict=True)
    }


def quantiles(values: Array, weights: Array, percents: Sequence[float]) -> Array:
    """The least values up to which these shares of the weight lie; NaN if one of them is.

    As NumPy's method "inverted_cdf", which takes weights from version 2 on.
    """
    if np.isnan(values).any():
        return np.full(len(percents), np.nan)
    order = np.argsort(values)
    up_to = np.cumsum(weights[order])
    reached = np.asarray(percents) / 100 * up_to[-1] * (1 - 1e-12)
    return np.asarray(values[order][np.searchsorted(up_to, reached)])


def _numbers(output: Output) -> tuple[Array, Array]:
    answers = np.asarray(output.answers, np.float64)
    return np.asarray(like_answers(output.labels, answers), np.float64), answers


def _directions(numbers: dict[str, float]) -> dict[str, Any]:
    return {name: "max" if name == "r2" else "min" for name in numbers}


def _quantile_table(error: Array, weights: Array, names: list[Any]) -> pd.DataFrame:
    """Quantiles of the signed error, a row for each target."""
    return pd.DataFrame(
        [
            {
                "target": name,
                **dict(
                    zip(
                        [f"p{percent}" for percent in _QUANTILES],
                        quantiles(error[:, each], weights, _QUANTILES),
                        strict=True,
                    )
                ),
            }
            for each, name in enumerate(names)
        ]
    )


def _error_figure(true: Array, found: Array, names: list[Any], kind: str) -> Figure:
    """A panel for each of the first targets, of so many points that they can be seen."""
    shown = names[:MAX_PANELS]
    columns = int(np.ceil(np.sqrt(len(shown))))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(4 * columns, 4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    few = np.linspace(0, len(true) - 1, min(MAX_POINTS, len(true))).round().astype(int)
    for place, (panel, name) in enumerate(zip(panels, shown, strict=False)):
        display = PredictionErrorDisplay(y_true=true[few, place], y_pred=found[few, place])
        display.plot(ax=panel, kind=kind, scatter_kwargs={"s": 8, "alpha": 0.5})
        if len(names) > 1:
            panel.set_title(str(name))
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    return figure


def _steps_figure(steps: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps["step"], steps["mae"], marker="o", label="MAE")
    axes.plot(steps["step"], steps["rmse"], marker="o", label="RMSE")
    axes.set(xlabel="steps ahead", ylabel="error", ylim=(0, None))
    axes.legend()
    return figure


def _series_figure(true: Array, found: Array, before: Array | None, rows: list[int]) -> Figure:
    figure = Figure(figsize=(7, 1.8 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    ahead = np.arange(1, true.shape[1] + 1)
    for panel, row in zip(panels, rows, strict=True):
        if before is not None:
            past = np.asarray(before[row], np.float64).reshape(-1)
            panel.plot(np.arange(1 - len(past), 1), past, color="0.6", label="given")
        panel.plot(ahead, true[row], color="black", marker=".", label="true")
        panel.plot(ahead, found[row], color="C0", marker=".", label="predicted")
        panel.set_title(f"sample {row}", fontsize="small")
    panels[0].legend(fontsize="small")
    panels[-1].set_xlabel("steps ahead")
    return figure


def _lines_figure(true: Array, found: Array, captions: list[str]) -> Figure:
    figure = Figure(figsize=(6, 1.4 * len(captions)), layout="constrained")
    panels = figure.subplots(len(captions), 1, squeeze=False)[:, 0]
    for panel, asked, got, caption in zip(panels, true, found, captions, strict=True):
        panel.plot(asked, color="black", label="target")
        panel.plot(got, color="C0", label="answer")
        panel.set_title(caption, fontsize="small")
    panels[0].legend(fontsize="small")
    return figure

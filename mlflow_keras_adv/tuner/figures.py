"""Figures of a search: its history, parallel coordinates, importance of hyperparameters."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

# More axes, or more labels on an axis, could not be read.
MAX_AXES = 12
MAX_LABELS = 12


def history_figure(scores: pd.Series, objective: str, direction: str) -> Figure:
    """Draws the score of each trial, and the best score so far.

    Args:
        scores: Finite numbers, indexed by the number of the trial.
        objective: Name of the objective.
        direction: `min` or `max`.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    best = scores.cummin() if direction == "min" else scores.cummax()
    axes.plot(scores.index, scores, "o", ms=4, alpha=0.6, label="trial")
    axes.step(best.index, best, where="post", label="best so far")
    axes.set(title="optimization history", xlabel="trial", ylabel=objective)
    axes.legend(frameon=False)
    _tidy(axes)
    return figure


def parallel_coordinates_figure(
    values: pd.DataFrame, scores: pd.Series, objective: str, direction: str
) -> Figure:
    """Draws a line per trial through its hyperparameters to its score; better ones are darker.

    Args:
        values: A row per trial, a column per hyperparameter; of those that vary the first
            `MAX_AXES - 1` are drawn. A line has a gap where a value is missing.
        scores: Finite numbers, one per row.
        objective: Name of the objective.
        direction: `min` or `max`.
    """
    varied = values.loc[:, values.nunique(dropna=False) > 1].iloc[:, : MAX_AXES - 1]
    positions, ticks = [], []
    for column in [varied[name] for name in varied] + [scores]:
        position, tick = _axis(column)
        positions.append(position)
        ticks.append(tick)
    lines = np.stack(positions, axis=1)
    rank = scores.rank(pct=True, ascending=direction == "max").to_numpy()
    figure = Figure(figsize=(1.4 * len(positions) + 2, 4.5), layout="constrained")
    axes = figure.subplots()
    shades = _colors(rank)
    for row in np.argsort(rank):  # the best on top
        axes.plot(lines[row], color=shades[row], lw=0.8 + rank[row], marker=".", ms=3)
    axes.set_xticks(range(len(positions)), [*varied, objective], rotation=20, ha="right")
    axes.set(title="parallel coordinates", ylim=(-0.06, 1.06), yticks=[])
    for place, tick in enumerate(ticks):
        axes.axvline(place, color="0.8", lw=0.8, zorder=0)
        for height, text in tick:
            axes.text(place + 0.04, height, text, fontsize="x-small", va="center", color="0.25")
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    return figure


def importance_figure(importance: Mapping[str, float]) -> Figure:
    """Draws a bar for each hyperparameter.

    Args:
        importance: Shares that sum to 1, the largest first.
    """
    shown = list(importance.items())[:20][::-1]
    figure = Figure(figsize=(7, 1.2 + 0.35 * len(shown)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([name for name, _ in shown], [share for _, share in shown])
    axes.bar_label(bars, fmt="{:.0%}", padding=3)
    axes.set(title="hyperparameter importance", xlabel="share (random forest, permutation)")
    axes.set_xlim(0, 1.12 * max(importance.values()))
    _tidy(axes)
    return figure


def _axis(column: pd.Series) -> tuple[np.ndarray[Any, Any], list[tuple[float, str]]]:
    """Positions of the values from 0 to 1 (NaN for a missing value), and labels of the axis."""
    present = column.dropna()
    if all(isinstance(v, int | float | np.number) and not isinstance(v, bool) for v in present):
        numbers = column.astype(float).to_numpy()
        low, high = np.nanmin(numbers), np.nanmax(numbers)
        # As a search space would: what spans decades and is above 0 is drawn by its logarithm.
        if low > 0 and high / low >= 50:
            numbers, low, high = np.log(numbers), np.log(low), np.log(high)
            labels = [(h, f"{np.exp(low + h * (high - low)):.3g}") for h in (0, 0.5, 1)]
        else:
            labels = [(h, f"{low + h * (high - low):.4g}") for h in (0, 0.5, 1)]
        if high == low:
            return np.where(np.isnan(numbers), np.nan, 0.5), [(0.5, labels[0][1])]
        return (numbers - low) / (high - low), labels
    names = sorted({str(value) for value in present})
    heights = {name: (place + 0.5) / len(names) for place, name in enumerate(names)}
    found = [np.nan if pd.isna(value) else heights[str(value)] for value in column]
    return np.array(found), [(heights[name], name) for name in names[:MAX_LABELS]]


def _colors(rank: np.ndarray[Any, Any]) -> list[tuple[float, float, float]]:
    """Light grey for the worst, dark blue for the best."""
    worst, best = np.array([0.85, 0.87, 0.9]), np.array([0.05, 0.25, 0.6])
    return [tuple(worst + share**2 * (best - worst)) for share in rank]


def _tidy(axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)

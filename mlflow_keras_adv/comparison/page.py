"""The page of a comparison: one HTML file without scripts and external resources.

Names and values in it may come from anybody: Jinja escapes them, and the content security policy of
the page keeps a browser from loading or running anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
from mlflow.entities import Run

from mlflow_keras_adv.comparison import charts
from mlflow_keras_adv.comparison.axes import is_place
from mlflow_keras_adv.comparison.chance import interval
from mlflow_keras_adv.comparison.charts import Chart, cost_chart, curves_chart
from mlflow_keras_adv.comparison.groups import Group, Value, differing, is_seed
from mlflow_keras_adv.comparison.histories import Curves
from mlflow_keras_adv.comparison.logged_tables import TableSeries
from mlflow_keras_adv.comparison.pictures import Picture
from mlflow_keras_adv.comparison.table import better, metric_keys
from mlflow_keras_adv.comparison.texts import number, safe, with_spread
from mlflow_keras_adv.tracking.directions import Mode

# Limits of the page; the table that is logged with it has everything.
MAX_COLOURS = 10
MAX_METRICS = 24
MAX_PARAMS = 24
COSTS = (
    *("final/gzip_bytes", "final/size_bytes"),
    *("final/latency_ms_p50", "final/flops", "final/parameters"),
)
CURVES = ("val/accuracy", "val/loss", "train/accuracy", "train/loss", "trial/score")
GRADIENTS = ("gradient/norm", "gradient/norm_clipped", "optimizer/learning_rate")


@dataclass(frozen=True)
class Contents:
    """The contents of a page.

    Attributes:
        title: Its first line.
        made: The time at which it was made, in words.
        groups: The variants, the best first.
        score: The metric by which they are sorted.
        directions: Whether metrics are better lower or higher, as recorded by the runs.
        curves: Histories of the first `MAX_COLOURS` variants.
        pictures: Pictures of the first `MAX_COLOURS` variants.
        tables: Tables of the first `MAX_COLOURS` variants.
        experiments: Names by id.
        notes: Sentences about the comparison for its readers.
        address: The prepared view in MLflow.
    """

    title: str
    made: str
    groups: Sequence[Group]
    score: str | None
    curves: Curves
    pictures: Sequence[Picture] = ()
    tables: Sequence[TableSeries] = ()
    experiments: dict[str, str] = field(default_factory=dict)
    directions: Mapping[str, Mode] = field(default_factory=dict)
    notes: Sequence[str] = ()
    address: str | None = None


def render(contents: Contents) -> str:
    """The page, as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mlflow_keras_adv", "comparison"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["safe_text"] = safe
    shown = contents.groups[:MAX_COLOURS]
    keys = metric_keys(contents.groups)
    params = differing([group.params for group in contents.groups])
    notes = list(contents.notes)
    if len(contents.groups) > len(shown):
        notes.append(
            f"Of {len(contents.groups)} variants the {len(shown)} best have a colour, curves, "
            "pictures and tables of their own; results and dots are of all."
        )
    for name, all_of, limit in (("metrics", keys, MAX_METRICS), ("params", params, MAX_PARAMS)):
        if len(all_of) > limit:
            notes.append(f"Of {len(all_of)} {name} the page shows {limit}; table.json has them.")
    return environment.get_template("page.html.j2").render(
        title=contents.title,
        made=contents.made,
        score=contents.score,
        tiles=_tiles(contents),
        groups=contents.groups,
        shown=shown,
        runs=_runs(contents.groups),
        experiments=contents.experiments,
        notes=notes,
        link=contents.address,
        columns=[_column(key, contents.groups, contents.directions) for key in keys[:MAX_METRICS]],
        params=params[:MAX_PARAMS],
        costs=_costs(contents),
        curves=_curves(CURVES, shown, contents.curves),
        gradients=_small_multiples(shown, contents.curves),
        steps=_curves(("batch/loss", *GRADIENTS[2:]), shown, contents.curves),
        pictures=contents.pictures,
        tables=contents.tables,
        size=charts,
    )


def curve_keys(groups: Sequence[Group]) -> list[str]:
    """Chooses the metrics whose curves the page shows."""
    keys = {key for group in groups for run in group.runs for key in run.data.metrics}
    return [key for key in (*CURVES, "batch/loss", *GRADIENTS) if key in keys]


def _tiles(contents: Contents) -> list[dict[str, Any]]:
    """Tiles for the variant with the best score, the smallest and the fastest one."""
    tiles: list[dict[str, Any]] = []
    for key in (contents.score, "final/gzip_bytes", "final/latency_ms_p50"):
        having = [
            (value, index)
            for index, group in enumerate(contents.groups)
            if key and (value := group.value(key)) and is_place(value.mean)
        ]
        if key and having and key not in [tile["key"] for tile in tiles]:
            sign = better(key, contents.directions) or 1
            value, index = max(having, key=lambda each: (sign * each[0].mean, -each[1]))
            mean, std = with_spread(value.mean, value.std, key)
            tile = {"key": key, "mean": mean, "std": std if value.count > 1 else "", "sure": ""}
            sure = interval(contents.groups[index], key) if key == contents.score else None
            if sure is not None:
                low, high = (number(each, key) for each in sure)
                tile["sure"] = f"95 %: {low} to {high}, {value.count} seeds"
            tiles.append(tile | {"index": index, "name": contents.groups[index].name})
    return tiles


def _column(key: str, groups: Sequence[Group], directions: Mapping[str, Mode]) -> dict[str, Any]:
    """A column of the table of results."""
    values = [group.value(key) for group in groups]
    means = [v.mean for v in values if v and is_place(v.mean)]
    low, high = (min(means), max(means)) if means else (0.0, 0.0)
    sign = better(key, directions)
    best = (high if sign > 0 else low) if sign and high > low else None
    section, _, name = key.rpartition("/")
    cells = [_cell(v, key, len(g.runs), low, high) for v, g in zip(values, groups, strict=True)]
    for value, cell in zip(values, cells, strict=True):
        cell["best"] = bool(value and value.mean == best)
    return {"section": section, "name": name, "better": sign, "cells": cells}


def _cell(value: Value | None, key: str, runs: int, low: float, high: float) -> dict[str, Any]:
    if value is None:
        return {"mean": "-", "std": "", "few": "", "share": None}
    mean, std = with_spread(value.mean, value.std, key)
    drawn = is_place(value.mean) and high > low
    return {
        "mean": mean,
        "std": std if value.count > 1 else "",
        "few": f"{value.count} of {runs}" if value.count < runs else "",
        "share": round(100 * (value.mean - low) / (high - low)) if drawn else None,
    }


def _costs(contents: Contents) -> list[Chart]:
    if contents.score is None:
        return []
    keys = set(metric_keys(contents.groups))
    sign = better(contents.score, contents.directions) or 1
    drawn = [
        cost_chart(contents.score, cost, contents.groups, MAX_COLOURS, sign)
        for cost in COSTS
        if cost in keys and cost != contents.score
    ]
    return [chart for chart in drawn if chart]


def _curves(keys: Sequence[str], shown: Sequence[Group], curves: Curves) -> list[Chart]:
    drawn = [curves_chart(key, shown, curves.get(key, {})) for key in keys]
    return [chart for chart in drawn if chart]


def _small_multiples(shown: Sequence[Group], curves: Curves) -> list[Chart]:
    """The gradient norm of each variant in a chart of its own, all with the same axes."""
    histories = curves.get("gradient/norm", {})
    together = curves_chart("gradient/norm", shown, histories)
    if together is None:
        return []
    drawn = [
        curves_chart(
            "gradient/norm", [group], histories, title=group.name, like=together, colours=[colour]
        )
        for colour, group in enumerate(shown)
    ]
    return [chart for chart in drawn if chart]


def _runs(groups: Sequence[Group]) -> list[dict[str, Any]]:
    return [
        {"group": group.name, "info": run.info, "seed": _seed(run)}
        for group in groups
        for run in group.runs
    ]


def _seed(run: Run) -> str:
    return ", ".join(value for key, value in run.data.params.items() if is_seed(key))

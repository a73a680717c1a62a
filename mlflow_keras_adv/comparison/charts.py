"""Charts of the page: lines over the steps, dots of one metric over another, as plain geometry.

The template draws them. A drawing is about as wide as a phone, so that it is read there in the size
that it has beside others on a desk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from mlflow_keras_adv.comparison.axes import Axis, axis, is_place
from mlflow_keras_adv.comparison.groups import Group
from mlflow_keras_adv.comparison.texts import number, safe

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 348, 10, 190


@dataclass(frozen=True)
class Mark:
    """A line, a band or a dot.

    Attributes:
        kind: `line`, `thin`, `band`, `dot` or `front`.
        colour: Number of the variant's colour; -1 for one that has none.
        path: The SVG path of a line or a band.
        x: Position of a dot.
        y: Position of a dot.
        title: The tooltip.
    """

    kind: str
    colour: int
    path: str = ""
    x: float = 0.0
    y: float = 0.0
    title: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        title: Name of the metric.
        x_label: Label of the lower axis.
        y_label: Label of the left axis, if the title does not say it.
        x_axis: The lower axis.
        y_axis: The left axis.
        marks: The marks, in drawing order.
    """

    title: str
    x_label: str
    x_axis: Axis
    y_axis: Axis
    marks: list[Mark] = field(default_factory=list)
    y_label: str = ""


Histories = Mapping[str, "pd.Series[float]"]


def curves_chart(
    key: str,
    groups: Sequence[Group],
    histories: Histories,
    *,
    title: str | None = None,
    like: Chart | None = None,
    colours: Sequence[int] | None = None,
) -> Chart | None:
    """Draws a line per variant: the mean over seeds, in a band of one standard deviation.

    Args:
        key: Name of the metric.
        groups: The variants.
        histories: Curves by run.
        title: Title. Default: the name of the metric.
        like: A chart whose axes to use.
        colours: Numbers of the variants' colours. Default: in their order.

    Returns:
        The chart; None if no run has a curve.
    """
    shown = colours or range(len(groups))
    found = {
        colour: [histories[r.info.run_id] for r in group.runs if r.info.run_id in histories]
        for colour, group in zip(shown, groups, strict=True)
    }
    every = [series for some in found.values() for series in some]
    if like is not None:
        x_axis, y_axis = like.x_axis, like.y_axis
    else:
        steps = axis((x for s in every for x in s.index), LEFT, RIGHT, log=False, margin=0.0)
        heights = axis((y for s in every for y in s), BOTTOM, TOP, unit=key)
        if steps is None or heights is None:
            return None
        x_axis, y_axis = steps, heights
    marks: list[Mark] = []
    for (colour, some), group in zip(found.items(), groups, strict=True):
        if len(some) > 1:
            # Runs of one variant may have logged at other steps, or stopped earlier.
            table = pd.concat(some, axis=1).sort_index()
            table = table.interpolate(method="index", limit_area="inside")
            mean, std = table.mean(axis=1), table.std(axis=1).fillna(0.0)
            band = _band(mean - std, mean + std, x_axis, y_axis)
            marks.append(Mark("band", colour, band))
        elif some:
            (mean,) = some
        else:
            continue
        title_of = f"{safe(group.name)}: {number(mean.iloc[-1], key)} at step {mean.index[-1]:,}"
        marks.append(Mark("line", colour, _line(mean, x_axis, y_axis), title=title_of))
    marks.sort(key=lambda mark: mark.kind != "band")
    return Chart(title or key, "training batches", x_axis, y_axis, marks) if marks else None


def cost_chart(
    score: str, cost: str, groups: Sequence[Group], coloured: int, sign: int
) -> Chart | None:
    """Draws score against cost, a dot per variant, with the Pareto front.

    Args:
        score: Metric of the left axis.
        cost: Metric of the lower axis; less is better.
        groups: The variants.
        coloured: Number of variants, the first ones, that have colours.
        sign: 1 if a higher score is better, -1 if a lower one is.

    Returns:
        The chart; None if fewer than two variants have both metrics.
    """
    places: list[tuple[float, float, int, Group]] = []
    for index, group in enumerate(groups):
        found = group.value(cost), group.value(score)
        means = [value.mean for value in found if value and is_place(value.mean)]
        if len(means) == len(found):
            places.append((means[0], means[1], index if index < coloured else -1, group))
    x_axis = axis((x for x, *_ in places), LEFT, RIGHT, unit=cost)
    y_axis = axis((y for _, y, *_ in places), BOTTOM, TOP, unit=score, log=False)
    if x_axis is None or y_axis is None or len(places) < 2:
        return None
    front: list[tuple[float, float]] = []
    for x, y, *_ in sorted(places, key=lambda p: (p[0], -sign * p[1])):
        if not front or sign * y > sign * front[-1][1]:
            front.append((x, y))
    steps = _steps([(x_axis.place(x), y_axis.place(y)) for x, y in front])
    marks = [Mark("front", -1, steps)] if len(front) > 1 else []
    for x, y, colour, group in sorted(places, key=lambda place: place[2]):  # colours on top
        title = f"{safe(group.name)}: {number(y, score)} at {number(x, cost)}"
        marks.append(Mark("dot", colour, x=x_axis.place(x), y=y_axis.place(y), title=title))
    return Chart(f"{score} over {cost}", cost, x_axis, y_axis, marks, score)


def _line(series: "pd.Series[float]", x_axis: Axis, y_axis: Axis) -> str:
    """The path of a curve, with gaps where a value cannot be drawn."""
    path, pen = [], "M"
    for x, y in series.items():
        if is_place(y) and (y > 0 or not y_axis.log):
            path.append(f"{pen}{x_axis.place(x)} {y_axis.place(y)}")
            pen = "L"
        else:
            pen = "M"
    if len(path) == 1:  # a point would not be seen
        path.append("h0.1")
    return "".join(path)


def _band(low: "pd.Series[float]", high: "pd.Series[float]", x_axis: Axis, y_axis: Axis) -> str:
    bottom = 10**y_axis.low if y_axis.log else y_axis.low
    kept = [x for x in low.index if is_place(low[x]) and is_place(high[x]) and high[x] > bottom]
    upper = [f"{x_axis.place(x)} {max(y_axis.place(high[x]), TOP)}" for x in kept]
    lower = [f"{x_axis.place(x)} {y_axis.place(max(low[x], bottom))}" for x in reversed(kept)]
    return f"M{'L'.join(upper + lower)}Z" if kept else ""


def _steps(places: Sequence[tuple[float, float]]) -> str:
    path = [f"M{places[0][0]} {places[0][1]}"]
    path += [f"H{x}V{y}" for x, y in places[1:]]
    return "".join(path)

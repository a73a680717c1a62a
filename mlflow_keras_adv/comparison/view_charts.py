"""Charts of a comparison, in the format of MLflow's saved views."""

from collections.abc import Collection, Sequence
from typing import Any

# Of each kind what the runs have, in this order.
_BARS = ("final/accuracy", "final/gzip_bytes", "final/latency_ms_p50")
_COSTS = ("final/gzip_bytes", "final/latency_ms_p50", "final/flops")
_CURVES = ("val/accuracy", "val/loss", "train/loss")
_GRADIENTS = ("batch/loss", "gradient/norm", "optimizer/learning_rate")
_MAX_PARAMS = 6
_MAX_BARS = 3
_RUNS = 100

State = dict[str, Any]


def chart_state(metrics: Collection[str], params: Sequence[str], score: str | None) -> State:
    """Makes the part of a view that describes its charts.

    Chosen charts come first; MLflow's charts of the other metrics stay below, collapsed.

    Args:
        metrics: Names of all metrics of the runs.
        params: The params that differ.
        score: The metric that matters most.
    """
    bars = list(dict.fromkeys(key for key in (score, *_BARS) if key in metrics and key))
    if len(bars) < _MAX_BARS:
        bars += sorted(k for k in metrics if k.startswith("final/") and k not in bars)
    costs = [key for key in _COSTS if key in metrics and score and score in metrics]
    chosen: dict[str, list[State]] = {
        "Result": [_bar(key) for key in bars[:_MAX_BARS]],
        "Result over cost": [_scatter(score, key) for key in costs if score],
        "Curves": [_line(key) for key in _CURVES if key in metrics],
        "Steps and gradients": [_line(key) for key in _GRADIENTS if key in metrics],
    }
    if params and score:
        chosen["Result over parameters"] = [_parallel(params[:_MAX_PARAMS], score)]
    charts: list[State] = []
    sections: list[State] = []
    for name, some in chosen.items():
        if some:
            section = f"mka-{len(sections)}"
            sections.append(_section(section, name, shown=True))
            for number, each in enumerate(some):
                place = {"uuid": f"{section}-{number}", "metricSectionId": section}
                charts.append(each | place | {"deleted": False, "isGenerated": False})
    rest = {key.rpartition("/")[0] or "Model metrics" for key in metrics}
    rest = {"System metrics" if name == "system" else name for name in rest}
    for name in sorted(rest)[:30]:
        sections.append(_section(f"mka-{len(sections)}", name, shown=False))
    return {
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
        "selectedColumns": [
            *(f"metrics.`{key}`" for key in bars[:_MAX_BARS]),
            *(f"params.`{key}`" for key in params[:_MAX_PARAMS]),
        ],
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "SHOW_ALL",
        "viewMaximized": False,
        "runListHidden": False,
        "groupBy": None,
        "groupsExpanded": {},
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "chartsSearchFilter": "",
        "globalLineChartConfig": {
            "xAxisKey": "step",
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": "",
        },
    }


def _section(uuid: str, name: str, *, shown: bool) -> State:
    return {
        "uuid": uuid,
        "name": name,
        "display": shown,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
    }


def _bar(key: str) -> State:
    return {"type": "BAR", "metricKey": key, "runsCountToCompare": _RUNS}


def _line(key: str) -> State:
    return {
        "type": "LINE",
        "metricKey": key,
        "selectedMetricKeys": [key],
        "runsCountToCompare": _RUNS,
        "xAxisKey": "step",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "selectedXAxisMetricKey": "",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "lineSmoothness": 0,
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def _scatter(score: str, cost: str) -> State:
    return {
        "type": "SCATTER",
        "xaxis": {"key": cost, "type": "METRIC"},
        "yaxis": {"key": score, "type": "METRIC"},
        "runsCountToCompare": _RUNS,
    }


def _parallel(params: Sequence[str], score: str) -> State:
    return {
        "type": "PARALLEL",
        "selectedParams": list(params),
        "selectedMetrics": [score],
        "showAllRuns": False,
        "runsCountToCompare": _RUNS,
    }

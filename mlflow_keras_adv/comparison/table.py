"""The numbers of the variants side by side, as a table."""

import re
from collections.abc import Sequence

import pandas as pd

from mlflow_keras_adv.comparison.groups import Group, differing

# What comes first in a table; curves of batches and the machine's load are no result.
_ORDER = ("final/", "val/", "train/", "")
_NO_RESULT = ("batch/", "gradient/", "optimizer/", "system/", "final/claim/")
_SCORES = ("final/accuracy", "val/accuracy", "trial/score")
_LOWER = re.compile(
    r"loss|error|(^|[/_])(mse|mae|rmse|mape|perplexity|latency|size)([/_]|$)|_bytes$|_ms(_|$)"
)
_HIGHER = re.compile(r"accuracy|auc|precision|recall|f1|agreement|score$")


def metric_keys(groups: Sequence[Group]) -> list[str]:
    """The metrics that say how a run ended: `final/…`, `val/…`, `train/…`, then the others."""
    keys = {key for group in groups for run in group.runs for key in run.data.metrics}
    results = [key for key in keys if not key.startswith(_NO_RESULT)]
    place = {
        key: next(i for i, start in enumerate(_ORDER) if key.startswith(start)) for key in keys
    }
    return sorted(results, key=lambda key: (place[key], key))


def better(key: str) -> int:
    """Which values of a metric are better, by its name: 1 the higher, -1 the lower, 0 unknown."""
    if _LOWER.search(key):
        return -1
    return 1 if _HIGHER.search(key) else 0


def deciding_metric(groups: Sequence[Group]) -> str | None:
    """The metric that the variants are sorted by unasked; None where they have none."""
    keys = metric_keys(groups)
    ranked = [*_SCORES, *(key for key in keys if better(key) > 0), *keys]
    return next((key for key in ranked if key in keys), None)


def sort_groups(groups: Sequence[Group], score: str | None) -> list[Group]:
    """The best first; what has no such metric, or NaN, comes last."""

    def place(group: Group) -> tuple[bool, float]:
        value = group.value(score) if score else None
        if score is None or value is None or value.mean != value.mean:
            return True, 0.0
        return False, value.mean if better(score) < 0 else -value.mean

    return sorted(groups, key=place)


def comparison_frame(groups: Sequence[Group]) -> pd.DataFrame:
    """The table.

    Returns:
        One row per variant: `variant`, `runs` (how many), the metrics under their own names (the
        mean over the runs that have them; NaN where none has), after each metric `<name> ±` (the
        sample standard deviation) where a variant has it in several runs, `params.<key>` for what
        differs, and `run_ids`, separated by spaces.
    """
    keys = metric_keys(groups)
    spread = {
        key for key in keys if any((value := g.value(key)) and value.count > 1 for g in groups)
    }
    differ = differing([group.params for group in groups])
    rows = []
    for group in groups:
        row: dict[str, object] = {"variant": group.name, "runs": len(group.runs)}
        for key in keys:
            value = group.value(key)
            row[key] = value.mean if value else float("nan")
            if key in spread:
                row[f"{key} ±"] = value.std if value else float("nan")
        row |= {f"params.{key}": group.params.get(key) for key in differ}
        rows.append(row | {"run_ids": " ".join(run.info.run_id for run in group.runs)})
    return pd.DataFrame(rows)

"""The numbers of the variants side by side, as a table."""

import re
from collections.abc import Mapping, Sequence

import pandas as pd

from mlflow_keras_adv.comparison.chance import interval
from mlflow_keras_adv.comparison.groups import Group, differing
from mlflow_keras_adv.tracking.directions import Mode, direction

# The metrics that come first in a table; curves of batches and system metrics are no results.
_ORDER = ("final/", "val/", "train/", "")
_NO_RESULT = ("batch/", "gradient/", "optimizer/", "system/", "final/claim/")
_SCORES = ("final/accuracy", "val/accuracy", "trial/score")
# Costs of a model: axes of charts, not measures of its quality.
_COST = re.compile(
    r"_bytes$|_ms(_|$)|latency|flops|parameters|nonzeros|sparsity|/epoch$|per_second$"
)


def metric_keys(groups: Sequence[Group]) -> list[str]:
    """The metrics of the end of a run: `final/…`, `val/…`, `train/…`, then the others."""
    keys = {key for group in groups for run in group.runs for key in run.data.metrics}
    results = [key for key in keys if not key.startswith(_NO_RESULT)]
    place = {
        key: next(i for i, start in enumerate(_ORDER) if key.startswith(start)) for key in keys
    }
    return sorted(results, key=lambda key: (place[key], key))


def better(key: str, directions: Mapping[str, Mode]) -> int:
    """Whether a metric is better higher (1) or lower (-1); 0 if unknown."""
    return {"max": 1, "min": -1, None: 0}[direction(key, directions)]


def deciding_metric(groups: Sequence[Group], directions: Mapping[str, Mode]) -> str | None:
    """Finds the metric by which the variants are sorted by default: one that most of them have.

    Returns:
        Its name; None if there is no metric that is known to be better lower or higher.
    """
    keys = metric_keys(groups)
    having = {key: sum(group.value(key) is not None for group in groups) for key in keys}
    shared = [key for key in keys if 2 * having[key] >= len(groups)]
    known = [key for key in shared if better(key, directions) and not _COST.search(key)]
    losses = [key for key in known if key.endswith("loss")]
    ranked = [*(key for key in _SCORES if key in known), *(k for k in known if k not in losses)]
    return next(iter([*ranked, *losses]), None)


def sort_groups(
    groups: Sequence[Group], score: str | None, directions: Mapping[str, Mode]
) -> list[Group]:
    """Sorts variants, the best first; those without the metric, or with NaN, come last."""

    def place(group: Group) -> tuple[bool, float]:
        value = group.value(score) if score else None
        if score is None or value is None or value.mean != value.mean:
            return True, 0.0
        return False, value.mean if better(score, directions) < 0 else -value.mean

    return sorted(groups, key=place)


def comparison_frame(groups: Sequence[Group], score: str | None = None) -> pd.DataFrame:
    """The table.

    Args:
        groups: The variants.
        score: The metric that decides.

    Returns:
        One row per variant: `variant`, `runs` (how many), the metrics under their own names (the
        mean over the runs that have them; NaN where none has), after each metric `<name> ±` (the
        sample standard deviation) where a variant has it in several runs, of the metric that
        decides the bounds of its mean too (`<name> 95 % low`, `high`), `params.<key>` for what
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
            if key in spread and key == score:
                low, high = interval(group, key) or (float("nan"), float("nan"))
                row |= {f"{key} 95 % low": low, f"{key} 95 % high": high}
        row |= {f"params.{key}": group.params.get(key) for key in differ}
        rows.append(row | {"run_ids": " ".join(run.info.run_id for run in group.runs)})
    return pd.DataFrame(rows)

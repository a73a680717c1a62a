"""Runs that differ only in the seed form one variant, with a mean and a standard deviation."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PROJECT_ENTRY_POINT

from mlflow_keras_adv.comparison.selection import Selection

_SEED = re.compile(r"(?:^|[._/])(?:random_)?seed$")
_SEED_IN_NAME = re.compile(r"[-_. /]*\bseed[-_ =]?\d+$", re.IGNORECASE)
# MLflow's name for a run that was given none: "bold-cat-123".
_MADE_UP = re.compile(r"[a-z]+-[a-z]+-\d{1,3}")


@dataclass(frozen=True)
class Value:
    """A metric of a variant.

    Attributes:
        mean: Mean over the runs that have it; NaN if a value is.
        std: Sample standard deviation; NaN for a single run.
        count: Number of runs that have it.
    """

    mean: float
    std: float
    count: int


@dataclass(frozen=True)
class Group:
    """One variant.

    Attributes:
        name: A unique name.
        runs: One for each seed, the oldest first.
        params: Params that its runs have in common, those of their parents included.
    """

    name: str
    runs: tuple[Run, ...]
    params: dict[str, str]

    def value(self, key: str) -> Value | None:
        """Summarizes a metric by its last value in each run; None if no run has it."""
        values = [run.data.metrics[key] for run in self.runs if key in run.data.metrics]
        if not values:
            return None
        with np.errstate(all="ignore"):  # what was infinite stands as 1.8e308 in the store
            std = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
            return Value(float(np.mean(values)), std, len(values))


def group_by_seed(selection: Selection, by: Sequence[str] = ()) -> list[Group]:
    """Groups runs into variants, in the order of their first runs.

    Args:
        selection: The runs.
        by: Params that make a variant; `name` means the run's name. Default: the name without a
            seed in it, the technique, the experiment, and all params but seeds. A name that MLflow
            made up counts where there is no param `seed`.
    """
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in selection.runs:
        groups.setdefault(_key(run, selection.params(run), by), []).append(run)
    members = [runs[::-1] for runs in groups.values()]  # seeds in the order of their trainings
    params = [_common(runs, selection) for runs in members]
    names = _unlike([_stem(runs[0].info.run_name or "") for runs in members], params, members)
    return [
        Group(name, tuple(runs), found)
        for name, runs, found in zip(names, members, params, strict=True)
    ]


def differing(params: Sequence[dict[str, str]]) -> list[str]:
    """The keys whose values differ, without seeds, in alphabetical order."""
    keys = sorted({key for each in params for key in each})
    return [key for key in keys if not is_seed(key) and len({each.get(key) for each in params}) > 1]


def is_seed(key: str) -> bool:
    """Whether a param is a seed by its name: `seed`, `data.seed`, `random_seed`."""
    return bool(_SEED.search(key))


def _key(run: Run, params: dict[str, str], by: Sequence[str]) -> tuple[object, ...]:
    name = _stem(run.info.run_name or "")
    if by:
        return tuple(name if each == "name" else params.get(each) for each in by)
    seeded = any(is_seed(key) for key in params)
    tags = run.data.tags
    return (
        run.info.experiment_id,
        tags.get("technique"),
        tags.get(MLFLOW_PROJECT_ENTRY_POINT),
        None if seeded and _MADE_UP.fullmatch(name) else name,
        frozenset((key, value) for key, value in params.items() if not is_seed(key)),
    )


def _stem(name: str) -> str:
    return _SEED_IN_NAME.sub("", name) or name


def _common(runs: Sequence[Run], selection: Selection) -> dict[str, str]:
    first, *others = [selection.params(run) for run in runs]
    return {k: v for k, v in first.items() if all(other.get(k) == v for other in others)}


def _unlike(
    names: list[str], params: Sequence[dict[str, str]], members: Sequence[Sequence[Run]]
) -> list[str]:
    """Makes names unique: by up to three params, finally by an id."""
    shared = {name for name, count in Counter(names).items() if count > 1}
    for name in shared:
        places = [place for place, each in enumerate(names) if each == name]
        keys = differing([params[place] for place in places])[:3]
        for place in places:
            told = ", ".join(f"{key}={params[place].get(key, '')}" for key in keys)
            names[place] = f"{name} ({told})" if told else name
    shared = {name for name, count in Counter(names).items() if count > 1}
    return [
        f"{name} {runs[0].info.run_id[:8]}" if name in shared else name
        for name, runs in zip(names, members, strict=True)
    ]

"""Keras Tuner's trials as plain values: names, hyperparameters, one table of all."""

import math
from collections.abc import Mapping
from typing import Any

import keras_tuner
import pandas as pd

# What Hyperband keeps among the values of a trial.
OWN_PREFIX = "tuner/"


def trial_name(trial_id: str) -> str:
    """`trial-007`: the order of creation, which is what Keras Tuner's own ids count.

    Args:
        trial_id: Keras Tuner's id; where an oracle of the user's own gives ids that are no numbers,
            the head of it makes the name.
    """
    if trial_id.isdecimal():
        return f"trial-{int(trial_id):03d}"
    return f"trial-{trial_id[:8]}"


def active_values(hyperparameters: keras_tuner.HyperParameters) -> dict[str, Any]:
    """The values that count in a trial: none of a scope that was not entered, none of a tuner's."""
    known = {each.name for each in hyperparameters.space}
    return {
        name: value
        for name, value in hyperparameters.values.items()
        if not name.startswith(OWN_PREFIX)
        and (name not in known or hyperparameters.is_active(name))
    }


def described_space(hyperparameters: keras_tuner.HyperParameters) -> dict[str, str]:
    """The search space in words, by name of the hyperparameter.

    One that several conditional scopes define has them joined by `; `.
    """
    found: dict[str, str] = {}
    for each in hyperparameters.space:
        words = _range(type(each).__name__, each.get_config())
        for condition in each.conditions:
            words += f" if {condition.name} is {_choices(condition.values)}"
        found[each.name] = f"{found[each.name]}; {words}" if each.name in found else words
    return found


def trials_table(oracle: keras_tuner.Oracle) -> pd.DataFrame:
    """All trials, in the order of their creation.

    Returns:
        One row per trial: `trial` (its run's name), `status`, `score`, `best_step`, then one column
        per hyperparameter. NaN or None where there is nothing: no score yet, not active.
    """
    rows = []
    for trial_id in oracle.start_order:
        trial = oracle.trials[trial_id]
        row = {"trial": trial_name(trial_id), "status": trial.status, "score": trial.score}
        row["best_step"] = trial.best_step if trial.score is not None else None
        rows.append(row | active_values(trial.hyperparameters))
    return pd.DataFrame(rows, columns=None if rows else ["trial", "status", "score", "best_step"])


def score_of(trial: Any) -> float | None:
    """What a trial reached; None unless it is complete and the score is a finite number."""
    if trial.status != "COMPLETED" or trial.score is None or not math.isfinite(trial.score):
        return None
    return float(trial.score)


def _range(kind: str, config: Mapping[str, Any]) -> str:
    if kind == "Choice":
        return _choices(config["values"])
    if kind == "Boolean":
        return "true or false"
    if kind == "Fixed":
        return str(config["value"])
    if kind not in ("Int", "Float"):
        return kind
    words = f"{kind.lower()} from {config['min_value']} to {config['max_value']}"
    if config["step"] not in (None, 1):
        words += f" by {config['step']}"
    return words if config["sampling"] in (None, "linear") else f"{words}, {config['sampling']}"


def _choices(values: Any) -> str:
    return " or ".join(str(value) for value in values)

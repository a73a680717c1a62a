"""Keras Tuner's trials as plain values: names, hyperparameters, and a table of all trials."""

import math
from collections.abc import Mapping
from typing import Any

import keras_tuner
import pandas as pd

# The columns of the table beside the hyperparameters.
COLUMNS = ("trial", "status", "score", "best_step")
# Entries that Hyperband adds to the values of a trial.
OWN_PREFIX = "tuner/"


def trial_name(trial_id: str) -> str:
    """Names a trial by the order of creation, which Keras Tuner's ids count: `trial-007`.

    Args:
        trial_id: Keras Tuner's id; if a custom oracle gives ids that are no numbers, the beginning
            of the id is used.
    """
    if trial_id.isdecimal():
        return f"trial-{int(trial_id):03d}"
    return f"trial-{trial_id[:8]}"


def active_values(hyperparameters: keras_tuner.HyperParameters) -> dict[str, Any]:
    """The active values of a trial: without those of inactive scopes, and without a tuner's own."""
    known = {each.name for each in hyperparameters.space}
    return {
        name: value
        for name, value in hyperparameters.values.items()
        if not name.startswith(OWN_PREFIX)
        and (name not in known or hyperparameters.is_active(name))
    }


def described_space(hyperparameters: keras_tuner.HyperParameters) -> dict[str, str]:
    """Describes the search space in words, by name of the hyperparameter.

    The definitions of one in several conditional scopes are joined by `; `.
    """
    found: dict[str, str] = {}
    for each in hyperparameters.space:
        words = _range(type(each).__name__, each.get_config())
        for condition in each.conditions:
            words += f" if {condition.name} is {_choices(condition.values)}"
        found[each.name] = f"{found[each.name]}; {words}" if each.name in found else words
    return found


def trials_table(oracle: keras_tuner.Oracle) -> pd.DataFrame:
    """Tabulates all trials, in the order of their creation.

    Returns:
        A row per trial: `trial` (its run's name), `status`, `score`, `best_step`, then a column per
        hyperparameter; one with such a name is called `hyperparameter score`. NaN or None if there
        is no score yet, or the hyperparameter is not active.
    """
    rows = []
    for trial_id in oracle.start_order:
        trial = oracle.trials[trial_id]
        score = trial.score if score_of(trial) is None else score_for(oracle, trial)
        best_step = trial.best_step if trial.score is not None else None
        own = zip(COLUMNS, (trial_name(trial_id), trial.status, score, best_step), strict=True)
        values = active_values(trial.hyperparameters).items()
        named = {f"hyperparameter {k}" if k in COLUMNS else k: value for k, value in values}
        rows.append(dict(own) | named)
    return pd.DataFrame(rows, columns=None if rows else COLUMNS)


def score_for(oracle: keras_tuner.Oracle, trial: Any) -> float | None:
    """The score of a trial in the objective of an oracle; see `score_of`.

    A trial of an earlier search in the same folder may have the score of another objective; then it
    is the reported metric of this name, if there is one.
    """
    score, name = score_of(trial), oracle.objective.name
    ours = type(oracle).score_trial is not keras_tuner.Oracle.score_trial
    if score is None or ours or not trial.metrics.metrics:
        return score
    value = trial.metrics.get_best_value(name) if trial.metrics.exists(name) else None
    return None if value is None or not math.isfinite(value) else float(value)


def score_of(trial: Any) -> float | None:
    """The score of a trial; None unless it is complete and the score is a finite number."""
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

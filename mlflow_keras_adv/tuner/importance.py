"""Importance of hyperparameters, by a random forest."""

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

# A forest learns nothing from fewer trials; of two trials, any hyperparameter explains all.
MIN_TRIALS = 6
TREES = 64
REPEATS = 5


def hyperparameter_importance(values: pd.DataFrame, scores: pd.Series) -> dict[str, float]:
    """Computes the permutation importance of hyperparameters in a forest that predicts the score.

    Breiman: Random Forests, Machine Learning 45, 2001, section 10. It is measured on the trials
    that the forest was fitted to, so it explains these trials and not others; with few trials it
    says little.

    Args:
        values: A row per completed trial, a column per hyperparameter: numbers, bools, texts;
            missing where it was not active.
        scores: Their scores, finite numbers.

    Returns:
        Shares that sum to 1, the largest first. Empty if there are fewer than `MIN_TRIALS`, if no
        hyperparameter or score varies, or if none of those that vary explains the score.
    """
    varied = values.loc[:, values.nunique(dropna=False) > 1]
    if len(varied) < MIN_TRIALS or varied.empty or scores.nunique() < 2:
        return {}
    named = [name for name in varied if not _is_number(varied[name])]
    numbers = [name for name in varied if name not in named]
    columns = varied.astype(dict.fromkeys(numbers, float))
    for name in named:  # a category of its own for "not active"
        columns[name] = columns[name].map(lambda value: "" if pd.isna(value) else str(value))
    # Trees split anywhere: neither scales nor logarithms matter to them, and NaN is a side too.
    encoder = make_column_transformer((OrdinalEncoder(), named), remainder="passthrough")
    forest = make_pipeline(encoder, RandomForestRegressor(TREES, random_state=0))
    forest.fit(columns, scores)
    found = permutation_importance(forest, columns, scores, n_repeats=REPEATS, random_state=0)
    shares = np.maximum(found.importances_mean, 0)
    if not shares.sum():
        return {}
    named_shares = dict(zip(columns, (shares / shares.sum()).tolist(), strict=True))
    return dict(sorted(named_shares.items(), key=lambda item: -item[1]))


def _is_number(column: pd.Series) -> bool:
    present = column.dropna()
    return all(isinstance(value, bool | int | float | np.number | np.bool_) for value in present)

"""Linear models of scikit-learn: as nets beside which others are trained, and their errors."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

_PENALTIES = np.logspace(-2, 3, 20)


def ridge_net(x: np.ndarray, y: np.ndarray) -> keras.Model:
    """Ridge regression, its penalty found by cross-validation, as a net.

    Args:
        x: Features in their own units, shape [n, k].
        y: Numbers to predict, shape [n].

    Returns:
        A net of one dense layer, from [n, k] to [n, 1].
    """
    scaler = StandardScaler().fit(x)
    fitted = RidgeCV(_PENALTIES).fit(scaler.transform(x), y)
    dense = keras.layers.Dense(1)
    model = keras.Sequential([keras.Input(x.shape[1:]), dense])
    slopes = fitted.coef_ / scaler.scale_  # of the features in their own units
    bias = fitted.intercept_ - slopes @ scaler.mean_
    dense.set_weights([slopes[:, None], np.array([bias])])
    return model


def lda_net(x: np.ndarray, y: np.ndarray, dimensions: int) -> keras.Model:
    """Linear discriminant analysis: the projection that separates the classes best, as a net.

    Args:
        x: Samples, shape [n, ...].
        y: Integer labels, shape [n].
        dimensions: Dimensions of the projection, fewer than there are classes.

    Returns:
        A net without a bias, from [n, ...] to [n, dimensions].
    """
    lda = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto", n_components=dimensions)
    lda.fit(x.reshape(len(x), -1), y)
    dense = keras.layers.Dense(dimensions, use_bias=False)
    model = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Flatten(), dense])
    dense.set_weights([lda.scalings_[:, :dimensions]])
    return model


def linear_errors(
    train: tuple[Mapping[str, np.ndarray], np.ndarray],
    test: tuple[Mapping[str, np.ndarray], np.ndarray],
    *,
    classes: bool,
) -> tuple[float, float]:
    """Errors of the simplest models of a table: the share of wrong classes, or the mean error.

    Args:
        train: Columns [n, 1] by name, numbers or texts, and labels [n], to fit to.
        test: The same, to measure the errors on.
        classes: Whether the labels are classes; else they are numbers.

    Returns:
        The error of logistic regression (of ridge regression, where the labels are numbers), and of
        predicting the most frequent class (the median) for every row.
    """
    (x, y), (x_test, y_test) = train, test
    frame, frame_test = (
        pd.DataFrame({name: values[:, 0] for name, values in each.items()}) for each in (x, x_test)
    )
    texts = [name for name, values in x.items() if values.dtype == object]
    numbers = [name for name in frame if name not in texts]
    prepared = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), texts), (StandardScaler(), numbers)
    )
    linear = LogisticRegression(max_iter=2000) if classes else RidgeCV(_PENALTIES)
    answers = make_pipeline(prepared, linear).fit(frame, y).predict(frame_test)
    usual = np.bincount(y).argmax() if classes else np.median(y)

    def error(answers: Any) -> float:
        wrong = answers != y_test if classes else np.abs(answers - y_test)
        return float(np.mean(wrong))

    return error(answers), error(usual)

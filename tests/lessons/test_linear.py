"""Linear models, against scikit-learn's own answers; that of LDA is in tests/projects."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlflow_keras_adv.lessons.linear import linear_errors, ridge_net


def test_the_ridge_regression_is_scikit_learns_in_the_units_of_the_table() -> None:
    x, y = load_diabetes(return_X_y=True, scaled=False)
    found = np.ravel(ridge_net(x[:300], y[:300])(x[300:]))

    theirs = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 3, 20)))
    expected = theirs.fit(x[:300], y[:300]).predict(x[300:])
    # float32: terms of up to a thousand add up to some hundred
    np.testing.assert_allclose(found, expected, atol=0.05)


@pytest.mark.parametrize(
    "column", [np.arange(40.0), np.array(["a", "b"], object)[np.arange(40) % 2]]
)
def test_columns_of_one_kind_alone_are_enough(column: np.ndarray) -> None:
    table, y = {"only": column[:, None]}, np.arange(40) % 2

    linear, usual = linear_errors((table, y), (table, y), classes=True)

    assert usual == 0.5
    assert linear == (0 if column.dtype == object else pytest.approx(0.5, abs=0.1))


def test_of_numbers_the_median_is_the_usual_answer() -> None:
    x, y = {"x": np.arange(9.0)[:, None]}, np.arange(9.0) ** 2

    linear, usual = linear_errors((x, y), (x, y), classes=False)

    assert usual == np.abs(y - 16).mean()
    assert linear < usual

"""What the regressors are made of; the trainings are in test_catalogue."""

import numpy as np
import pytest
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from projects.data import load
from projects.regression import net, ridge, slipped


def test_of_the_labels_a_share_is_ten_times_too_large() -> None:
    y = np.arange(1.0, 51.0)
    wrong = slipped(y, 0.1, seed=0)

    assert sorted(set(wrong / y)) == [1, 10]
    assert (wrong != y).sum() == 5
    assert y.max() == 50  # the right ones are left as they are


def test_the_ridge_regression_is_scikit_learns_in_the_units_of_the_table() -> None:
    rows = load("diabetes", kinds=("features",), goals=("numbers",))
    found = np.ravel(ridge(rows, rows.y_train)(rows.x_test))

    theirs = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 3, 20)))
    expected = theirs.fit(rows.x_train, rows.y_train).predict(rows.x_test)
    # float32: terms of up to a thousand add up to some hundred
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_the_net_begins_at_the_median_in_the_units_of_the_labels() -> None:
    rows = load("diabetes", kinds=("features",), goals=("numbers",))
    model = net(rows, 16, rows.y_train)
    *_, dense, _ = model.layers
    dense.set_weights([np.zeros((16, 1)), np.zeros(1)])

    answers = np.ravel(model(rows.x_test))
    assert answers == pytest.approx(np.median(rows.y_train))

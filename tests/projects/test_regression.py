"""What the regressors are made of; the trainings are in test_catalogue."""

import numpy as np
import pytest

from projects.data import load
from projects.regression import net, slipped


def test_of_the_labels_a_share_is_ten_times_too_large() -> None:
    y = np.arange(1.0, 51.0)
    wrong = slipped(y, 0.1, seed=0)

    assert sorted(set(wrong / y)) == [1, 10]
    assert (wrong != y).sum() == 5
    assert y.max() == 50  # the right ones are left as they are


def test_the_net_begins_at_the_median_in_the_units_of_the_labels() -> None:
    rows = load("diabetes", kinds=("features",), goals=("numbers",))
    model = net(rows, 16, rows.y_train)
    *_, dense, _ = model.layers
    dense.set_weights([np.zeros((16, 1)), np.zeros(1)])

    answers = np.ravel(model(rows.x_test))
    assert answers == pytest.approx(np.median(rows.y_train))

"""Calibration, confusion and the numbers of each class, against arithmetic and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from mlflow_keras_adv.metrics.views.classes import (
    calibration_table,
    confusion_counts,
    expected_calibration_error,
    per_class_table,
    probabilities,
)


def test_the_calibration_error_is_that_of_the_paper() -> None:
    confidence = np.array([0.5, 0.6, 0.8])
    table = calibration_table(confidence, np.array([True, True, False]), bins=2)
    # A bin holds its upper edge: 0.5 is alone in the first.
    assert table["samples"].tolist() == [1, 2]
    assert table["accuracy"].tolist() == [1, 0.5]
    assert expected_calibration_error(table) == pytest.approx((0.5 * 1 + 0.2 * 2) / 3)


def test_who_is_as_right_as_sure_has_no_calibration_error() -> None:
    confidence = np.repeat([0.25, 0.75], 4)
    correct = np.array([1, 0, 0, 0, 1, 1, 1, 0], bool)
    table = calibration_table(confidence, correct)
    assert len(table) == 15
    assert expected_calibration_error(table) == 0
    assert table.loc[table["samples"] == 0, "accuracy"].isna().all()


def test_an_unknown_confidence_makes_the_error_unknown() -> None:
    table = calibration_table(np.array([0.9, np.nan]), np.array([True, False]))
    assert np.isnan(expected_calibration_error(table))
    with pytest.raises(ValueError, match="at least 1 bin; got 0"):
        calibration_table(np.array([0.9]), np.array([True]), bins=0)


def test_logits_and_probabilities_are_told_apart() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 10))
    soft = probabilities(logits)
    np.testing.assert_allclose(soft.sum(axis=1), 1, rtol=1e-12)
    assert (soft.argmax(axis=1) == logits.argmax(axis=1)).all()
    int8 = np.round(soft * 256) / 256  # what an int8 softmax gives; rows sum to 1 no more
    assert np.abs(int8.sum(axis=1) - 1).max() > 0
    np.testing.assert_array_equal(probabilities(int8), int8)
    assert not np.array_equal(probabilities(int8, from_logits=True), int8)
    unknown = np.vstack([soft, np.full(10, np.nan)])
    np.testing.assert_array_equal(probabilities(unknown), unknown)
    assert np.isnan(probabilities(np.vstack([logits, np.full(10, np.nan)]))[-1]).all()


def test_each_class_has_its_numbers() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    chosen = np.where(rng.random(60) < 0.6, labels, rng.integers(0, 3, 60))
    counts = confusion_counts(labels, chosen, 3)
    np.testing.assert_array_equal(counts, confusion_matrix(labels, chosen))
    table = per_class_table(labels, chosen, ["a", "b", "c"])
    expected = precision_recall_fscore_support(labels, chosen)
    for column, values in zip(("precision", "recall", "f1", "samples"), expected, strict=True):
        np.testing.assert_allclose(table[column], values, rtol=1e-12)


def test_a_class_that_is_not_there_has_no_recall_and_no_answer_is_a_wrong_one() -> None:
    labels, chosen = np.array([0, 0, 1]), np.array([0, -1, 1])
    assert confusion_counts(labels, chosen, 3).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    table = per_class_table(labels, chosen, range(3))
    assert table["recall"].tolist()[:2] == [0.5, 1]
    assert table["precision"].tolist()[:2] == [1, 1]
    assert table.loc[2, ["precision", "recall", "f1"]].isna().all()

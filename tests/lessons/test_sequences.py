"""Sequences, by the rule of their tags."""

import numpy as np
import pytest

from mlflow_keras_adv.lessons.sequences import KEYS, PADDING, SHORTEST, accuracies, sequences


def test_the_tag_of_a_word_is_the_word_and_the_key() -> None:
    tokens, tags, places = sequences(200, 20, seed=0)

    for row, answers, place in zip(tokens, tags, places, strict=True):
        (length,) = (row == PADDING).argmax(keepdims=True) if PADDING in row else (20,)
        assert SHORTEST <= length <= 20
        assert (row[length:] == PADDING).all()
        keys = np.flatnonzero((row > PADDING) & (row <= KEYS))
        assert list(keys) == [place]
        key, words = row[place] - 1, row[:length] - 1 - KEYS
        expected = np.where(np.arange(length) == place, key, (words + key) % KEYS)
        np.testing.assert_array_equal(answers[:length], expected)


def test_accuracies_count_words_alone() -> None:
    x, y, places = sequences(50, 16, seed=0)

    class Knows:  # the tags of all within 3 places of the key, and 1 more than those of the others
        def predict(self, *_: object, **__: object) -> np.ndarray:
            far = np.abs(np.arange(16) - places[:, None]) > 3
            return np.eye(KEYS)[(y + far) % KEYS]

    found = accuracies(Knows(), x, y, places, 3)
    assert (found["accuracy_near"], found["accuracy_far"]) == (1, 0)
    near = (np.abs(np.arange(16) - places[:, None]) <= 3) & (x > 0)
    assert found["accuracy_counted"] == pytest.approx(near.sum() / (x > 0).sum())

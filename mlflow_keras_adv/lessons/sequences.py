"""Sequences of words with one key in each, on which the tags of all words depend."""

from typing import Any

import numpy as np

KEYS, WORDS, PADDING = 4, 24, 0  # 1 to KEYS are the keys, the numbers after them the words
SHORTEST = 6  # tokens of a sequence


def sequences(count: int, longest: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws sequences. The tag of a word is (word + key) mod KEYS; the tag of a key is the key.

    Args:
        count: Number of sequences.
        longest: Length to which all are padded; they have SHORTEST to `longest` tokens.
        seed: Seed of lengths, words, keys and their places.

    Returns:
        Tokens, int32 [count, longest]; their tags, int32 of the same shape; and the index of the
        key in each sequence, [count].
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(SHORTEST, longest + 1, count)
    words, keys = rng.integers(WORDS, size=(count, longest)), rng.integers(KEYS, size=count)
    places, rows = rng.integers(lengths), np.arange(count)
    tokens, tags = words + 1 + KEYS, (words + keys[:, None]) % KEYS
    tokens[rows, places], tags[rows, places] = keys + 1, keys
    padding = np.arange(longest) >= lengths[:, None]
    tokens[padding], tags[padding] = PADDING, 0
    return tokens.astype(np.int32), tags.astype(np.int32), places


def accuracies(
    model: Any, x: np.ndarray, y: np.ndarray, places: np.ndarray, reach: int
) -> dict[str, float]:
    """Computes the accuracy of tags, without padding, near the key and far from it.

    Args:
        model: A Keras model that gives scores [count, longest, KEYS].
        x: Tokens [count, longest].
        y: Their tags.
        places: The index of the key in each sequence, [count].
        reach: Largest distance from the key that counts as near.

    Returns:
        `accuracy_counted` of all tokens, `accuracy_near` and `accuracy_far`.
    """
    right = model.predict(x, batch_size=256, verbose=0).argmax(axis=-1) == y
    words = x != PADDING
    far = np.abs(np.arange(x.shape[1]) - places[:, None]) > reach
    parts = {"counted": words, "near": words & ~far, "far": words & far}
    return {f"accuracy_{name}": float(right[part].mean()) for name, part in parts.items()}

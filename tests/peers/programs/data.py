"""Small data sets: the same at each call, and drawn from generators of their own."""

from typing import Any

import numpy as np

Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def table(examples: int = 48) -> Arrays:
    """Eight features and one of three classes."""
    random = np.random.default_rng(1)
    x = random.normal(size=(examples, 8)).astype("float32")
    return x, np.argmax(x[:, :3] + 0.3 * random.normal(size=(examples, 3)), axis=1)


def numbers(examples: int = 48) -> Arrays:
    """Eight features and one number."""
    x, _ = table(examples)
    return x, x.sum(axis=1, keepdims=True)


def images(examples: int = 48) -> Arrays:
    """Pictures of 8 by 8 points, of three classes."""
    random = np.random.default_rng(2)
    y = random.integers(0, 3, examples)
    x = random.normal(size=(examples, 8, 8, 1)).astype("float32")
    x[np.arange(examples), 2 * y] += 2.0
    return x, y


def sequences(examples: int = 32) -> Arrays:
    """Seven tokens each, of twelve, with padding behind; and one of three classes."""
    random = np.random.default_rng(3)
    x = random.integers(1, 12, (examples, 7))
    x[:, 5:] *= random.integers(0, 2, (examples, 1))
    return x, x[:, 0] % 3

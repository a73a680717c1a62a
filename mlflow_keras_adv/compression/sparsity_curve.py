"""Records the share of zeros in a model's masks after each step of a training."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from mlflow_keras_adv.compression.masks import zero_share


class SparsityCurve:
    """Reads the masks on the steps that renew them; between those nothing changes.

    Args:
        masks: Variables of zeros and ones.
        due: The steps that renew them, from 1.
        start: The share of zeros before the first of them.

    Attributes:
        values: The share of zeros after each step so far.
    """

    def __init__(self, masks: Sequence[Any], due: Collection[int], *, start: float) -> None:
        self._masks = masks
        self._due = frozenset(due)
        self._latest = start
        self.values: list[float] = []

    def after_batch(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Must be called after each batch, by either Keras."""
        if len(self.values) + 1 in self._due:
            self._latest = zero_share([np.asarray(mask) for mask in self._masks])
        self.values.append(self._latest)

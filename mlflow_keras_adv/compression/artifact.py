"""What a conversion gives: a `.tflite` file, and how it compares with what it was made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Artifact:
    """A `.tflite` file that LiteRT has run, and how it compares with its source on the same data.

    Attributes:
        content: The file.
        scheme: How its numbers are stored: "float32", or the name of the scheme.
        difference: The root of the mean square of what its answers and its source's differ by, in
            parts of that of the source's answers; the worst of the outputs.
        difference_max: The largest that they differ by, relative to the source's largest answer;
            the worst of the outputs.
        agreement: Share of the decisions in which it is as its source; the worst of the outputs
            that decide, among classes or yes and no; None if none does.
        float_layers: Layers that the scheme could not quantize, by name; empty where it is not
            known layer by layer.
        expected: What the source answers on the data, by the outputs' names.
        feeds: The data, by the inputs' names.
        trained_difference: How far a file from training is from the trained model with its
            rounding: root mean square, relative to the largest answer. None for others.
        operations: In a float file, for each layer with kernels the names of its operations.
        losses: What the source was compiled with, by the outputs' names; empty if it was not.
    """

    content: bytes
    scheme: str
    difference: float
    difference_max: float
    agreement: float | None
    float_layers: tuple[str, ...]
    expected: Arrays
    feeds: Arrays
    trained_difference: float | None = None
    operations: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    losses: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> Path:
        """Writes the file.

        Args:
            path: Where to; its folder exists.

        Returns:
            The path.
        """
        file = Path(path)
        file.write_bytes(self.content)
        return file

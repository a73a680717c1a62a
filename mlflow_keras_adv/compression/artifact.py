"""The result of a conversion: a `.tflite` file, and its differences from its source."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Artifact:
    """A `.tflite` file that LiteRT has run, compared with its source on the same data.

    Attributes:
        content: The file.
        scheme: The format of its numbers: "float32", or the name of the scheme.
        difference: Root mean square difference of its outputs from those of its source, relative to
            the root mean square of the latter; of several outputs the worst.
        difference_max: Largest difference, relative to the source's largest output; of several
            outputs the worst.
        agreement: Share of equal decisions (classes, or yes and no); of several outputs with
            decisions the worst; None if there is none.
        float_layers: Names of the layers that the scheme could not quantize; empty if that is not
            known layer by layer.
        expected: The outputs of the source for the data, by name.
        feeds: The data, by the names of the inputs.
        trained_difference: For a file from quantization-aware training, its root mean square
            difference from the trained model with rounding, relative to the largest output; else
            None.
        operations: In a float file, the names of the operations of each layer with kernels.
        losses: The compiled losses of the source, by the names of the outputs; empty if it was not
            compiled.
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
            path: Path of the file, in an existing folder.

        Returns:
            The path.
        """
        file = Path(path)
        file.write_bytes(self.content)
        return file

"""Parameters that many scripts take: the type of each says which values are valid, and its help.

A script's docstring describes its own, and those of these that mean something else there.
"""

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

Images = Annotated[
    str,
    Field(
        description="digits, keras:mnist (or another of keras.datasets), a folder of images, or "
        "the path of an .npz file."
    ),
]
Examples = Annotated[
    str,
    Field(
        description="digits, keras:mnist (or another of keras.datasets), breast_cancer, a folder "
        "of images, or the path of an .npz, .csv or .parquet file."
    ),
]
Target = Annotated[str, Field(description="Column to predict, of a .csv or .parquet file.")]
BatchSize = Annotated[PositiveInt, Field(description="Examples per step.")]
Seed = Annotated[
    NonNegativeInt,
    Field(description="Seed of weights, order of examples and choice of the validation split."),
]

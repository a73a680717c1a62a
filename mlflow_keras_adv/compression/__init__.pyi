"""The public names, each with the module in which it is; `lazy_loader` reads them here."""

from .artifact import Artifact
from .bridge import to_keras, to_tf_keras
from .channel_pruning import prune_channels
from .clustering import cluster
from .conversion import convert
from .pruning import prune
from .quantization import (
    dynamic_int4,
    dynamic_int8,
    float16,
    int8,
    int8_io,
    int16x8,
    quantize,
    weight_only_int4,
    weight_only_int8,
)
from .quantization_aware import quantize_aware
from .schedules import constant, polynomial

__all__ = [
    "Artifact",
    "cluster",
    "constant",
    "convert",
    "dynamic_int4",
    "dynamic_int8",
    "float16",
    "int8",
    "int8_io",
    "int16x8",
    "polynomial",
    "prune",
    "prune_channels",
    "quantize",
    "quantize_aware",
    "to_keras",
    "to_tf_keras",
    "weight_only_int4",
    "weight_only_int8",
]

"""A model in, a smaller model or a `.tflite` file out, and what each of them weighs and takes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlflow_keras_adv.keywords import answers_keywords

if TYPE_CHECKING:
    from mlflow_keras_adv.compression.artifact import Artifact
    from mlflow_keras_adv.compression.bridge import to_keras, to_tf_keras
    from mlflow_keras_adv.compression.channel_pruning import prune_channels
    from mlflow_keras_adv.compression.clustering import cluster
    from mlflow_keras_adv.compression.conversion import convert
    from mlflow_keras_adv.compression.pruning import prune
    from mlflow_keras_adv.compression.quantization import (
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
    from mlflow_keras_adv.compression.quantization_aware import quantize_aware
    from mlflow_keras_adv.compression.schedules import constant, polynomial

# Imported on first use: the footprint of a model needs neither tf_keras nor tfmot.
_HOMES = {
    "Artifact": "artifact",
    "cluster": "clustering",
    "constant": "schedules",
    "convert": "conversion",
    "dynamic_int4": "quantization",
    "dynamic_int8": "quantization",
    "float16": "quantization",
    "int16x8": "quantization",
    "int8": "quantization",
    "int8_io": "quantization",
    "polynomial": "schedules",
    "prune": "pruning",
    "prune_channels": "channel_pruning",
    "quantize": "quantization",
    "quantize_aware": "quantization_aware",
    "to_keras": "bridge",
    "to_tf_keras": "bridge",
    "weight_only_int4": "quantization",
    "weight_only_int8": "quantization",
}

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return answers_keywords(getattr(import_module(f"{__name__}.{_HOMES[name]}"), name))


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

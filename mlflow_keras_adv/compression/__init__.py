"""Compression: makes a smaller model or a `.tflite` file of a model."""

from typing import Any

import lazy_loader

from mlflow_keras_adv.keywords import answers_keywords

# A name is imported on first use: a float file needs neither tf_keras nor tfmot.
_imported, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = answers_keywords(_imported(name))
    return value

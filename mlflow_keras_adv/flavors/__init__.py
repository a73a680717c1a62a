"""Logs Keras models and `.tflite` files as MLflow LoggedModels, and loads them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["keras", "litert"])

"""How Keras models and `.tflite` files become MLflow LoggedModels, and are loaded again."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["keras", "litert"])

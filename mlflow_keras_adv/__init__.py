"""MLflow for Keras beyond fit(): every step, every technique, every trial on one record.

Example:
    ```python
    import keras
    import mlflow_keras_adv as mka

    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with mka.track("first", params={"epochs": 3}):
        model.fit(x, y, validation_split=0.2, epochs=3, callbacks=[mka.MlflowLogger()])
        mka.log_model(model, name="digits", input_example=x[:2])
    # mlflow ui    ->  batch/loss, gradient/norm, optimizer/learning_rate, train/..., val/...
    ```
"""

from importlib import import_module
from types import ModuleType
from typing import Any

import lazy_loader

from mlflow_keras_adv.keywords import answers_keywords
from mlflow_keras_adv.when_imported import when_imported

# A name is imported on first use: TensorFlow takes seconds, and who only tracks or reads runs needs
# none of it.
_imported, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def _know_fits() -> None:
    import_module(f"{__name__}.training.fits").know_fits()


for _library in ("keras", "tf_keras"):
    when_imported(_library, _know_fits)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    extras = import_module(f"{__name__}.extras")
    extras.require_mlflow()
    with extras.extra("tensorflow"):
        value = _imported(name)
    if not isinstance(value, ModuleType):
        value = globals()[name] = answers_keywords(value)
    return value

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
from typing import TYPE_CHECKING, Any

from mlflow_keras_adv.keywords import answers_keywords
from mlflow_keras_adv.when_imported import when_imported

if TYPE_CHECKING:
    from mlflow_keras_adv import compression, litert, registry
    from mlflow_keras_adv.autologging import autolog
    from mlflow_keras_adv.callbacks.checkpoints import Checkpoints, load_best
    from mlflow_keras_adv.callbacks.layer_norms import LayerNorms
    from mlflow_keras_adv.callbacks.mlflow_logger import MlflowLogger
    from mlflow_keras_adv.callbacks.predictions import Predictions
    from mlflow_keras_adv.callbacks.stall_alert import StallAlert
    from mlflow_keras_adv.claims import Claim, largest_difference, log_claims, logged_claims
    from mlflow_keras_adv.comparison.compare import Comparison, compare
    from mlflow_keras_adv.errors import UserError
    from mlflow_keras_adv.measure import log_finished_model
    from mlflow_keras_adv.measure_file import log_finished_file
    from mlflow_keras_adv.models import load_model, log_model
    from mlflow_keras_adv.report import curve, log_comparison
    from mlflow_keras_adv.side_by_side import measure_models
    from mlflow_keras_adv.tracking.run import Run, attach_run, current_run, track
    from mlflow_keras_adv.tracking.values import Dataset
    from mlflow_keras_adv.trade_off import TradeOff
    from mlflow_keras_adv.training.distillation import Distiller
    from mlflow_keras_adv.training.distillation_losses import Hint, SoftTargets
    from mlflow_keras_adv.training.loop import Loop
    from mlflow_keras_adv.training.schedules import ConstantThenExponential, CyclicalRate, WarmUp
    from mlflow_keras_adv.tuner.search import search_run_id, track_search
    from mlflow_keras_adv.variants import Technique, technique

# Where each public name lives. It is imported on first use: TensorFlow takes seconds, and who only
# tracks or reads runs needs none of it.
_HOMES = {
    "Checkpoints": "callbacks.checkpoints",
    "Claim": "claims",
    "Comparison": "comparison.compare",
    "ConstantThenExponential": "training.schedules",
    "CyclicalRate": "training.schedules",
    "Dataset": "tracking.values",
    "Distiller": "training.distillation",
    "Hint": "training.distillation_losses",
    "LayerNorms": "callbacks.layer_norms",
    "Loop": "training.loop",
    "MlflowLogger": "callbacks.mlflow_logger",
    "Predictions": "callbacks.predictions",
    "Run": "tracking.run",
    "SoftTargets": "training.distillation_losses",
    "StallAlert": "callbacks.stall_alert",
    "Technique": "variants",
    "TradeOff": "trade_off",
    "UserError": "errors",
    "WarmUp": "training.schedules",
    "attach_run": "tracking.run",
    "autolog": "autologging",
    "compare": "comparison.compare",
    "compression": "compression",
    "current_run": "tracking.run",
    "curve": "report",
    "largest_difference": "claims",
    "litert": "litert",
    "load_best": "callbacks.checkpoints",
    "load_model": "models",
    "log_claims": "claims",
    "log_comparison": "report",
    "log_finished_file": "measure_file",
    "log_finished_model": "measure",
    "log_model": "models",
    "logged_claims": "claims",
    "measure_models": "side_by_side",
    "registry": "registry",
    "technique": "variants",
    "track": "tracking.run",
    "search_run_id": "tuner.search",
    "track_search": "tuner.search",
}

__all__ = [
    "Checkpoints",
    "Claim",
    "Comparison",
    "ConstantThenExponential",
    "CyclicalRate",
    "Dataset",
    "Distiller",
    "Hint",
    "LayerNorms",
    "Loop",
    "MlflowLogger",
    "Predictions",
    "Run",
    "SoftTargets",
    "StallAlert",
    "Technique",
    "TradeOff",
    "UserError",
    "WarmUp",
    "attach_run",
    "autolog",
    "compare",
    "compression",
    "current_run",
    "curve",
    "largest_difference",
    "litert",
    "load_best",
    "load_model",
    "log_claims",
    "log_comparison",
    "log_finished_file",
    "log_finished_model",
    "log_model",
    "logged_claims",
    "measure_models",
    "registry",
    "search_run_id",
    "technique",
    "track",
    "track_search",
]


def _know_fits() -> None:
    import_module(f"{__name__}.training.fits").know_fits()


for _library in ("keras", "tf_keras"):
    when_imported(_library, _know_fits)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    extras = import_module(f"{__name__}.extras")
    extras.require_mlflow()
    with extras.extra("tensorflow"):
        home = import_module(f"{__name__}.{_HOMES[name]}")
    if _HOMES[name] == name:  # a package
        return home
    return answers_keywords(getattr(home, name))


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

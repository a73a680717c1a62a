"""The public names, each with the module in which it is; `lazy_loader` reads them here."""

from . import compression, registry
from .autologging import autolog
from .callbacks.checkpoints import Checkpoints, load_best
from .callbacks.layer_norms import LayerNorms
from .callbacks.mlflow_logger import MlflowLogger
from .callbacks.predictions import Predictions
from .callbacks.stall_alert import StallAlert
from .comparison.compare import Comparison, compare
from .comparison.report import curve, log_comparison
from .distillation.distiller import Distiller
from .distillation.losses import Hint, SoftTargets
from .errors import UserError
from .evaluation.finished_file import log_finished_file
from .evaluation.finished_model import log_finished_model
from .evaluation.measure_models import measure_models
from .evaluation.promote import promote
from .flavors import litert
from .flavors.keras import load_model, log_model
from .lessons.claims import (
    Claim,
    largest_difference,
    log_claims,
    logged_claims,
)
from .lessons.technique import Technique, technique
from .lessons.trade_off import TradeOff
from .tracking.run import (
    Run,
    attach_run,
    current_run,
    track,
)
from .tracking.values import Dataset
from .training.loop import Loop
from .training.schedules import (
    ConstantThenExponential,
    CyclicalRate,
    WarmUp,
)
from .tuner.search import search_run_id, track_search

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
    "promote",
    "registry",
    "search_run_id",
    "technique",
    "track",
    "track_search",
]

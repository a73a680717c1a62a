"""Whether a metric is better lower or higher, as Keras defines it, not by its name."""

from collections.abc import Iterable
from typing import Any, Literal

import keras

from mlflow_keras_adv.compat.keras import direction_of, wrapped_by

Mode = Literal["min", "max"]


def mode_of(metric: Any) -> Mode | None:
    """Whether a metric of Keras is to fall ("min") or to rise ("max"); None where Keras is silent.

    Args:
        metric: A metric, or a function that Keras made of a name.
    """
    return direction_of(metric)


def mode_of_name(name: str, metrics: Iterable[Any] = ()) -> Mode | None:
    """The same of a name in Keras' logs; None where neither the metrics nor Keras know it.

    Args:
        name: Without the prefix `val_`.
        metrics: Those of the model, which may be called otherwise than Keras calls them.
    """
    if name == "loss" or name.endswith("_loss"):
        return "min"
    for metric in metrics:
        for each in (metric, *getattr(metric, "metrics", [])):
            # The metrics of several outputs have the name of theirs before their own.
            if name == each.name or name.endswith(f"_{each.name}"):
                known = mode_of(each) or _known_to_keras(each.name) or _of_class(each)
                if known is not None:
                    return known
    return _known_to_keras(name)


def _known_to_keras(name: str) -> Mode | None:
    try:
        found = keras.metrics.get(name)
    except ValueError:
        return None
    # Of a name like "mse" Keras gives the function; the metric of it knows.
    return mode_of(found) or _of_class(found)


# What measures an error, where Keras itself says nothing.
_ERRORS = (
    *("MeanSquaredError", "MeanAbsoluteError", "MeanAbsolutePercentageError"),
    *("MeanSquaredLogarithmicError", "RootMeanSquaredError", "LogCoshError", "KLDivergence"),
    *("Poisson", "BinaryCrossentropy", "CategoricalCrossentropy", "SparseCategoricalCrossentropy"),
    *("Hinge", "SquaredHinge", "CategoricalHinge", "FalsePositives", "FalseNegatives"),
    *("mean_squared_error", "mean_absolute_error", "mean_absolute_percentage_error"),
    *("mean_squared_logarithmic_error", "log_cosh", "kl_divergence", "poisson", "huber"),
    *("binary_crossentropy", "categorical_crossentropy", "sparse_categorical_crossentropy"),
    *("hinge", "squared_hinge", "categorical_hinge", "binary_focal_crossentropy"),
    "categorical_focal_crossentropy",
)
_GAINS = (
    *("R2Score", "F1Score", "FBetaScore", "IoU", "MeanIoU", "BinaryIoU", "OneHotIoU"),
    *("OneHotMeanIoU", "AUC", "Precision", "Recall", "TruePositives", "TrueNegatives"),
    *("PrecisionAtRecall", "RecallAtPrecision", "SensitivityAtSpecificity"),
    *("SpecificityAtSensitivity", "CosineSimilarity", "PearsonCorrelation"),
    *("ConcordanceCorrelation", "Accuracy", "BinaryAccuracy", "CategoricalAccuracy"),
    *("SparseCategoricalAccuracy", "TopKCategoricalAccuracy", "SparseTopKCategoricalAccuracy"),
)


def _of_class(metric: Any) -> Mode | None:
    names = [each.__name__ for each in type(metric).__mro__]
    wrapped = wrapped_by(metric)[0] or metric  # of a function that `compile` was given
    names.append(getattr(wrapped, "__name__", ""))
    if any(name in _ERRORS for name in names):
        return "min"
    return "max" if any(name in _GAINS for name in names) else None

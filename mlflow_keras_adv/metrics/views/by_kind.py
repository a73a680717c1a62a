"""The view of each kind of task."""

from collections.abc import Callable, Mapping

from mlflow_keras_adv.metrics.task import Kind
from mlflow_keras_adv.metrics.views.classes import classification, tagging
from mlflow_keras_adv.metrics.views.decisions import binary, multi_label
from mlflow_keras_adv.metrics.views.numbers import forecast, reconstruction, regression
from mlflow_keras_adv.metrics.views.segmentation import segmentation
from mlflow_keras_adv.metrics.views.view import Output, View

_VIEWS: Mapping[Kind, Callable[[Output], View]] = {
    "classification": classification,
    "binary": binary,
    "multi-label": multi_label,
    "regression": regression,
    "segmentation": segmentation,
    "tagging": tagging,
    "forecast": forecast,
    "reconstruction": reconstruction,
}


def view_of(kind: Kind, output: Output) -> View:
    """Numbers, tables and figures of the answers on one output.

    Raises:
        ValueError: Labels, answers, weights or names do not fit each other or this kind.
    """
    return _VIEWS[kind](output)

"""Scores a `.tflite` file with the same losses and metrics as its source."""

from collections.abc import Callable
from typing import Any

from mlflow_keras_adv.metrics.criteria import Criteria
from mlflow_keras_adv.metrics.score import Scores, score
from mlflow_keras_adv.tflite.runtime import LiteRTModel


def score_file(
    model: LiteRTModel,
    criteria: Criteria,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    metrics: Any = None,
) -> Scores:
    """Scores a file.

    Args:
        model: The file.
        criteria: Losses and metrics, usually those of the model that it was made from.
        x: Samples; see `metrics.score.score` for this and the other arguments.
        y: Labels, in the structure of the source's outputs.
        sample_weight: As in `evaluate`.
        metrics: Metrics instead of those of the criteria.

    Returns:
        The scores.

    Raises:
        UserError: There are no metrics, or they do not fit the labels and the outputs.
    """
    return score(criteria, x, y, sample_weight, metrics=metrics, answer=answering(model, criteria))


def answering(model: LiteRTModel, criteria: Criteria) -> Callable[[Any], Any]:
    """Makes a function that predicts a batch with inputs and outputs in the source's structure."""

    def answer(inputs: Any) -> Any:
        return criteria.arranged(model.predict(criteria.named(inputs)))

    return answer

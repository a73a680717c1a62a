"""Scores of a `.tflite` file, as LiteRT runs it: by the same objects as those of its source."""

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
        criteria: What it is scored by; mostly those of the model that it was made of.
        x: See `metrics.score.score`; so are the other arguments.
        y: Labels, in the structure of the source's outputs.
        sample_weight: As `evaluate` takes it.
        metrics: Instead of those of the criteria.

    Raises:
        UserError: There is nothing to score by, or it does not fit the labels and the answers.
    """
    return score(criteria, x, y, sample_weight, metrics=metrics, answer=answering(model, criteria))


def answering(model: LiteRTModel, criteria: Criteria) -> Callable[[Any], Any]:
    """What answers a batch as the source does: inputs and outputs in the structure of its own."""

    def answer(inputs: Any) -> Any:
        return criteria.arranged(model.predict(criteria.named(inputs)))

    return answer

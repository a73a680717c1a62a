"""Checks whether a quantized file is close enough to its source, by the task of the source."""

from dataclasses import replace

import numpy as np

from mlflow_keras_adv.compression.artifact import Artifact
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.metrics.agreement import agreement
from mlflow_keras_adv.tflite.runtime import LiteRTModel

# What quantization after training asks of a model that decides, and of one that does not.
MIN_AGREEMENT, MAX_DIFFERENCE = 0.9, 0.1

_FINER = "Take a finer scheme, such as int16x8 or float16, or train with quantize_aware"


def accepted(
    artifact: Artifact, min_agreement: float | None, max_difference: float | None
) -> Artifact:
    """The file, if it is near enough.

    Args:
        artifact: A compared file.
        min_agreement: Least share of the decisions, from 0 to 1; None: any.
        max_difference: Most that the outputs may differ; None: any.

    Raises:
        ValueError: `min_agreement` of what does not decide and has no classes to choose among.
        UserError: It is not.
    """
    if min_agreement is not None:
        if artifact.agreement is None:
            artifact = replace(artifact, agreement=_of_classes(artifact))
        share = artifact.agreement or 0.0
        if share < min_agreement:
            raise UserError(
                f"scheme {artifact.scheme} decides as its source on {share:.1%} of the samples, "
                f"expected at least {min_agreement:.1%}. {_FINER}, or give min_agreement=."
            )
    if max_difference is not None and artifact.difference > max_difference:
        raise UserError(
            f"scheme {artifact.scheme}: the outputs differ from those of its source by "
            f"{artifact.difference:.2g} of them (root of the mean square), expected at most "
            f"{max_difference:g}. {_FINER}, or give max_difference=."
        )
    return artifact


def _of_classes(artifact: Artifact) -> float | None:
    """Agreement of scores of classes, which somebody says that they are."""
    (name, *others) = artifact.expected
    scores = artifact.expected[name]
    if others or scores.ndim < 2 or scores.shape[-1] < 2:
        raise ValueError(
            "min_agreement is for outputs that decide: among two classes or more, or yes and no "
            "with a loss that says so. Give max_difference= for others."
        )
    answers = np.asarray(LiteRTModel(artifact.content).predict(artifact.feeds))
    return agreement(answers, scores, "classification")

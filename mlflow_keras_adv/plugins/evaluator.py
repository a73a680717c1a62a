"""Entry point of the evaluator `keras_adv`."""

from mlflow_keras_adv.evaluation.evaluator import KerasEvaluator

__all__ = ["KerasEvaluator"]

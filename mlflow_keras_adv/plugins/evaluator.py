"""The evaluator `keras_adv`, where MLflow looks for it."""

from mlflow_keras_adv.evaluation.evaluator import KerasEvaluator

__all__ = ["KerasEvaluator"]

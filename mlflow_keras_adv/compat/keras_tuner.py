"""Keras Tuner 1.4.7 and later: names that it does not offer."""

from keras_tuner.src.distribute.utils import is_chief_oracle
from keras_tuner.src.engine.tuner_utils import convert_to_metrics_dict, get_best_step

# A tuner's method that builds and trains a model once; it is kept for subclasses to override.
ONE_EXECUTION = "_build_and_fit_model"

__all__ = ["ONE_EXECUTION", "convert_to_metrics_dict", "get_best_step", "is_chief_oracle"]

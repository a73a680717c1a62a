"""Pruning by tfmot: wrappers around the layers of a tf_keras model."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from mlflow_keras_adv.compat.tfmot import PruneRegistry, is_due, tfmot
from mlflow_keras_adv.compression.bridge import to_keras
from mlflow_keras_adv.compression.copying import check_weights
from mlflow_keras_adv.compression.fine_tuning import FineTuning
from mlflow_keras_adv.compression.masks import Target, share
from mlflow_keras_adv.compression.padding_masks import masks_past_wrappers
from mlflow_keras_adv.compression.proof import prove
from mlflow_keras_adv.compression.schedules import Renewals
from mlflow_keras_adv.compression.sparsity_curve import SparsityCurve
from mlflow_keras_adv.extras import extra

with extra("compression"):
    import tf_keras

_M_BY_N_RANKS = (2, 4)  # which tfmot can group


def supports(
    model: tf_keras.Model, targets: Mapping[str, Target], counts: Mapping[str, int]
) -> bool:
    """Whether tfmot prunes all that is asked.

    Args:
        model: From `to_tf_keras`.
        targets: By name, the layers to prune.
        counts: How many kernels each of them has; tfmot leaves out some without a word.
    """
    for name, target in targets.items():
        layer = model.get_layer(name)
        if not PruneRegistry.supports(layer):
            return False
        weights = PruneRegistry.make_prunable(layer).get_prunable_weights()
        if len(weights) != counts[name]:
            return False
        if isinstance(target, tuple) and any(len(w.shape) not in _M_BY_N_RANKS for w in weights):
            return False
    return True


@masks_past_wrappers()
def prune(
    model: tf_keras.Model,
    compiled: Mapping[str, Any],
    tuning: FineTuning,
    *,
    targets: Mapping[str, Target],
    initial: Mapping[str, float],
    plan: Renewals,
    like: keras.Model,
) -> tuple[keras.Model, list[float]]:
    """Trains `model` on, and carries it back.

    Args:
        model: From `to_tf_keras`; its layers are trained themselves.
        compiled: From `tuning.for_tf_keras`.
        tuning: The training.
        targets: Targets of each layer to prune.
        initial: The sparsity of each of them now.
        plan: When the masks are renewed.
        like: The Keras 3 model that `model` was made from.

    Returns:
        The pruned Keras 3 model, and its sparsity after each step.
    """

    def wrap(layer: Any) -> Any:
        if layer.name not in targets:
            return layer
        target = targets[layer.name]
        return tfmot.sparsity.keras.prune_low_magnitude(
            layer,
            pruning_schedule=_PlannedSchedule(plan, initial[layer.name], share(target)),
            sparsity_m_by_n=target if isinstance(target, tuple) else None,
        )

    strip = tfmot.sparsity.keras.strip_pruning
    wrapped = tf_keras.models.clone_model(model, clone_function=wrap)
    prove("prune_low_magnitude", model, wrapped, tuning.sample)
    prove("strip_pruning", wrapped, strip(wrapped), tuning.sample)  # what will be done at the end
    masks = [mask for layer in wrapped.layers for _, mask, _ in getattr(layer, "pruning_vars", [])]
    # tfmot makes m-by-n masks once, on the first step.
    curve = SparsityCurve(masks, [1, *plan.steps], start=0.0)
    tuning.fit(
        tuning.in_tf_keras(wrapped, compiled),
        [
            tfmot.sparsity.keras.UpdatePruningStep(),
            tf_keras.callbacks.LambdaCallback(on_train_batch_end=curve.after_batch),
        ],
    )
    stripped = strip(wrapped)
    check_weights(stripped)  # NaN is equal to nothing
    prove("strip_pruning", wrapped, stripped, tuning.sample)
    return to_keras(stripped, tuning.sample, like=like), curve.values


class _PlannedSchedule(tfmot.sparsity.keras.PruningSchedule):
    """When and how far tfmot prunes; it asks on each step, inside the compiled step."""

    def __init__(self, plan: Renewals, initial: float, target: float) -> None:
        self._plan = plan
        self._values = [initial + (target - initial) * share for share in plan.progress]

    def __call__(self, step: Any) -> tuple[Any, Any]:
        plan = self._plan
        due = is_due(self, step, plan.first, plan.last, plan.frequency)
        position = (step - plan.first) // plan.frequency
        position = tf.clip_by_value(position, 0, len(self._values) - 1)
        return due, tf.gather(tf.constant(self._values, tf.float32), position)

    def get_config(self) -> dict[str, Any]:
        return {"class_name": type(self).__name__, "config": {"values": self._values}}

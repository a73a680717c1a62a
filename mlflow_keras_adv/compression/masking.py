"""Pruning in Keras 3 itself, for models that cannot be converted for tfmot."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from mlflow_keras_adv.compression.copying import copy_model
from mlflow_keras_adv.compression.fine_tuning import FineTuning
from mlflow_keras_adv.compression.kernels import kernels
from mlflow_keras_adv.compression.masks import Target, smallest, smallest_of_groups
from mlflow_keras_adv.compression.schedules import Renewals
from mlflow_keras_adv.compression.sparsity_curve import SparsityCurve


def prune(
    model: keras.Model,
    tuning: FineTuning,
    *,
    targets: Mapping[str, Target],
    initial: Mapping[str, float],
    plan: Renewals,
) -> tuple[keras.Model, list[float]]:
    """Fine-tunes a model under masks.

    The optimizer applies a variable's constraint after each update, inside the compiled step; there
    the mask is multiplied in.

    Args:
        model: A copy that may be changed.
        tuning: The training.
        targets: Targets of each layer to prune.
        initial: The sparsity of each of them now.
        plan: When the masks are renewed.

    Returns:
        The pruned model, not compiled, and its sparsity after each step.
    """
    masked = [
        _Masked(variable, targets[name], initial[name])
        for name, variables in kernels(model).items()
        if name in targets
        for variable in variables
    ]
    due = dict(zip(plan.steps, plan.progress, strict=True))
    curve = SparsityCurve([each.mask for each in masked], [1, *due], start=0.0)

    def before_batch(*_: Any, **__: Any) -> None:
        step = len(curve.values) + 1
        for each in masked:
            each.renew(due.get(step), is_first=step == 1)

    model.compile(**tuning.for_keras())
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_begin=before_batch, on_train_batch_end=curve.after_batch
    )
    tuning.fit(model, [callback])
    return copy_model(model), curve.values


class _Masked(keras.constraints.Constraint):
    """A variable's own constraint, and the mask after it."""

    def __init__(self, variable: keras.Variable, target: Target, initial: float) -> None:
        self._variable = variable
        self._target = target
        self._initial = initial
        self._own = variable.constraint
        self.mask = keras.Variable(
            np.ones(variable.shape), dtype=variable.dtype, trainable=False, name="mask"
        )
        variable.constraint = self

    def __call__(self, w: Any) -> Any:
        return (w if self._own is None else self._own(w)) * self.mask

    def renew(self, progress: float | None, *, is_first: bool) -> None:
        """Chooses the smallest weights anew, where the schedule says so.

        Args:
            progress: Share of the way to the target; None: not on this step.
            is_first: Whether this is the first step, on which groups are chosen, once.
        """
        if isinstance(self._target, tuple):
            if not is_first:
                return
            values = np.asarray(self._variable)
            mask = smallest_of_groups(values, *self._target)
        else:
            if progress is None:
                return
            values = np.asarray(self._variable)
            sparsity = self._initial + (self._target - self._initial) * progress
            mask = smallest(values, sparsity)
        self.mask.assign(mask)
        self._variable.assign(values * mask)

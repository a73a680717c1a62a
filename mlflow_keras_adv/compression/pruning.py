"""Pruning: fine-tunes a model while its smallest weights are set to zero."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.compression import masking, tfmot_pruning
from mlflow_keras_adv.compression.bridge import to_tf_keras
from mlflow_keras_adv.compression.copying import check_weights, copy_model
from mlflow_keras_adv.compression.fine_tuning import FineTuning, is_plain
from mlflow_keras_adv.compression.graphs import is_graph
from mlflow_keras_adv.compression.kernels import check_no_adapters, check_not_quantized, kernels
from mlflow_keras_adv.compression.masks import (
    Target,
    check_target,
    fits,
    reached,
    share,
    zero_share,
)
from mlflow_keras_adv.compression.schedules import Schedule, polynomial, renewals
from mlflow_keras_adv.errors import UserError


@dataclass(frozen=True)
class PrunedLayer:
    """One layer's row of the table.

    Attributes:
        name: Name of an inner model's layer, `inner.dense`.
        weights: Numbers in its kernels.
        target: The share of zeros that was asked for; None: left as it was.
        sparsity: The share of zeros in its kernels now.
    """

    name: str
    weights: int
    target: float | None
    sparsity: float


@dataclass(frozen=True, eq=False)
class Pruned:
    """A pruned model, and the curve of its sparsity.

    Attributes:
        model: A Keras 3 model like the one given, not compiled.
        layers: Every layer with kernels, those that were left as they are too.
        steps: Batches consumed, int64 [steps]: 1, 2, ….
        sparsity: Share of zeros in the masks of the pruned layers after each step, float64 [steps].
        engine: "tfmot", or "masks in Keras 3" for what tfmot cannot prune.
    """

    model: keras.Model
    layers: tuple[PrunedLayer, ...]
    steps: np.ndarray
    sparsity: np.ndarray
    engine: str


@keeps_random_state()
def prune(
    model: keras.Model,
    train: Any,
    *,
    sparsity: Target | Mapping[str, Target] = 0.8,
    schedule: Schedule = polynomial,
    begin: float = 0.0,
    end: float = 0.7,
    loss: Any = None,
    loss_weights: Any = None,
    metrics: Any = None,
    weighted_metrics: Any = None,
    optimizer: keras.optimizers.Optimizer | None = None,
    **fit: Any,
) -> Pruned:
    """Fine-tunes a copy of a model while its smallest weights are set to zero, layer by layer.

    Every kernel is pruned to the target separately; biases, normalization and depthwise kernels are
    not pruned. The steps on which the masks are updated follow from the length of the training, and
    the zeros of each layer are counted at the end, so that the result has the given sparsity.

    Zhu, Gupta: To prune, or not to prune, 2017, arXiv:1710.01878.

    Example:
        ```python
        pruned = mka.compression.prune(
            model, (x, y), sparsity=0.8, epochs=10, callbacks=[mka.MlflowLogger()]
        )
        pruned.model.summary()
        ```

    Args:
        model: A trained model, Sequential, functional or subclassed; it stays as it is.
        train: `(x, y)` or `(x, y, sample_weight)` of arrays; a finite `tf.data.Dataset` of batches;
            a `keras.utils.PyDataset`; or a generator of batches, with `steps_per_epoch`. The same
            kinds are taken as `validation_data`, a generator with `validation_steps`.
        sparsity: A share of zeros above 0 and below 1; or (m, n) for m zeros in every n consecutive
            inputs, such as (2, 4), from the first step on, in the layers whose number of inputs is
            a multiple of n; or a dict of these for some layers by name; the others are not pruned.
        schedule: How the share grows from the model's own to the target: `polynomial`, `constant`
            or another function from progress to progress, 0 to 1.
        begin: Share of the training before the first zeros.
        end: Share of the training after which the masks are fixed, and the other weights recover.
        loss: As in `compile`, like the next three. Default of each: the one that `model` was
            compiled with.
        loss_weights: Weights of several losses.
        metrics: Metrics; [] for none.
        weighted_metrics: Metrics with sample weights; [] for none.
        optimizer: A Keras 3 optimizer, of which a fresh one is made. Default: Adam(0.001).
        **fit: Further arguments of `fit`: epochs (1), batch_size (32), validation_data, callbacks,
            class_weight, verbose. The model in training is one of tf_keras where tfmot can prune
            the given one and the callbacks serve both, as those of this package do.

    Returns:
        The pruned model, its table of layers and the curve of its sparsity.

    Raises:
        TypeError: `train` is something else.
        ValueError: A number out of range, a layer that is not there, or an argument of `fit` that
            cannot be chosen.
        UserError: No data, no loss, NaN weights, a model that is quantized or sparser already or
            cannot be copied, or a target that was not reached.
    """
    check_weights(model)
    check_not_quantized(model)
    check_no_adapters(model)
    targets = _targets(model, sparsity)
    initial = _initial(model, targets)
    tuning = FineTuning(
        model,
        train,
        loss=loss,
        loss_weights=loss_weights,
        metrics=metrics,
        weighted_metrics=weighted_metrics,
        optimizer=optimizer,
        learning_rate=1e-3,
        fit=fit,
    )
    plan = renewals(schedule, begin=begin, end=end, total_steps=tuning.total_steps)
    settings = _for_tfmot(model, targets, tuning)
    if settings is not None:
        carried, compiled = settings
        result, curve = tfmot_pruning.prune(
            carried, compiled, tuning, targets=targets, initial=initial, plan=plan, like=model
        )
    else:
        result, curve = masking.prune(
            copy_model(model), tuning, targets=targets, initial=initial, plan=plan
        )
    check_weights(result)
    return Pruned(
        model=result,
        layers=_table(result, targets),
        steps=np.arange(1, len(curve) + 1, dtype=np.int64),
        sparsity=np.asarray(curve, dtype=np.float64),
        engine="masks in Keras 3" if settings is None else "tfmot",
    )


def _targets(model: keras.Model, sparsity: Target | Mapping[str, Target]) -> dict[str, Target]:
    """The target of each layer that is pruned."""
    shapes = {name: [tuple(w.shape) for w in own] for name, own in kernels(model).items()}
    if not isinstance(sparsity, Mapping):
        check_target(sparsity)
        chosen = {
            name: sparsity for name, own in shapes.items() if all(fits(s, sparsity) for s in own)
        }
        if not chosen:
            raise UserError(
                f"model {model.name!r} has no trainable kernel that can be pruned to {sparsity!r}; "
                f"its layers with kernels are {shapes or 'none'}. Of (m, n), n must divide the "
                "last axis but one."
            )
        return chosen
    if not sparsity:
        raise ValueError("sparsity names no layer; expected {'dense': 0.8, …} or one number")
    for name, target in sparsity.items():
        check_target(target)
        if name not in shapes:
            raise ValueError(
                f"sparsity names the layer {name!r}, which has no trainable kernels; those that "
                f"have are {', '.join(shapes) or 'none'}"
            )
        if not all(fits(shape, target) for shape in shapes[name]):
            raise ValueError(
                f"layer {name!r} cannot be pruned to {target!r}: its kernels have the shapes "
                f"{shapes[name]}, and n must divide the last axis but one"
            )
    return dict(sparsity)


def _initial(model: keras.Model, targets: Mapping[str, Target]) -> dict[str, float]:
    """The sparsity of each layer to be pruned, which only grows."""
    found: dict[str, float] = {}
    for name, variables in kernels(model).items():
        if name not in targets:
            continue
        values = [np.asarray(variable) for variable in variables]
        found[name] = zero_share(values)
        if found[name] > share(targets[name]) + len(values) / sum(value.size for value in values):
            raise UserError(
                f"layer {name!r} is sparser already than asked for: {found[name]:.1%} zeros, "
                f"target {share(targets[name]):.1%}. Ask for more, or leave it out by naming the "
                "layers: sparsity={'dense': 0.9}."
            )
    return found


def _for_tfmot(
    model: keras.Model, targets: Mapping[str, Target], tuning: FineTuning
) -> tuple[Any, dict[str, Any]] | None:
    """The model and compile's arguments in tf_keras; None where tfmot cannot do what is asked."""
    if not is_graph(model) or not is_plain(model):
        return None
    try:
        compiled = tuning.for_tf_keras()
        carried = to_tf_keras(model, tuning.sample)
    except UserError:
        return None
    counts = {name: len(own) for name, own in kernels(model).items() if name in targets}
    return (carried, compiled) if tfmot_pruning.supports(carried, targets, counts) else None


def _table(model: keras.Model, targets: Mapping[str, Target]) -> tuple[PrunedLayer, ...]:
    """One row for each layer with kernels; each target is held against what is there."""
    rows = []
    if absent := [name for name in targets if name not in kernels(model)]:
        raise UserError(
            f"the layers {', '.join(absent)} were to be pruned, and are not in the pruned model "
            f"{model.name!r}. Give its layers names of their own: Dense(8, name='hidden')."
        )
    for name, variables in kernels(model).items():
        values = [np.asarray(variable) for variable in variables]
        target = targets.get(name)
        sparsity = zero_share(values)
        if target is not None and not all(reached(value, target) for value in values):
            raise UserError(
                f"layer {name!r} was to have {target!r} zeros and has {sparsity:.1%}. Did a "
                "callback end the training early, or change the weights? Are many weights equal, "
                "as after clustering? Then prune first."
            )
        count = sum(value.size for value in values)
        rows.append(PrunedLayer(name, count, None if target is None else share(target), sparsity))
    return tuple(rows)

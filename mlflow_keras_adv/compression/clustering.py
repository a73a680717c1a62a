"""Clustering: fine-tunes a model while the weights of a kernel share a few values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.compat.tfmot import ClusteringRegistry, cluster_weights, tfmot
from mlflow_keras_adv.compression.bridge import to_keras, to_tf_keras
from mlflow_keras_adv.compression.copying import check_weights
from mlflow_keras_adv.compression.fine_tuning import FineTuning, is_plain
from mlflow_keras_adv.compression.kernels import check_no_adapters, check_not_quantized, kernels
from mlflow_keras_adv.compression.masks import zero_share
from mlflow_keras_adv.compression.padding_masks import masks_past_wrappers
from mlflow_keras_adv.compression.proof import (
    prove,
    prove_graph,
    prove_outputs,
    prove_weights,
)
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.extras import extra

with extra("compression"):
    import tf_keras


@dataclass(frozen=True)
class ClusteredLayer:
    """One layer's row of the table.

    Attributes:
        name: Name of an inner model's layer, `inner.dense`.
        weights: Numbers in its kernels.
        clusters: How many different values were allowed in each kernel; None: left as it was.
        distinct: The most different values in one of its kernels now.
        sparsity: The share of zeros in its kernels now.
    """

    name: str
    weights: int
    clusters: int | None
    distinct: int
    sparsity: float


@dataclass(frozen=True, eq=False)
class Clustered:
    """A clustered model and its table.

    Attributes:
        model: A Keras 3 model like the one given, not compiled.
        layers: Every layer with kernels, those that were left as they are too.
    """

    model: keras.Model
    layers: tuple[ClusteredLayer, ...]


@keeps_random_state()
@masks_past_wrappers()
def cluster(
    model: keras.Model,
    train: Any,
    *,
    clusters: int | Mapping[str, int] = 16,
    initialization: tfmot.clustering.keras.CentroidInitialization | None = None,
    loss: Any = None,
    loss_weights: Any = None,
    metrics: Any = None,
    weighted_metrics: Any = None,
    optimizer: keras.optimizers.Optimizer | None = None,
    **fit: Any,
) -> Clustered:
    """Fine-tunes a copy of a model while the weights of each kernel share a few values.

    The values, centroids of the kernel's weights, are trained; at the end the distinct values are
    counted. If zeros form a cluster of their own in a kernel, as after pruning, they stay zeros.
    The file compresses better, but is not smaller before compression, and the model is not faster.

    Han, Mao, Dally: Deep Compression, 2016, arXiv:1510.00149, section 3.

    Args:
        model: A trained model, Sequential or functional, of layers that tf_keras has too; it stays
            as it is.
        train: `(x, y)` or `(x, y, sample_weight)` of arrays; a finite `tf.data.Dataset` of batches;
            a `keras.utils.PyDataset`; or a generator of batches, with `steps_per_epoch`. The same
            kinds are taken as `validation_data`, a generator with `validation_steps`.
        clusters: Different values in a kernel, 3 or more, of every layer that tfmot can cluster; or
            for each of some layers by name, when the others are left as they are.
        initialization: Initial centroids. Default: KMEANS_PLUS_PLUS.
        loss: As in `compile`, like the next three. Default of each: the one that `model` was
            compiled with.
        loss_weights: Weights of several losses.
        metrics: Metrics; [] for none.
        weighted_metrics: Metrics with sample weights; [] for none.
        optimizer: A Keras 3 optimizer, of which one of tf_keras is made. Default: Adam(0.0001).
        **fit: Further arguments of `fit`: epochs (1), batch_size (32), validation_data, callbacks,
            class_weight, verbose. The model in training is one of tf_keras.

    Returns:
        The clustered model and its table of layers.

    Raises:
        TypeError: `train` is something else.
        ValueError: Too few clusters, a layer that cannot be clustered, or an argument of `fit` that
            cannot be chosen.
        UserError: No data, no loss, NaN weights, a model that is quantized already or cannot be
            carried to tf_keras, or more values than asked for.
    """
    check_weights(model)
    check_not_quantized(model)
    check_no_adapters(model)
    if not is_plain(model):
        raise UserError(
            f"model {model.name!r} ({type(model).__name__}) trains by a step or loss of its own, "
            "which tf_keras cannot be shown; cluster a plain keras.Model of the same layers"
        )
    tuning = FineTuning(
        model,
        train,
        loss=loss,
        loss_weights=loss_weights,
        metrics=metrics,
        weighted_metrics=weighted_metrics,
        optimizer=optimizer,
        learning_rate=1e-4,
        fit=fit,
    )
    compiled = tuning.for_tf_keras()
    carried = to_tf_keras(model, tuning.sample)
    chosen = _chosen(model, carried, clusters)
    before = _zeros(model)
    preserved = {name for name in chosen if before[name] >= 1 / chosen[name]}
    usable = {name: _usable(model, name, chosen[name], name in preserved) for name in chosen}
    first = initialization or tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS

    def wrap(layer: Any) -> Any:
        if layer.name not in chosen:
            return layer
        return cluster_weights(
            layer, usable[layer.name], first, preserve_sparsity=layer.name in preserved
        )

    wrapped = tf_keras.models.clone_model(carried, clone_function=wrap)
    prove("cluster_weights", carried, wrapped, tuning.sample, changed=chosen)
    _returned(wrapped, tuning.sample, model, chosen)  # what cannot be had is known before
    tuning.fit(tuning.in_tf_keras(wrapped, compiled), [])
    result = _returned(wrapped, tuning.sample, model, chosen)
    rows = _table(result, chosen)
    for row in rows:
        if row.name in preserved and row.sparsity < before[row.name]:
            raise UserError(
                f"layer {row.name!r} lost zeros in clustering: {before[row.name]:.1%} before, "
                f"{row.sparsity:.1%} after. Give it more clusters, or a smaller learning rate."
            )
    return Clustered(result, rows)


def _returned(
    wrapped: tf_keras.Model, sample: Any, like: keras.Model, chosen: Mapping[str, int]
) -> keras.Model:
    """The clustered model, converted to Keras 3."""
    stripped = tfmot.clustering.keras.strip_clustering(wrapped)
    check_weights(stripped)  # NaN is equal to nothing
    prove_graph("strip_clustering", wrapped, stripped)
    prove_weights("strip_clustering", wrapped, stripped, changed=chosen)
    prove_outputs("strip_clustering", wrapped, stripped, sample)
    return to_keras(stripped, sample, like=like)


def _chosen(
    model: keras.Model, carried: tf_keras.Model, clusters: int | Mapping[str, int]
) -> dict[str, int]:
    """The clusters of each layer that is clustered."""
    able = [name for name in kernels(model) if ClusteringRegistry.supports(carried.get_layer(name))]
    asked = dict(clusters) if isinstance(clusters, Mapping) else dict.fromkeys(able, clusters)
    for name, count in asked.items():
        if name not in able:
            raise ValueError(
                f"clusters names the layer {name!r}, which cannot be clustered; those that can are "
                f"{', '.join(able) or 'none'}"
            )
        if type(count) is not int or count < 3:
            raise ValueError(f"clusters is {count!r}; expected a whole number of 3 or more")
    if not asked:
        raise UserError(f"model {model.name!r} has no trainable kernel that tfmot can cluster")
    return asked


def _usable(model: keras.Model, name: str, count: int, preserved: bool) -> int:
    """The number of clusters that tfmot can start with: at most the number of weights."""
    values = [np.asarray(each) for each in kernels(model)[name]]
    fewest = min(np.count_nonzero(each) + 1 if preserved else each.size for each in values)
    return max(2, min(count, int(fewest)))


def _zeros(model: keras.Model) -> dict[str, float]:
    found = kernels(model).items()
    return {name: zero_share([np.asarray(each) for each in own]) for name, own in found}


def _table(model: keras.Model, chosen: Mapping[str, int]) -> tuple[ClusteredLayer, ...]:
    """One row for each layer with kernels; the values allowed are held against those there are."""
    rows = []
    for name, variables in kernels(model).items():
        values = [np.asarray(variable) for variable in variables]
        distinct = max(len(np.unique(value)) for value in values)
        allowed = chosen.get(name)
        if allowed is not None and distinct > allowed:
            raise UserError(
                f"layer {name!r} was to have {allowed} different values in a kernel and has "
                f"{distinct}. Did a callback change the weights?"
            )
        count = sum(value.size for value in values)
        rows.append(ClusteredLayer(name, count, allowed, distinct, zero_share(values)))
    return tuple(rows)

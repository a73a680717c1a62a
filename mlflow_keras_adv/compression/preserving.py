"""Preserves zeros and clusters of a model during quantization-aware training.

tfmot's clustering is used in the layers that it knows. Its other ways are not: they refuse
layers that they do not know instead of leaving them alone, share one setting among all layers, so
that the first one without zeros ends the keeping of zeros in those behind it, and set to zero the
smallest value of every channel that has no zeros.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from mlflow_keras_adv.compat.tfmot import (
    ClusterPreserveQuantizeRegistry,
    Default8BitQuantizeRegistry,
    QuantizeWrapper,
    rounded_weights,
    tfmot,
)
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.extras import extra

with extra("compression"):
    import tf_keras

_NOT_KERNELS = {"bias", "gamma", "beta", "alpha"}  # of rank 2, some of them
_CENTROIDS, _CENTROIDS_MASK = "cluster_centroids_tf", "centroids_mask"  # tfmot's own keys


class PreservingScheme(tfmot.quantization.keras.default_8bit.Default8BitQuantizeScheme):
    """tfmot's scheme of 8 bits, with clusters that stay few where there are some.

    Args:
        sparsity: Whether a cluster of zeros stays one.
        clusters: Whether clusters stay.
    """

    def __init__(self, *, sparsity: bool, clusters: bool) -> None:
        self._sparsity = sparsity
        self._clusters = clusters

    def get_quantize_registry(self) -> Any:  # noqa: D102
        return _Registry(self._sparsity, self._clusters)


class _Registry(Default8BitQuantizeRegistry):
    def __init__(self, sparsity: bool, clusters: bool) -> None:
        super().__init__()
        self._sparsity = sparsity
        self._clusters = clusters

    def get_quantize_config(self, layer: Any) -> Any:
        # A new one for each layer: of a registry's own some are shared.
        config = Default8BitQuantizeRegistry().get_quantize_config(layer)
        values = [weight.numpy() for weight in layer.trainable_weights if _is_kernel(weight)]
        if not self._clusters or not any(map(_is_clustered, values)):
            return config
        zeros = self._sparsity and any((value == 0).any() for value in values)
        keeping = ClusterPreserveQuantizeRegistry(preserve_sparsity=zeros)
        if not keeping.supports(layer):
            return config
        return keeping.apply_cluster_preserve_quantize_config(layer, config)


@dataclass(frozen=True, eq=False)
class _Kept:
    """A kernel as it was before the training."""

    layer: str
    variable: Any
    before: np.ndarray
    is_trained_as_clusters: bool
    is_fixed: bool
    is_quantized: bool
    keeps_zeros: bool
    keeps_clusters: bool


class Preserving(tf_keras.callbacks.Callback):
    """Keeps zeros and clusters of a model from one step to the next, and says if some were lost.

    A clustered kernel of a layer that tfmot cannot train as clusters is not trained.

    Args:
        model: From `quantize_apply` with a `PreservingScheme`, not trained yet.
        sparsity: Weights that are 0 stay 0.
        clusters: The values of a kernel stay few.
    """

    def __init__(self, model: tf_keras.Model, *, sparsity: bool, clusters: bool) -> None:
        super().__init__()
        self._kept: list[_Kept] = []
        for layer in model.layers:
            own = _clusters_of(layer)
            for held in own:
                if held.get(_CENTROIDS_MASK) is not None:
                    mask = held[_CENTROIDS].numpy() != 0
                    held[_CENTROIDS_MASK] = tf.constant(mask, held[_CENTROIDS].dtype)
            for variable in _kernels(layer):
                before = variable.numpy()
                keeps_clusters = clusters and _is_clustered(before)
                keeps_zeros = sparsity and bool((before == 0).any())
                if keeps_clusters or keeps_zeros:
                    self._kept.append(
                        _Kept(
                            layer=layer.name.removeprefix("quant_"),
                            variable=variable,
                            before=before,
                            is_trained_as_clusters=bool(own),
                            is_fixed=keeps_clusters and not own,
                            is_quantized=bool(rounded_weights(layer)),
                            keeps_zeros=keeps_zeros,
                            keeps_clusters=keeps_clusters,
                        )
                    )

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: D102
        for kept in self._kept:
            if kept.is_fixed:
                kept.variable.assign(kept.before)
            elif not kept.is_trained_as_clusters:
                kept.variable.assign(tf.where(kept.before == 0, 0.0, kept.variable))

    @contextlib.contextmanager
    def without_warning(self) -> Iterator[None]:
        """Silences tf_keras' warning about kernels without gradients, which are intended here.

        What is trained are the clusters; the kernel is computed from them in each step.
        """
        computed = {k.variable.name for k in self._kept if k.is_trained_as_clusters}

        def others(record: logging.LogRecord) -> bool:
            if not str(record.msg).startswith("Gradients do not exist for variables"):
                return True
            names = record.args[0] if isinstance(record.args, tuple) and record.args else []
            return not isinstance(names, list) or not set(names) <= computed

        logger = tf.get_logger()
        logger.addFilter(others)
        try:
            yield
        finally:
            logger.removeFilter(others)

    def check(self) -> None:
        """Holds the trained kernels against what they were.

        Raises:
            UserError: Naming the layer.
        """
        for kept in self._kept:
            now = kept.variable.numpy()
            if kept.keeps_zeros and (now[kept.before == 0] != 0).any():
                raise UserError(
                    f"layer {kept.layer!r} lost zeros in training: {np.mean(kept.before == 0):.1%} "
                    f"before, {np.mean(now == 0):.1%} after. Did a callback change the weights?"
                )
            if kept.keeps_clusters and _distinct(now) > _distinct(kept.before):
                raise UserError(
                    f"layer {kept.layer!r} lost clusters in training: {_distinct(kept.before)} "
                    f"different values in a channel before, {_distinct(now)} after. Did a callback "
                    "change the weights?"
                )

    def check_file(self, stored: list[np.ndarray]) -> None:
        """Holds the integer kernels in a file against the zeros that were to be kept.

        Args:
            stored: The file's integer kernels, of which 0 stands for 0.

        Raises:
            UserError: Naming the layer.
        """
        patterns = [each.reshape(-1) == 0 for each in stored]
        for kept in self._kept:
            if not kept.keeps_zeros or not kept.is_quantized:
                continue
            # As LiteRT stores kernels of Dense and Conv2D, Conv2DTranspose, DepthwiseConv2D.
            zeros = kept.before == 0
            layouts = [np.moveaxis(zeros, -1, 0), np.moveaxis(zeros, -2, 0), zeros]
            if not any(
                len(found) == zeros.size and found[layout.reshape(-1)].all()
                for found in patterns
                for layout in layouts
            ):
                raise UserError(
                    f"layer {kept.layer!r}: its zeros, {np.mean(kept.before == 0):.1%} of the "
                    "kernel, are not in the file. Quantize it after training, with quantize."
                )


def _clusters_of(layer: Any) -> list[Any]:
    """The clustering objects of tfmot for the kernels of a layer."""
    if not isinstance(layer, QuantizeWrapper):
        return []
    return [held for _, _, held in rounded_weights(layer) if _CENTROIDS in held]


def _kernels(layer: Any) -> list[Any]:
    if not isinstance(layer, QuantizeWrapper):
        return [weight for weight in layer.weights if _is_kernel(weight)]
    if rounded_weights(layer):  # in the layer itself tensors have taken their place
        return [weight for weight, _, _ in rounded_weights(layer)]
    return [weight for weight in layer.layer.weights if _is_kernel(weight)]


def _is_kernel(weight: Any) -> bool:
    leaf = weight.name.partition(":")[0].rpartition("/")[2]
    return len(weight.shape) >= 2 and leaf not in _NOT_KERNELS


def _is_clustered(values: np.ndarray) -> bool:
    """Whether the numbers other than 0 come, on average, twice or more."""
    others = values[values != 0]
    return 0 < 2 * len(np.unique(others)) <= others.size


def _distinct(values: np.ndarray) -> int:
    """The most different values in an output channel; tfmot may train clusters for each of them."""
    return max(len(np.unique(channel)) for channel in np.moveaxis(values, -1, 0))

"""Pruning of whole channels: the model has fewer operations, so it becomes smaller and faster."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mlflow_keras_adv.compat.keras import consumers_of
from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.compression import graphs
from mlflow_keras_adv.compression.channel_graph import (
    ChannelGraph,
    importance,
    read_channels,
    weights_of,
    without_reading,
)
from mlflow_keras_adv.compression.copying import check_weights, copy_model
from mlflow_keras_adv.compression.fine_tuning import FineTuning
from mlflow_keras_adv.compression.kernels import check_no_adapters, check_not_quantized
from mlflow_keras_adv.compression.precision import half_tolerance
from mlflow_keras_adv.compression.proof import TOLERANCE, prove_outputs
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.metrics.footprint import latency_ms

_ROWS = 64  # of a call whose time is taken
_REPEATS = 30


@dataclass(frozen=True)
class ChannelsOfLayer:
    """One layer's row of the table.

    Attributes:
        name: Name of the layer.
        before: Its channels (units, filters).
        after: Those that are left.
        kept_whole: Why none of them can go; None if they could.
    """

    name: str
    before: int
    after: int
    kept_whole: str | None


@dataclass(frozen=True, eq=False)
class ChannelsPruned:
    """A model with fewer channels, and its latency and size compared with the original.

    Attributes:
        model: A smaller Keras 3 model, not compiled.
        layers: Every Dense and convolution, those that were kept whole too.
        latency_ms_before: Median of a compiled call of the model given, on this machine now.
        latency_ms_after: The same for `model`, in turns with the other; calls of up to 64 samples.
        parameters_before: Numbers in the weights of the model given.
        parameters_after: In those of `model`.
    """

    model: keras.Model
    layers: tuple[ChannelsOfLayer, ...]
    latency_ms_before: float
    latency_ms_after: float
    parameters_before: int
    parameters_after: int


@keeps_random_state()
def prune_channels(
    model: keras.Model,
    train: Any,
    *,
    channels: float | Mapping[str, float] = 0.5,
    loss: Any = None,
    loss_weights: Any = None,
    metrics: Any = None,
    weighted_metrics: Any = None,
    optimizer: keras.optimizers.Optimizer | None = None,
    **fit: Any,
) -> ChannelsPruned:
    """Makes a model with fewer channels in its layers, and fine-tunes it.

    The channels of each Dense layer and convolution with the smallest sums of absolute weights are
    removed, together with the weights that read them in a normalization, a depthwise convolution
    and the next layers, also behind pooling, Flatten and Concatenate. A layer is kept whole if its
    channels are added to others (as in a residual sum), are an output of the model or pass a layer
    that mixes them; `ChannelsPruned.layers` says why.

    Before the training it is checked that the smaller model computes the same as the given one with
    the removed channels ignored.

    Li, Kadav, Durdanovic, Samet, Graf: Pruning Filters for Efficient ConvNets, 2017,
    arXiv:1608.08710.

    Example:
        ```python
        pruned = mka.compression.prune_channels(model, (x, y), channels=0.5, epochs=10)
        print(pruned.latency_ms_before, pruned.latency_ms_after)
        ```

    Args:
        model: A trained model, Sequential or functional; it stays as it is. Inner models are kept
            whole.
        train: `(x, y)` or `(x, y, sample_weight)` of arrays; a finite `tf.data.Dataset` of batches;
            a `keras.utils.PyDataset`; or a generator of batches, with `steps_per_epoch`.
        channels: Share of the channels to remove, above 0 and below 1, of every layer that can lose
            some; or one for each of some layers by name, when the others are left as they are. One
            channel at least is left.
        loss: As in `compile`, like the next three. Default of each: the one that `model` was
            compiled with.
        loss_weights: Weights of several losses.
        metrics: Metrics; [] for none.
        weighted_metrics: Metrics with sample weights; [] for none.
        optimizer: A Keras 3 optimizer, of which a fresh one is made. Default: Adam(0.001).
        **fit: Further arguments of `fit`: epochs (1), batch_size (32), validation_data, callbacks,
            class_weight, verbose.

    Returns:
        The smaller model, its table of layers, and the latency of both.

    Raises:
        TypeError: `train` is something else.
        ValueError: A share out of range, a layer that is not there or cannot lose channels, or an
            argument of `fit` that cannot be chosen.
        UserError: No data, no loss, NaN weights, a model that is quantized already, has no graph or
            no layer that can lose channels.
    """
    check_weights(model)
    check_not_quantized(model)
    check_no_adapters(model)
    if not graphs.is_graph(model):
        raise UserError(
            f"model {model.name!r} ({type(model).__name__}) is neither Sequential nor functional, "
            "so that nobody can tell what reads a channel; build it with keras.Model(inputs, "
            "outputs)"
        )
    found = read_channels(model)
    shares = _shares(model, found, channels)
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
    gone = {name: _smallest(model, name, share) for name, share in shares.items()}
    smaller = _smaller(model, found, gone)
    unread = _unread(model, found, gone)
    tolerance = half_tolerance(model) or TOLERANCE
    prove_outputs("prune_channels", unread, smaller, tuning.sample, tolerance=tolerance)
    smaller.compile(**tuning.for_keras())
    tuning.fit(smaller, [])
    result = copy_model(smaller)
    check_weights(result)
    before, after = _latencies(model, result, next(tuning.calibration()))
    return ChannelsPruned(
        model=result,
        layers=tuple(
            ChannelsOfLayer(
                name, count, count - int(np.sum(gone.get(name, 0))), found.kept.get(name)
            )
            for name, count in found.channels.items()
        ),
        latency_ms_before=before,
        latency_ms_after=after,
        parameters_before=model.count_params(),
        parameters_after=result.count_params(),
    )


def _shares(
    model: keras.Model, found: ChannelGraph, channels: float | Mapping[str, float]
) -> dict[str, float]:
    able = [name for name in found.channels if name not in found.kept]
    asked = dict(channels) if isinstance(channels, Mapping) else dict.fromkeys(able, channels)
    for name, share in asked.items():
        if name in found.kept:
            raise ValueError(
                f"layer {name!r} cannot lose channels: {found.kept[name]}; those that can are "
                f"{', '.join(able) or 'none'}"
            )
        if name not in able:
            raise ValueError(
                f"channels names the layer {name!r}, which has no channels to lose; those that can "
                f"are {', '.join(able) or 'none'}"
            )
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
            raise ValueError(
                f"channels is {share!r}; expected a share above 0 and below 1, such as 0.5"
            )
    if not asked:
        reasons = "; ".join(f"{name}: {why}" for name, why in found.kept.items())
        raise UserError(
            f"model {model.name!r} has no layer that can lose channels ({reasons or 'no Dense'})"
        )
    return asked


def _smallest(model: keras.Model, name: str, share: float) -> np.ndarray:
    """Whether each channel of a layer is among the smallest."""
    layer = model.get_layer(name)
    weighs = importance(layer, _normalization(layer))
    count = min(len(weighs) - 1, math.floor(share * len(weighs) + 1e-9))
    gone = np.zeros(len(weighs), bool)
    gone[np.argsort(weighs, kind="stable")[:count]] = True
    return gone


def _normalization(layer: Any) -> Any:
    """The BatchNormalization that takes what a layer gives, if that is all that takes it."""
    consumers = consumers_of(layer)
    (only,) = consumers if len(consumers) == 1 else (None,)
    return only if isinstance(only, keras.layers.BatchNormalization) else None


def _smaller(
    model: keras.Model, found: ChannelGraph, gone: Mapping[str, np.ndarray]
) -> keras.Model:
    def resized(layer: Any) -> Any:
        config = layer.get_config()
        if layer.name in gone:
            key = "units" if isinstance(layer, keras.layers.Dense) else "filters"
            config[key] = int(np.sum(~gone[layer.name]))
        return type(layer).from_config(config)

    smaller = keras.models.clone_model(model, clone_function=resized)
    flags = found.removed(gone)
    for old, new in zip(model.layers, smaller.layers, strict=True):
        labels = found.read.get(old.name)
        if labels is None:
            new.set_weights(old.get_weights())
        else:
            new.set_weights(weights_of(old, flags[labels], gone.get(old.name)))
        new.trainable = old.trainable
    return smaller


def _unread(model: keras.Model, found: ChannelGraph, gone: Mapping[str, np.ndarray]) -> keras.Model:
    """The model as it is, with weights of 0 for what is removed."""
    unread = copy_model(model)
    flags = found.removed(gone)
    for layer in unread.layers:
        labels = found.read.get(layer.name)
        if labels is not None:
            layer.set_weights(without_reading(layer, flags[labels]))
    return unread


def _latencies(one: keras.Model, other: keras.Model, batch: Any) -> tuple[float, float]:
    """Medians of both, taken in turns: what else the machine does meets both alike."""
    rows = keras.tree.map_structure(lambda array: keras.ops.convert_to_tensor(array[:_ROWS]), batch)
    calls = [_compiled(each, rows) for each in (one, other)]
    times: list[list[float]] = [[], []]
    for _ in range(_REPEATS):
        for call, taken in zip(calls, times, strict=True):
            taken.extend(latency_ms(call, repeats=1, warm_up=1))
    before, after = (float(np.median(taken)) for taken in times)
    return before, after


def _compiled(model: keras.Model, rows: Any) -> Callable[[], Any]:
    run = tf.function(lambda inputs: model(inputs, training=False))
    return lambda: run(rows)

"""Quantization-aware training to int8, by tfmot."""

import math
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.compat.tfmot import tfmot
from mlflow_keras_adv.compression import graphs
from mlflow_keras_adv.compression.acceptance import accepted
from mlflow_keras_adv.compression.artifact import Arrays, Artifact
from mlflow_keras_adv.compression.bridge import to_tf_keras
from mlflow_keras_adv.compression.conversion import (
    answers_of,
    arrays_by_name,
    compare,
    losses_of,
)
from mlflow_keras_adv.compression.copying import check_weights
from mlflow_keras_adv.compression.fake_quantizers import (
    calibrate,
    measure_weights,
    widen_dead_ranges,
    with_borders,
)
from mlflow_keras_adv.compression.fine_tuning import FineTuning, is_plain
from mlflow_keras_adv.compression.judged import names_of_outputs
from mlflow_keras_adv.compression.kernels import check_no_adapters, check_not_quantized, matrices
from mlflow_keras_adv.compression.padding_masks import masks_past_wrappers
from mlflow_keras_adv.compression.preserving import Preserving, PreservingScheme
from mlflow_keras_adv.compression.proof import prove
from mlflow_keras_adv.compression.quantized_layout import quantize_apply
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.extras import extra
from mlflow_keras_adv.tflite.runtime import LiteRTModel
from mlflow_keras_adv.tflite.weights import file_weights

with extra("compression"):
    import tf_keras

# tfmot knows how to quantize these; of the others it names no layer, but fails.
_ACTIVATIONS = {"linear", "relu", "swish", "gelu", "softmax", "sigmoid", "tanh"}
_BORDERS = {"float32": tf.float32, "int8": tf.int8, "uint8": tf.uint8}
_SAMPLES = 200  # on which file and model are compared
# Between a file and the model that was trained: both round in the same steps, but LiteRT adds up
# integers and looks up activations. The nets of the tests and of docs/compress.md stay below 0.02.
TRAINED_TOLERANCE = 0.05


@keeps_random_state()
@masks_past_wrappers()
def quantize_aware(
    model: keras.Model,
    train: Any,
    *,
    preserve_sparsity: bool = False,
    preserve_clusters: bool = False,
    layers: Sequence[str] | None = None,
    io: str = "float32",
    min_agreement: float | None = None,
    max_difference: float | None = None,
    loss: Any = None,
    loss_weights: Any = None,
    metrics: Any = None,
    weighted_metrics: Any = None,
    optimizer: keras.optimizers.Optimizer | None = None,
    **fit: Any,
) -> Artifact:
    """Fine-tunes a copy of a model with int8 rounding, and converts it to an int8 file.

    In the forward pass weights and activations are rounded to int8 steps, whose ranges are found in
    training; gradients ignore the rounding (straight-through estimator).

    Jacob et al.: Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference, 2018, arXiv:1712.05877.

    Args:
        model: A trained model, Sequential or functional, of layers that tf_keras has too; it stays
            as it is.
        train: `(x, y)` or `(x, y, sample_weight)` of arrays; a finite `tf.data.Dataset` of batches;
            a `keras.utils.PyDataset`; or a generator of batches, with `steps_per_epoch`. The same
            kinds are taken as `validation_data`, a generator with `validation_steps`.
        preserve_sparsity: Weights that are 0 stay 0 (PQAT), as after pruning.
        preserve_clusters: The values of a kernel stay few (CQAT), as after clustering. With both,
            PCQAT.
        layers: Which layers with weights to quantize, by name, of an inner model's `inner.dense`;
            the others train on in float, and stay so in the file unless what they take and give is
            rounded. Default: all that tfmot can.
        io: The dtype of the file's inputs and outputs: "float32", "int8" or "uint8".
        min_agreement: Smallest accepted share of equal decisions of file and `model`, from 0 to 1;
            see `quantize`. Default: any, since the file was trained further.
        max_difference: Largest accepted `difference` of the outputs. Default: any.
        loss: As in `compile`, like the next three. Default of each: the one that `model` was
            compiled with.
        loss_weights: Weights of several losses.
        metrics: Metrics; [] for none.
        weighted_metrics: Metrics with sample weights; [] for none.
        optimizer: A Keras 3 optimizer, of which one of tf_keras is made. Default: Adam(0.0001).
        **fit: Further arguments of `fit`: epochs (1), batch_size (32), validation_data, callbacks,
            class_weight, verbose. The model in training is one of tf_keras.

    Returns:
        The file, which LiteRT has run, compared with `model` on some of `train`. Training moves the
        weights, so it differs by more than rounding. `float_layers` says what was trained in
        float, because tfmot cannot quantize it or it was not chosen.

    Raises:
        TypeError: `train` is something else.
        ValueError: An argument of `fit` that cannot be chosen, a layer that is not there or cannot
            be quantized, or another `io`.
        UserError: No data, no loss, NaN weights, a model that is quantized already or cannot be
            carried to tf_keras, no layer that can be quantized, or zeros that were lost.
    """
    check_weights(model)
    check_not_quantized(model)
    check_no_adapters(model)
    if io not in _BORDERS:
        raise ValueError(f"io is {io!r}; expected one of {', '.join(map(repr, _BORDERS))}")
    if not is_plain(model):
        raise UserError(
            f"model {model.name!r} ({type(model).__name__}) trains by a step or loss of its own, "
            "which tf_keras cannot be shown; give a plain keras.Model of the same layers"
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
    scheme = _scheme(preserve_sparsity, preserve_clusters)
    quantized, left = _annotated(carried, scheme, _chosen(model, layers))
    prove("quantize_apply", carried, quantized, tuning.sample)
    preserving = Preserving(quantized, sparsity=preserve_sparsity, clusters=preserve_clusters)
    calibrate(quantized, tuning.calibration())
    measure_weights(quantized)
    trained = tuning.in_tf_keras(quantized, compiled)
    kind = "p" * preserve_sparsity + "c" * preserve_clusters + "qat"
    kind += "" if io == "float32" else f"_{io}_io"
    x = _some(tuning.calibration())
    _proved_file(model, trained, x, kind, io)  # what cannot be had is known before the training
    with preserving.without_warning():
        tuning.fit(trained, [preserving])
    preserving.check()
    content, feeds, apart = _proved_file(model, trained, x, kind, io)
    kernels = [each.values for each in file_weights(content) if each.dtype == "int8"]
    preserving.check_file(kernels)
    answers, names, losses = answers_of(model, x), names_of_outputs(model), losses_of(model)
    if set(answers) != set(names):
        losses = {new: losses.get(old) for old, new in zip(answers, names, strict=True)}
        answers = dict(zip(names, answers.values(), strict=True))
    artifact = compare(
        content, kind, feeds, answers, float_layers=tuple(sorted(left)), losses=losses
    )
    return accepted(replace(artifact, trained_difference=apart), min_agreement, max_difference)


def _scheme(sparsity: bool, clusters: bool) -> Any:
    return PreservingScheme(sparsity=sparsity, clusters=clusters)


def _chosen(model: keras.Model, layers: Sequence[str] | None) -> set[str] | None:
    """Names of the layers to quantize; None: all."""
    if layers is None:
        return None
    known = matrices(model)
    for name in layers:
        if name not in known:
            raise ValueError(
                f"layers names {name!r}, which is no layer with kernels; those are "
                f"{', '.join(known) or 'none'}"
            )
    if not layers:
        raise ValueError("layers names no layer; leave it out to quantize all")
    return set(layers)


def _not_chosen(carried: tf_keras.Model, chosen: Collection[str]) -> set[str]:
    """Layers with kernels beside the chosen ones, and what such layers alone feed."""
    floats: set[str] = set()
    makers: dict[int, bool] = {}  # whether what makes a tensor stays in float
    for layer, arguments, results in graphs.calls(carried):
        fed = [makers[id(e)] for e in keras.tree.flatten(arguments) if id(e) in makers]
        if any(len(weight.shape) > 1 for weight in layer.weights):
            is_float = layer.name not in chosen
        else:
            is_float = bool(fed) and all(fed)
        makers.update(dict.fromkeys(map(id, results), is_float))
        if is_float:
            floats.add(layer.name)
    return floats


def _annotated(
    carried: tf_keras.Model, scheme: Any, chosen: set[str] | None = None
) -> tuple[tf_keras.Model, set[str]]:
    """The model ready for training, and the layers left in float.

    What tfmot does not support it says one layer at a time. A layer such as BatchNormalization is
    supported after a convolution only, so that asking each layer beforehand would not do.
    """
    left = {layer.name for layer in carried.layers if not _known_activation(layer)}
    left |= {e.name for e in carried.layers if isinstance(e, tf_keras.layers.Embedding)}
    if chosen is not None:
        left |= _not_chosen(carried, chosen)
    annotated_layer = tfmot.quantization.keras.quantize_annotate_layer
    while True:
        if chosen is not None and (refused := sorted(left & chosen)):
            raise ValueError(
                f"layers names {', '.join(refused)}, which cannot be trained quantized; those that "
                "can are Dense, Conv2D, DepthwiseConv2D, SeparableConv2D and Conv2DTranspose"
            )
        able = {
            layer.name
            for layer in carried.layers
            if layer.name not in left and not isinstance(layer, tf_keras.layers.InputLayer)
        }
        if not any(carried.get_layer(name).weights for name in able):
            raise UserError(
                f"model {carried.name!r} has no layer that can be trained quantized; those are "
                "Dense, Conv2D, DepthwiseConv2D and Conv2DTranspose"
            )

        def annotate(layer: Any, names: Collection[str] = able) -> Any:
            return annotated_layer(layer) if layer.name in names else layer

        try:
            with tfmot.quantization.keras.quantize_scope():
                bordered = with_borders(carried, left)
                annotated = tf_keras.models.clone_model(bordered, clone_function=annotate)
                return quantize_apply(annotated, scheme), left
        except RuntimeError as error:
            named = re.match(r"Layer (.+?):<class", str(error))
            if named is None or named[1] not in able:
                raise
            left.add(named[1])
        except (TypeError, ValueError) as error:
            raise UserError(
                f"model {carried.name!r} cannot be trained quantized: {error}. Quantize it after "
                "training, with quantize."
            ) from error


def _known_activation(layer: Any) -> bool:
    activation = getattr(layer, "activation", None)
    return activation is None or getattr(activation, "__name__", "") in _ACTIVATIONS


def _proved_file(
    model: keras.Model, trained: tf_keras.Model, x: Any, kind: str, io: str
) -> tuple[bytes, Arrays, float]:
    """The file of a model in training as it is now; `x` by the file's inputs; how far apart."""
    widen_dead_ranges(trained)
    content = _converted(trained, io)
    _check_biases(model.name, content)
    try:
        runner = LiteRTModel(content)
        feeds = arrays_by_name(model, runner, x)
        answers = _trained_answers(trained, x)
        apart = _apart(runner, feeds, dict(zip(names_of_outputs(model), answers, strict=True)))
    except ValueError as error:
        raise UserError(
            f"scheme {kind}: the file of model {model.name!r} does not run: {error}. Quantize it "
            "after training, with quantize."
        ) from error
    if not apart <= TRAINED_TOLERANCE:
        raise UserError(
            f"scheme {kind}: the file of model {model.name!r} answers differently from the model "
            f"in training, by {apart:.2g} of the largest answer (root mean square), expected at "
            f"most {TRAINED_TOLERANCE:g}. Quantize it after training, with quantize."
        )
    return content, feeds, apart


def _converted(model: tf_keras.Model, io: str) -> bytes:
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = _BORDERS[io]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's own, about what it does itself
        try:
            return converter.convert()
        except Exception as error:  # what the converter raises has no end
            reason = (str(error).splitlines() or [repr(error)])[0]
            if io != "float32":
                raise UserError(
                    f"model {model.name!r} cannot take and give {io}: {reason}. Its first and last "
                    'layers have to be quantized for that; leave io at "float32".'
                ) from error
            raise UserError(
                f"model {model.name!r} cannot be converted: {reason}. With a recurrent layer, "
                "quantize it after training instead: quantize(…, dynamic_int8, …)"
            ) from error


def _some(batches: Iterator[Any]) -> Any:
    """Some samples from all over the data."""
    joined = keras.tree.map_structure(lambda *parts: np.concatenate(parts), *batches)
    step = math.ceil(len(keras.tree.flatten(joined)[0]) / _SAMPLES)
    return keras.tree.map_structure(lambda array: array[::step], joined)


def _trained_answers(model: tf_keras.Model, x: Any) -> list[np.ndarray]:
    """The outputs of the trained model with its rounding, in order."""
    return [np.asarray(each) for each in keras.tree.flatten(model(x, training=False))]


def _apart(runner: LiteRTModel, feeds: Arrays, expected: Arrays) -> float:
    """Root mean square of the difference, relative to the largest answer; the worst output."""
    found = runner.predict(feeds)
    answers = found if isinstance(found, dict) else {runner.outputs[0].name: found}
    apart = 0.0
    for name, values in expected.items():
        difference = np.sqrt(np.mean(np.square(answers[name].astype(np.float64) - values)))
        apart = max(apart, float(difference) / (float(np.abs(values).max()) or 1.0))
    return apart


def _check_biases(name: str, content: bytes) -> None:
    """Refuses a bias that did not fit its 32 bits, of which the converter says nothing."""
    ends = np.iinfo(np.int32)
    for weight in file_weights(content):
        if weight.dtype == "int32" and np.isin(weight.values, (ends.min, ends.max)).any():
            raise UserError(
                f"model {name!r}: in the file a bias of {weight.name!r} does not fit 32 bits, "
                "because the weights of its channel are next to 0. Quantize it after training, "
                "with quantize."
            )

"""Quantization-aware training: a model learns to live with the steps of int8, by tfmot."""

import re
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mlflow_keras_adv.compression.artifact import Artifact
from mlflow_keras_adv.compression.bridge import to_tf_keras
from mlflow_keras_adv.compression.conversion import answers_of, arrays_by_name, compare
from mlflow_keras_adv.compression.copying import check_weights
from mlflow_keras_adv.compression.file_weights import file_weights
from mlflow_keras_adv.compression.fine_tuning import FineTuning, is_plain
from mlflow_keras_adv.compression.judged import names_of_outputs
from mlflow_keras_adv.compression.kernels import check_not_quantized, kernels
from mlflow_keras_adv.compression.masks import zero_share
from mlflow_keras_adv.compression.proof import prove
from mlflow_keras_adv.compression.quantization import check_agreement
from mlflow_keras_adv.compression.quantized_layout import quantize_apply
from mlflow_keras_adv.compression.runtime import LiteRTModel
from mlflow_keras_adv.compression.tfmot_names import tfmot
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.extras import extra
from mlflow_keras_adv.random_state import keeps_random_state

with extra("compression"):
    import tf_keras

# tfmot knows how to quantize these; of the others it names no layer, but fails.
_ACTIVATIONS = {"linear", "relu", "swish", "gelu", "softmax", "sigmoid", "tanh"}
_SAMPLES = 200  # on which file and model are compared


class LeaveInFloat(tfmot.quantization.keras.QuantizeConfig):
    """Quantizes nothing: for layers whose activation tfmot does not know.

    Left without a config, they would still get a quantized output where the next layer is
    quantized, and fail.
    """

    def get_weights_and_quantizers(self, layer: Any) -> list[Any]:  # noqa: D102
        return []

    def get_activations_and_quantizers(self, layer: Any) -> list[Any]:  # noqa: D102
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: Any) -> None:  # noqa: D102
        pass

    def set_quantize_activations(self, layer: Any, quantize_activations: Any) -> None:  # noqa: D102
        pass

    def get_output_quantizers(self, layer: Any) -> list[Any]:  # noqa: D102
        return []

    def get_config(self) -> dict[str, Any]:  # noqa: D102
        return {}


@keeps_random_state()
def quantize_aware(
    model: keras.Model,
    train: Any,
    *,
    preserve_sparsity: bool = False,
    preserve_clusters: bool = False,
    min_agreement: float | None = None,
    loss: Any = None,
    loss_weights: Any = None,
    metrics: Any = None,
    weighted_metrics: Any = None,
    optimizer: keras.optimizers.Optimizer | None = None,
    **fit: Any,
) -> Artifact:
    """Trains a copy of a model on with int8 rounding in place, and converts it to an int8 file.

    In the forward pass weights and activations are rounded to the steps of int8, whose ranges are
    found in training; gradients pass as if they were not. The file takes and gives float32.

    Jacob et al.: Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference, 2018, arXiv:1712.05877.

    Args:
        model: A trained model, Sequential or functional, of layers that tf_keras has too; it stays
            as it is.
        train: `(x, y)` or `(x, y, sample_weight)` of arrays, or a finite `tf.data.Dataset` of
            batches.
        preserve_sparsity: Weights that are 0 stay 0 (PQAT), as after pruning.
        preserve_clusters: The values of a kernel stay few (CQAT), as after clustering. With both,
            PCQAT.
        min_agreement: The least share of samples on which a classifier must choose what `model`
            chooses, from 0 to 1.
        loss: As of `compile`; so are the next three. Default of each: what `model` was compiled
            with.
        loss_weights: Of several losses.
        metrics: An empty list: none.
        weighted_metrics: An empty list: none.
        optimizer: A Keras 3 optimizer, of which one of tf_keras is made. Default: Adam(0.0001).
        **fit: Further arguments of `fit`: epochs (1), batch_size (32), validation_data, callbacks,
            class_weight, verbose. The model in training is one of tf_keras.

    Returns:
        The file, which LiteRT has run, compared with `model` on some of `train`. Training moves the
        weights, so it differs by more than rounding. `float_layers` says what tfmot cannot
        quantize and has left in float.

    Raises:
        TypeError: `train` is something else.
        ValueError: An argument of `fit` that cannot be chosen.
        UserError: No data, no loss, NaN weights, a model that is quantized already or cannot be
            carried to tf_keras, no layer that can be quantized, or zeros that were lost.
    """
    check_weights(model)
    check_not_quantized(model)
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
    quantized, left = _annotated(carried, _scheme(preserve_sparsity, preserve_clusters))
    prove("quantize_apply", carried, quantized, tuning.sample)
    trained = tuning.in_tf_keras(quantized, compiled)
    tuning.fit(trained, [])
    content = _converted(trained)
    runner = LiteRTModel(content)
    x = tuning.sample
    if isinstance(train, tuple):
        x = keras.tree.map_structure(lambda array: np.asarray(array[:_SAMPLES]), train[0])
    feeds = arrays_by_name(model, runner, x)
    answers = answers_of(model, x)
    if set(answers) != {tensor.name for tensor in runner.outputs}:
        answers = dict(zip(names_of_outputs(model), answers.values(), strict=True))
    kind = "p" * preserve_sparsity + "c" * preserve_clusters + "qat"
    artifact = compare(content, kind, feeds, answers, float_layers=tuple(sorted(left)))
    if preserve_sparsity:
        _check_zeros(model, content)
    if min_agreement is not None:
        check_agreement(artifact, min_agreement)
    return artifact


def _scheme(sparsity: bool, clusters: bool) -> Any:
    combine = tfmot.experimental.combine
    if sparsity and clusters:
        return combine.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=True)
    if clusters:
        return combine.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=False)
    if sparsity:
        return combine.Default8BitPrunePreserveQuantizeScheme()
    return tfmot.quantization.keras.default_8bit.Default8BitQuantizeScheme()


def _annotated(carried: tf_keras.Model, scheme: Any) -> tuple[tf_keras.Model, set[str]]:
    """The model ready for training, and the layers left in float.

    What tfmot does not support it says one layer at a time. A layer such as BatchNormalization is
    supported after a convolution only, so that asking each layer beforehand would not do.
    """
    strange = {layer.name for layer in carried.layers if not _known_activation(layer)}
    embeddings = (e.name for e in carried.layers if isinstance(e, tf_keras.layers.Embedding))
    left = strange | set(embeddings)
    annotated_layer = tfmot.quantization.keras.quantize_annotate_layer
    while True:
        able = [
            layer.name
            for layer in carried.layers
            if layer.name not in left and not isinstance(layer, tf_keras.layers.InputLayer)
        ]
        if not any(carried.get_layer(name).weights for name in able):
            raise UserError(
                f"model {carried.name!r} has no layer that can be trained quantized; those are "
                "Dense, Conv2D, DepthwiseConv2D and Conv2DTranspose"
            )

        def annotate(layer: Any, names: Sequence[str] = tuple(able)) -> Any:
            if layer.name in strange:
                return annotated_layer(layer, LeaveInFloat())
            return annotated_layer(layer) if layer.name in names else layer

        annotated = tf_keras.models.clone_model(carried, clone_function=annotate)
        try:
            with tfmot.quantization.keras.quantize_scope({"LeaveInFloat": LeaveInFloat}):
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


def _converted(model: tf_keras.Model) -> bytes:
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's own, about what it does itself
        try:
            return converter.convert()
        except Exception as error:  # what the converter raises has no end
            reason = (str(error).splitlines() or [repr(error)])[0]
            raise UserError(
                f"model {model.name!r} cannot be converted: {reason}. With a recurrent layer, "
                "quantize it after training instead: quantize(…, dynamic_int8, …)"
            ) from error


def _check_zeros(model: keras.Model, content: bytes) -> None:
    """Holds the zeros in the file's kernels against those that the model came with."""
    values = [np.asarray(each) for own in kernels(model).values() for each in own]
    stored = [weight for weight in file_weights(content) if weight.values.ndim >= 2]
    found = sum(weight.zeros for weight in stored) / sum(weight.values.size for weight in stored)
    expected = zero_share(values)
    if found < expected:
        raise UserError(
            f"model {model.name!r} lost zeros in training: {expected:.1%} before, {found:.1%} in "
            "the file; give layers that tfmot leaves in float no zeros to keep, or prune less"
        )

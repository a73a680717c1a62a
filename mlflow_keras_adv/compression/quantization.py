"""Quantization after training: makes a smaller `.tflite` file of a float model.

A scheme is a function: the float file and samples in, the quantized file out. Those here are of
LiteRT's quantizer; another one needs no registration.

| scheme | weights | computes in | needs samples |
|---|---|---|---|
| `float16` | float16 | float32 | no |
| `dynamic_int8`, `dynamic_int4` | int8, int4 | int8, with ranges found in each call | no |
| `weight_only_int8`, `weight_only_int4` | int8, int4 | float32 | no |
| `int8` | int8 | int8; takes and gives float32 | yes |
| `int8_io` | int8 | int8; takes and gives int8 | yes |
| `int16x8` | int8 | int16; takes and gives float32 | yes |

Jacob et al.: Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference, 2018, arXiv:1712.05877.
"""

import contextlib
import inspect
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.compression.acceptance import MAX_DIFFERENCE, MIN_AGREEMENT, accepted
from mlflow_keras_adv.compression.artifact import Artifact
from mlflow_keras_adv.compression.conversion import compare, convert
from mlflow_keras_adv.compression.dead_channels import mended_biases
from mlflow_keras_adv.errors import UserError, received
from mlflow_keras_adv.extras import extra
from mlflow_keras_adv.tflite.layers import operations_left
from mlflow_keras_adv.tflite.runtime import LiteRTModel
from mlflow_keras_adv.tflite.weights import file_weights

with extra("compression"):
    from litert_quantizer import Quantizer, qtyping, recipe
    from litert_quantizer.calibrator import Calibrator
    from litert_quantizer.recipe_manager import RecipeManager
    from litert_quantizer.utils.qsv_utils import min_max_update

Sample = Mapping[str, np.ndarray]  # by the file's input names, each of shape (1, …)
Scheme = Callable[..., bytes]  # (content, samples) and, if layers can be chosen, left=…

_ALL = qtyping.TFLOperationName.ALL_SUPPORTED
_BORDERS = (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT)


@keeps_random_state()
def quantize(
    model: keras.Model | Artifact,
    scheme: Scheme,
    x: Any = None,
    *,
    batch_size: int | None = None,
    layers: Sequence[str] | None = None,
    min_agreement: float | None = None,
    max_difference: float | None = None,
) -> Artifact:
    """Quantizes a model, runs the file once and compares it with its source.

    Args:
        model: A built Keras 3 model, which stays as it is, or the `Artifact` of `convert`, so that
            several schemes share one conversion.
        scheme: One of the functions of this module, or another of that kind.
        x: Representative samples, in any form that `convert` takes; a few hundred of the training
            split are enough. They set the ranges of activations, if the scheme needs them, and file
            and source are compared on them. With an `Artifact` its own samples are used.
        batch_size: See `convert`.
        layers: Which layers to quantize, by name, of an inner model's `inner.dense`; the others
            stay in float. Default: all that the scheme can.
        min_agreement: Smallest accepted share of equal decisions of a classifier and its file, from
            0 to 1. Default: 0.9. A model is a classifier by its loss, or if it gives probabilities
            that sum to 1; passing a share declares scores to be those of classes.
        max_difference: Largest accepted `difference` of the outputs. Default: 0.1 for a model that
            is no classifier, else any.

    Returns:
        The file, which LiteRT has run, compared with its source.

    Raises:
        TypeError: `x` is something else.
        ValueError: `x` is empty or does not fit the model, a layer is not there, or the scheme is
            one that takes no choice of layers.
        UserError: What `convert` refuses; or the scheme changed nothing, LiteRT cannot run the
            file, or it is further from its source than it may be.
    """
    if not callable(scheme):
        raise TypeError(
            f"Received {received(scheme)} as the scheme; expected a function, such as "
            "mka.compression.int8 or mka.compression.float16."
        )
    if isinstance(model, Artifact):
        if model.scheme != "float32":
            raise ValueError(f"this file is quantized already ({model.scheme}); give a float one")
        if x is not None:
            raise ValueError("a converted model has its samples; leave x out, or give the model")
        source = model
    else:
        source = convert(model, x, batch_size=batch_size)
    name = getattr(scheme, "__name__", type(scheme).__name__)
    count = len(next(iter(source.feeds.values())))
    size = _call_size(source.content)
    samples = [
        {key: array[row : row + size] for key, array in source.feeds.items()}
        for row in range(0, count - size + 1, size)
    ]
    left: tuple[str, ...] = ()
    more: dict[str, Any] = {}
    if layers is not None:
        left = _others(source, layers)
        more = _choice(scheme, name, operations_left(source.content, source.operations, layers))
    try:
        content = scheme(source.content, samples, **more)
    except UserError:
        raise
    except Exception as error:  # what the quantizer raises has no end
        raise UserError(
            f"scheme {name} cannot quantize this model: {error}. A recurrent layer can be "
            "quantized by float16, dynamic or weight_only schemes."
        ) from error
    if content == source.content:
        raise UserError(
            f"scheme {name} changed nothing: the model has no layer that LiteRT's quantizer knows"
        )
    artifact = compare(
        content, name, source.feeds, source.expected, float_layers=left, losses=source.losses
    )
    if _same_weights(content, source.content):
        kinds = ", ".join(sorted({each.dtype for each in file_weights(content)})) or "none"
        raise UserError(
            f"scheme {name} changed no weight: they are {kinds} as before. It may have no way with "
            "these layers, such as an Embedding by itself; try int8, which has samples."
        )
    if min_agreement is None and artifact.agreement is not None:
        min_agreement = MIN_AGREEMENT
    if max_difference is None and min_agreement is None:
        max_difference = MAX_DIFFERENCE
    return accepted(artifact, min_agreement, max_difference)


def _same_weights(content: bytes, source: bytes) -> bool:
    ours, theirs = file_weights(content), file_weights(source)
    return len(ours) == len(theirs) and all(
        a.dtype == b.dtype and np.array_equal(a.values, b.values)
        for a, b in zip(ours, theirs, strict=True)
    )


def _others(source: Artifact, layers: Sequence[str]) -> tuple[str, ...]:
    """The layers that were not chosen."""
    for name in layers:
        if name not in source.operations:
            raise ValueError(
                f"layers names {name!r}, which the file has no weights of; those that it has are "
                f"{', '.join(source.operations) or 'none'}"
            )
    if not layers:
        raise ValueError("layers names no layer; leave it out to quantize all")
    return tuple(name for name in source.operations if name not in layers)


def _choice(scheme: Scheme, name: str, left: Sequence[str]) -> dict[str, Any]:
    if "left" not in inspect.signature(scheme).parameters:
        raise ValueError(
            f"scheme {name} takes no choice of layers: give it a parameter `left`, the names of "
            "the operations that stay in float"
        )
    return {"left": left}


def float16(content: bytes, _samples: Sequence[Sample], *, left: Sequence[str] = ()) -> bytes:
    """Weights as float16: half the size; it computes in float32.

    Args:
        content: A float `.tflite` file.
        _samples: Not used: nothing is calibrated.
        left: Operations that stay in float.

    Returns:
        The quantized file.
    """
    config = qtyping.OpQuantizationConfig(
        weight_tensor_config=qtyping.TensorQuantizationConfig(
            num_bits=16, dtype=qtyping.TensorDataType.FLOAT
        ),
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    quantizer = Quantizer(bytearray(content))
    casting = recipe.AlgorithmName.FLOAT_CASTING
    quantizer.update_quantization_recipe(".*", _ALL, config, casting)
    return _quantized(quantizer, left=left)


def dynamic_int8(content: bytes, _samples: Sequence[Sample], *, left: Sequence[str] = ()) -> bytes:
    """Weights as int8; activations are quantized in each call, by their range in that call.

    Args:
        content: A float `.tflite` file.
        _samples: Not used: nothing is calibrated.
        left: Operations that stay in float.

    Returns:
        The quantized file.
    """
    return _quantized(Quantizer(bytearray(content), recipe.dynamic_wi8_afp32()), left=left)


def dynamic_int4(content: bytes, _samples: Sequence[Sample], *, left: Sequence[str] = ()) -> bytes:
    """Weights as int4; activations are quantized in each call.

    Args:
        content: A float `.tflite` file.
        _samples: Not used: nothing is calibrated.
        left: Operations that stay in float.

    Returns:
        The quantized file.
    """
    return _quantized(Quantizer(bytearray(content), recipe.dynamic_wi4_afp32()), left=left)


def weight_only_int8(
    content: bytes, _samples: Sequence[Sample], *, left: Sequence[str] = ()
) -> bytes:
    """Weights as int8, made floats again before they are used.

    Args:
        content: A float `.tflite` file.
        _samples: Not used: nothing is calibrated.
        left: Operations that stay in float.

    Returns:
        The quantized file.
    """
    return _quantized(Quantizer(bytearray(content), recipe.weight_only_wi8_afp32()), left=left)


def weight_only_int4(
    content: bytes, _samples: Sequence[Sample], *, left: Sequence[str] = ()
) -> bytes:
    """Weights as int4, made floats again before they are used.

    Args:
        content: A float `.tflite` file.
        _samples: Not used: nothing is calibrated.
        left: Operations that stay in float.

    Returns:
        The quantized file.
    """
    return _quantized(Quantizer(bytearray(content), recipe.weight_only_wi4_afp32()), left=left)


def int8(content: bytes, samples: Sequence[Sample], *, left: Sequence[str] = ()) -> bytes:
    """Weights and activations as int8; takes and gives float32.

    Args:
        content: A float `.tflite` file.
        samples: What the ranges of the activations are measured on.
        left: Operations that stay in float.

    Returns:
        The quantized file.
    """
    return _static(content, samples, bits=8, float_borders=True, left=left)


def int8_io(content: bytes, samples: Sequence[Sample], *, left: Sequence[str] = ()) -> bytes:
    """Weights and activations as int8; takes and gives int8, as a device without floats does.

    Args:
        content: A float `.tflite` file.
        samples: What the ranges of the activations are measured on.
        left: Operations that stay in float.

    Returns:
        The quantized file.
    """
    return _static(content, samples, bits=8, float_borders=False, left=left)


def int16x8(content: bytes, samples: Sequence[Sample], *, left: Sequence[str] = ()) -> bytes:
    """Weights as int8, activations as int16: finer, slow on processors; takes and gives float32.

    Args:
        content: A float `.tflite` file.
        samples: What the ranges of the activations are measured on.
        left: Operations that stay in float.

    Returns:
        The quantized file.
    """
    return _static(content, samples, bits=16, float_borders=True, left=left)


# Every scheme, the coarser the later.
SCHEMES: tuple[Scheme, ...] = (
    *(float16, int16x8, weight_only_int8, dynamic_int8, int8, int8_io),
    *(weight_only_int4, dynamic_int4),
)


def _static(
    content: bytes,
    samples: Sequence[Sample],
    *,
    bits: int,
    float_borders: bool,
    left: Sequence[str],
) -> bytes:
    if not samples:
        raise ValueError("this scheme needs samples, which set the ranges of activations; got none")
    plan = RecipeManager()
    plan.add_static_config(".*", _ALL, activation_num_bits=bits, weight_num_bits=8)
    if float_borders:
        for border in _BORDERS:
            leave = recipe.AlgorithmName.NO_QUANTIZE
            plan.add_quantization_config(".*", border, algorithm_key=leave)
    for scope in left:
        leave = recipe.AlgorithmName.NO_QUANTIZE
        plan.add_quantization_config(f"^{re.escape(scope)}$", _ALL, algorithm_key=leave)
    # Its default is a moving average of the samples' ranges, which cuts off what is larger: answers
    # were off by up to 40 % of the largest, where the widest range is off by less than 2 %.
    with _quietly():
        calibrator = Calibrator(content, num_threads=1, qsv_update_func=min_max_update)
        calibrator.calibrate({_signature(content): samples}, plan)
        ranges = calibrator.get_model_qsvs()
    quantizer = Quantizer(bytearray(content), plan.get_quantization_recipe())
    with np.errstate(invalid="ignore"):  # of the biases that are mended
        quantized = _quantized(quantizer, ranges)
    return mended_biases(quantized, content)


def _quantized(quantizer: Quantizer, ranges: Any = None, *, left: Sequence[str] = ()) -> bytes:
    for scope in left:
        leave = recipe.AlgorithmName.NO_QUANTIZE
        pattern = f"^{re.escape(scope)}$"
        quantizer.update_quantization_recipe(pattern, _ALL, algorithm_key=leave)
    with _quietly():
        result = quantizer.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silences the progress bar, and LiteRT's warning that all tensors are preserved."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.filterwarnings("ignore", ".*experimental_preserve_all_tensors")
        yield


def _signature(content: bytes) -> str:
    return LiteRTModel(content).signature or "serving_default"


def _call_size(content: bytes) -> int:
    """Samples of one call in calibration: one, unless the file takes no fewer than it says."""
    rows = LiteRTModel(content).rows
    return rows if rows is not None and rows > 0 else 1

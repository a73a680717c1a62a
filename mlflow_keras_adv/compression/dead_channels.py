"""Corrects the biases of channels whose weights are (almost) zero, which LiteRT quantizes wrongly.

It gives such a channel the scale 1e-9 / 127 for want of a range. The bias is stored in steps of the
input's scale times that, and the number of steps no longer fits: a bias of 1 comes out as a large
negative number. Pruned models have such channels.
"""

import numpy as np

from mlflow_keras_adv.extras import extra
from mlflow_keras_adv.tflite.weights import constant

with extra("compression"):
    from ai_edge_litert import schema_py_generated as schema

_STEPS = 2**20  # of a mended bias: exact to a millionth, and far from the end of int32


def mended_biases(content: bytes, source: bytes) -> bytes:
    """A file with the biases of dead channels as they are in its source.

    Args:
        content: A file with integer weights and biases, by LiteRT's quantizer.
        source: The float file that it was made of, with tensors of the same names.

    Returns:
        `content`, where scales and biases of such channels are replaced, and their weights are
        rounded to the new scales.
    """
    file = bytearray(content)  # whose arrays, read as NumPy's, can be written
    model, original = schema.Model.GetRootAs(file, 0), schema.Model.GetRootAs(source, 0)
    floats = _biases(source, original)
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for operator in map(graph.Operators, range(graph.OperatorsLength())):
            if operator.InputsLength() != 3 or operator.Inputs(2) < 0:
                continue
            kernel, bias = graph.Tensors(operator.Inputs(1)), graph.Tensors(operator.Inputs(2))
            if bias.Name() in floats and kernel.Type() == schema.TensorType.INT8:
                stored = constant(file, model, kernel), constant(file, model, bias)
                _mend(kernel, bias, *stored, floats[bias.Name()])
    return bytes(file)


def _mend(
    kernel: schema.Tensor,
    bias: schema.Tensor,
    weights: np.ndarray | None,
    steps_of_bias: np.ndarray | None,
    wanted: np.ndarray,
) -> None:
    scales, steps = kernel.Quantization().ScaleAsNumpy(), bias.Quantization().ScaleAsNumpy()
    if weights is None or steps_of_bias is None:
        return  # computed
    if not isinstance(scales, np.ndarray) or len(scales) != len(wanted):
        return  # one scale for all channels, which is 0 for none
    axis = kernel.Quantization().QuantizedDimension()
    values = np.moveaxis(weights.view(np.int8).reshape(kernel.ShapeAsNumpy()), axis, 0)
    wide = bias.Type() == schema.TensorType.INT64
    stored = steps_of_bias.view(np.int64 if wide else np.int32)
    is_empty = ~values.reshape(len(values), -1).any(axis=1) & (wanted != 0)
    dead = is_empty | (np.abs(stored * steps.astype(np.float64) - wanted) > steps)
    if not dead.any():
        return
    inputs = steps[dead] / scales[dead]  # the scale of the input, as often as there are channels
    coarser = scales[dead]
    steps[dead] = np.abs(wanted[dead]) / _STEPS
    scales[dead] = steps[dead] / inputs
    stored[dead] = np.round(wanted[dead] / steps[dead])
    coarser = (coarser / scales[dead]).reshape(-1, *[1] * (values.ndim - 1))
    values[dead] = np.round(values[dead] * coarser)


def _biases(content: bytes, model: schema.Model) -> dict[bytes, np.ndarray]:
    """The constants of rank 1 in a float file, by the names of their tensors."""
    found = {}
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for tensor in map(graph.Tensors, range(graph.TensorsLength())):
            raw = constant(content, model, tensor)
            if (
                raw is not None
                and tensor.ShapeLength() == 1
                and tensor.Type() == schema.TensorType.FLOAT32
            ):
                found[tensor.Name()] = raw.view(np.float32)
    return found

"""The weights in a `.tflite` file, tensor by tensor, as read from the file."""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_keras_adv.extras import extra

if TYPE_CHECKING:
    from ai_edge_litert import schema_py_generated as schema


@dataclass(frozen=True, eq=False)
class FileWeight:
    """One constant of a file.

    Attributes:
        name: Name of the tensor, which contains that of the layer: "functional/dense/MatMul".
        dtype: "float32", "float16", "int8", "int4", "int32" for quantized biases, ….
        values: The numbers as stored; int4 as int8.
        zeros: How many of them encode 0.
        size_bytes: Their size in the file.
    """

    name: str
    dtype: str
    values: np.ndarray
    zeros: int
    size_bytes: int


def file_weights(content: bytes) -> list[FileWeight]:
    """Reads every weight in the file, each once, even if several operations share it.

    Args:
        content: A `.tflite` file that LiteRT has run; a damaged file may be misread.

    Returns:
        Constants that are floats, or integers that encode them, but not shapes and axes, which are
        integers too. Their dtypes are those of NumPy, and int4.
    """
    model = _schema().Model.GetRootAs(content, 0)
    found: dict[int, FileWeight] = {}
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for tensor in map(graph.Tensors, range(graph.TensorsLength())):
            raw = constant(content, model, tensor)
            dtype = _dtypes()[tensor.Type()]
            encoded = tensor.Quantization() is not None and tensor.Quantization().ScaleLength() > 0
            if raw is None or not (dtype.startswith("float") or encoded):
                continue
            shape = tensor.ShapeAsNumpy() if tensor.ShapeLength() else ()
            values = _unpacked(raw, dtype, tuple(int(size) for size in shape))
            name = tensor.Name().decode(errors="replace").partition(";")[0]
            found[tensor.Buffer()] = FileWeight(
                name, dtype, values, _zeros(values, tensor), len(raw)
            )
    return list(found.values())


def constant(
    content: bytes | bytearray, model: "schema.Model", tensor: "schema.Tensor"
) -> np.ndarray | None:
    """Reads the constant value of a tensor as bytes; None if it is computed.

    Args:
        content: The file; the array is a view of it, which is writable if it is a bytearray.
        model: Read from `content`.
        tensor: Tensor of that model.
    """
    buffer = model.Buffers(tensor.Buffer())
    if buffer.Offset() > 1:  # behind the flatbuffer, where LiteRT's quantizer puts 256 kB and more
        return np.frombuffer(content, np.uint8, buffer.Size(), buffer.Offset())
    raw = buffer.DataAsNumpy()
    return raw if isinstance(raw, np.ndarray) else None


def _zeros(values: np.ndarray, tensor: "schema.Tensor") -> int:
    points = [0]
    quantization = tensor.Quantization()
    if quantization is not None and quantization.ZeroPointLength():
        points = quantization.ZeroPointAsNumpy().tolist()
    if len(points) > 1:  # one a channel
        axes = [1] * values.ndim
        axes[quantization.QuantizedDimension()] = len(points)
        return int(np.count_nonzero(values == np.reshape(points, axes)))
    return int(np.count_nonzero(values == points[0]))


def _unpacked(raw: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if dtype != "int4":
        return raw.view(dtype).reshape(shape)
    pairs = np.stack([raw & 0x0F, raw >> 4], axis=-1).astype(np.int8).reshape(-1)  # low one first
    return np.where(pairs > 7, pairs - 16, pairs)[: int(np.prod(shape))].reshape(shape)


@cache
def _dtypes() -> dict[int, str]:
    known = vars(_schema().TensorType).items()
    return {number: name.lower() for name, number in known if isinstance(number, int)}


def _schema() -> Any:
    """Imported on first use: code for files and Keras models must work without LiteRT."""
    with extra("compression"):
        from ai_edge_litert import schema_py_generated
    return schema_py_generated

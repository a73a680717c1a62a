"""Counts the floating-point operations of one operation of a graph, by its shapes.

TensorFlow's own profiler knows fewer than fifty operations: no sigmoid, tanh, relu, exp or einsum,
no gradient of a depthwise convolution, and nothing that happens in a loop. It leaves the others out
without a word. So the table is ours; what a forward pass has of those fifty counts as there.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any


def table(counts: Mapping[int, str]) -> dict[str, int]:
    """Inverts a table: from names by count to the count by name."""
    return {name: count for count, names in counts.items() for name in names.split()}


# Of each number that comes out. What is made of several steps counts these: a sigmoid negates,
# takes the exponential, adds 1 and divides.
_FOR_EACH_OUTPUT = table(
    {
        1: """
        Add AddV2 Sub Mul MulNoNan Div DivNoNan RealDiv FloorDiv TruncateDiv FloorMod Mod Pow
        Maximum Minimum Neg Abs Sign Square Sqrt Exp Expm1 Log Log1p Sin Cos Tan Asin Acos Atan
        Atan2 Sinh Cosh Tanh Asinh Acosh Atanh Erf Erfc Erfinv Ndtri Lgamma Digamma Floor Ceil Round
        Rint Reciprocal Inv Relu Relu6 LeakyRelu ReluGrad Relu6Grad LeakyReluGrad BiasAdd Less
        LessEqual Greater GreaterEqual Equal NotEqual ApproximateEqual Cumsum Cumprod
        """,
        2: "Rsqrt SquaredDifference ClipByValue Xlogy Xdivy Elu EluGrad SqrtGrad",
        3: """
        Selu SeluGrad Softplus Softsign InvGrad ReciprocalGrad SigmoidGrad TanhGrad SoftsignGrad
        SoftplusGrad
        """,
        4: "Sigmoid RsqrtGrad",
        5: "Softmax LogSoftmax",
    }
)
# Of each number that goes in; a mean divides for the addition that the first number needs not.
_FOR_EACH_INPUT = table(
    {
        1: """
        Mean SegmentSum SegmentMax SegmentMin SegmentMean SegmentProd UnsortedSegmentSum
        UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd
        """,
        2: "L2Loss EuclideanNorm",
        # With the gradient, which they give too.
        6: "SparseSoftmaxCrossEntropyWithLogits",
        8: "SoftmaxCrossEntropyWithLogits",
    }
)
# Of each number that is added to a variable, or to rows of it: which input that is.
_ADDED = table(
    {
        1: "AssignAddVariableOp AssignSubVariableOp",
        2: """
        ResourceScatterAdd ResourceScatterSub ResourceScatterMul ResourceScatterNdAdd
        TensorScatterAdd TensorScatterSub
        """,
    }
)
# What moves numbers, or makes and names them, and computes none.
_FREE = table(
    {
        0: """
        Placeholder PlaceholderWithDefault Const Identity IdentityN Snapshot StopGradient
        PreventGradient CheckNumerics CheckNumericsV2 EnsureShape Reshape Squeeze ExpandDims
        Transpose
        ConjugateTranspose Tile BroadcastTo Fill ZerosLike OnesLike Cast Bitcast Shape ShapeN Size
        Rank
        Slice StridedSlice StridedSliceGrad Split SplitV Pack Unpack Concat ConcatV2 Pad PadV2
        MirrorPad MirrorPadGrad Reverse ReverseV2 ReverseSequence Roll Gather GatherV2 GatherNd
        ResourceGather ResourceGatherNd ScatterNd TensorScatterUpdate ResourceScatterUpdate
        DynamicStitch ParallelDynamicStitch DynamicPartition Select SelectV2 Where Diag DiagPart
        MatrixDiag MatrixDiagV2 MatrixDiagV3 MatrixDiagPart MatrixDiagPartV2 MatrixDiagPartV3
        MatrixSetDiag MatrixSetDiagV2 MatrixSetDiagV3 MatrixBandPart OneHot Range LinSpace Empty
        SpaceToDepth DepthToSpace SpaceToBatch SpaceToBatchND BatchToSpace BatchToSpaceND
        ResizeNearestNeighbor ExtractImagePatches TopK TopKV2 Unique UniqueV2
        InvertPermutation Sort IsNan IsInf IsFinite ReadVariableOp AssignVariableOp VarHandleOp
        VariableShape VarIsInitializedOp DestroyResourceOp NoOp Assert Print PrintV2 ControlTrigger
        TensorListFromTensor TensorListStack TensorListGetItem TensorListSetItem TensorListReserve
        EmptyTensorList TensorListPushBack TensorListPopBack TensorListLength TensorListElementShape
        TensorListGather TensorListScatter TensorListConcat TensorListConcatV2 TensorListSplit
        TensorListResize TensorListScatterIntoExistingList TensorListPushBackBatch
        AccumulatorV2 StackPushV2 StackPopV2 OptionalGetValue IteratorGetNext LookupTableFindV2
        LookupTableSizeV2 StringFormat StringToNumber AsString DecodeRaw FakeParam Switch Merge
        BroadcastGradientArgs SparseToDense SparseReshape RaggedTensorToTensor
        RaggedTensorFromVariant
        RaggedTensorToVariant RaggedGather RaggedRange ConcatOffset XlaSharding
        """
    }
)


def operations_in(operation: Any) -> int | None:
    """Counts the floating-point operations of an operation of a graph, a multiply-add as 2.

    Args:
        operation: A `tf.Operation`, of known shapes.

    Returns:
        None of one that is not known, and works on floating-point numbers.

    Raises:
        ValueError: A shape that it takes is not known.
    """
    kind = operation.type
    if (count := _CONTRACTIONS.get(kind)) is not None:  # of integers, too: of quantized layers
        return count(operation)
    if not any(_is_float(each) for each in (*operation.inputs, *operation.outputs)):
        return 0
    if kind in _FREE:
        return 0
    if kind in _FOR_EACH_OUTPUT:
        return _FOR_EACH_OUTPUT[kind] * _numbers(operation.outputs[0])
    if kind in _FOR_EACH_INPUT:
        return _FOR_EACH_INPUT[kind] * _numbers(operation.inputs[0])
    if kind in _ADDED:
        return _numbers(operation.inputs[_ADDED[kind]])
    if (count := _OTHERS.get(kind)) is not None:
        return count(operation)
    return None


def moves_only(kind: str) -> bool:
    """Whether operations of this name compute no numbers."""
    return kind in _FREE


def _is_float(tensor: Any) -> bool:
    return bool(tensor.dtype.is_floating or tensor.dtype.is_complex)


def _shape(tensor: Any) -> list[int]:
    shape: list[int] = tensor.shape.as_list()  # raises ValueError where the rank is not known
    if None in shape:
        raise ValueError(f"{tensor.name} is of the shape {tensor.shape}")
    return shape


def _numbers(tensor: Any) -> int:
    return math.prod(_shape(tensor))


def _reduction(operation: Any) -> int:
    return _numbers(operation.inputs[0]) - _numbers(operation.outputs[0])


def _sum_of_several(operation: Any) -> int:
    return (len(operation.inputs) - 1) * _numbers(operation.outputs[0])


def _pool(operation: Any) -> int:
    return _numbers(operation.outputs[0]) * math.prod(operation.get_attr("ksize"))


def _pool_gradient(operation: Any) -> int:
    """For each number of the incoming gradient, the size of its window."""
    return _numbers(operation.inputs[-1]) * math.prod(operation.get_attr("ksize"))


def _normalization(operation: Any) -> int:
    """Scale and offset of each channel are made once; in training of the batch's statistics."""
    numbers, channels = _numbers(operation.inputs[0]), _numbers(operation.inputs[1])
    return (6 if operation.get_attr("is_training") else 2) * numbers + 5 * channels


def _matrices(operation: Any) -> int:
    """Each number that comes out is a sum over the axis that both have."""
    transposed = any(
        operation.get_attr(name)
        for name in ("transpose_a", "adj_x")
        if name in operation.node_def.attr
    )
    inner = _shape(operation.inputs[0])[-2 if transposed else -1]
    return 2 * inner * _numbers(operation.outputs[0])


def _einsum(operation: Any) -> int:
    """The sizes of all axes, multiplied: for two tensors nothing is computed twice."""
    equation = operation.get_attr("equation").decode()
    terms = equation.partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, operation.inputs, strict=True):
        shape = _shape(tensor)
        before, dots, after = term.partition("...")
        around = len(shape) - len(before) - len(after)
        # Axes behind the dots are matched from the last one, as in broadcasting.
        names = [*before, *([f".{around - n}" for n in range(around)] if dots else []), *after]
        for name, size in zip(names, shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
    return (2 if len(terms) > 1 else 1) * math.prod(sizes.values())


def _convolution(moving: int, kernel: Callable[[Any], list[int]]) -> Callable[[Any], int]:
    """Counts a convolution or its gradient.

    Args:
        moving: Number of the input that holds what each position of the kernel makes a number of
            (or, in a gradient, takes one of); -1 for the output.
        kernel: The shape of the kernel, without its outputs.
    """

    def count(operation: Any) -> int:
        positions = operation.outputs[0] if moving < 0 else operation.inputs[moving]
        return 2 * _numbers(positions) * math.prod(kernel(operation))

    return count


def _kernel(operation: Any) -> list[int]:
    return _shape(operation.inputs[1])[:-1]


def _depthwise_kernel(operation: Any) -> list[int]:
    return _shape(operation.inputs[1])[:2]


def _kernel_made(operation: Any) -> list[int]:
    return _shape(operation.outputs[0])[:-1]


def _depthwise_kernel_made(operation: Any) -> list[int]:
    return _shape(operation.outputs[0])[:2]


_CONTRACTIONS: dict[str, Callable[[Any], int]] = {
    **dict.fromkeys(("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"), _matrices),
    "Einsum": _einsum,
    **dict.fromkeys(("Conv2D", "Conv3D", "Conv"), _convolution(-1, _kernel)),
    "DepthwiseConv2dNative": _convolution(-1, _depthwise_kernel),
    # A transposed convolution is the gradient of one: of each number that goes in.
    **dict.fromkeys(("Conv2DBackpropInput", "Conv3DBackpropInputV2"), _convolution(2, _kernel)),
    "DepthwiseConv2dNativeBackpropInput": _convolution(2, _depthwise_kernel),
    **dict.fromkeys(
        ("Conv2DBackpropFilter", "Conv3DBackpropFilterV2"), _convolution(2, _kernel_made)
    ),
    "DepthwiseConv2dNativeBackpropFilter": _convolution(2, _depthwise_kernel_made),
}
_OTHERS: dict[str, Callable[[Any], int]] = {
    **dict.fromkeys(("Sum", "Prod", "Max", "Min", "ArgMax", "ArgMin", "BiasAddGrad"), _reduction),
    **dict.fromkeys(("AddN", "AccumulateNV2"), _sum_of_several),
    **dict.fromkeys(("MaxPool", "MaxPool3D", "AvgPool", "AvgPool3D"), _pool),
    **dict.fromkeys(
        ("MaxPoolGrad", "MaxPool3DGrad", "AvgPoolGrad", "AvgPool3DGrad"), _pool_gradient
    ),
    "FusedBatchNormV3": _normalization,
}

"""Counts the operations of a `.tflite` file like those of a Keras model: see `metrics.flops`."""

import math
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.extras import extra
from mlflow_keras_adv.metrics.flops import Flops
from mlflow_keras_adv.metrics.operations import moves_only, table
from mlflow_keras_adv.tflite.runtime import LiteRTModel
from mlflow_keras_adv.tflite.weights import constant

with extra("compression"):
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

# Of each number that comes out.
_FOR_EACH_OUTPUT = table(
    {
        1: """
        ADD SUB MUL DIV FLOOR_DIV FLOOR_MOD POW MAXIMUM MINIMUM NEG ABS SIGN SQUARE SQRT EXP LOG SIN
        COS ATAN2 TANH FLOOR CEIL ROUND RELU RELU6 RELU_N1_TO_1 RELU_0_TO_1 LEAKY_RELU LESS
        LESS_EQUAL GREATER GREATER_EQUAL EQUAL NOT_EQUAL CUMSUM
        """,
        2: "RSQRT SQUARED_DIFFERENCE PRELU ELU QUANTIZE DEQUANTIZE",
        3: "L2_NORMALIZATION",
        4: "LOGISTIC HARD_SWISH",
        5: "SOFTMAX LOG_SOFTMAX GELU",
    }
)
_FOR_EACH_INPUT = table(
    {
        1: """
        MEAN SEGMENT_SUM UNSORTED_SEGMENT_SUM
        """
    }
)
_REDUCTIONS = ("SUM", "REDUCE_PROD", "REDUCE_MAX", "REDUCE_MIN", "ARG_MAX", "ARG_MIN")
_FREE = table(
    {
        0: """
        RESHAPE SQUEEZE EXPAND_DIMS TRANSPOSE TILE BROADCAST_TO FILL ZEROS_LIKE CAST BITCAST SHAPE
        RANK
        SLICE STRIDED_SLICE SPLIT SPLIT_V PACK UNPACK CONCATENATION PAD PADV2 MIRROR_PAD REVERSE_V2
        REVERSE_SEQUENCE GATHER GATHER_ND SCATTER_ND EMBEDDING_LOOKUP SELECT SELECT_V2 WHERE
        MATRIX_DIAG MATRIX_SET_DIAG ONE_HOT RANGE SPACE_TO_DEPTH DEPTH_TO_SPACE SPACE_TO_BATCH_ND
        BATCH_TO_SPACE_ND RESIZE_NEAREST_NEIGHBOR TOPK_V2 UNIQUE DYNAMIC_UPDATE_SLICE VAR_HANDLE
        READ_VARIABLE ASSIGN_VARIABLE CALL_ONCE SPARSE_TO_DENSE DENSIFY
        """
    }
)
# Of each unit and step of an LSTM beside its matrix products: what they give and the bias is added,
# three gates are sigmoids, two are tanh, then four products and sums.
_LSTM_UNIT = 8 + 3 * 4 + 2 + 4
_LSTMS = ("UNIDIRECTIONAL_SEQUENCE_LSTM", "LSTM")


def file_flops(content: bytes, x: Any) -> Flops:
    """Counts the operations of a `.tflite` file for one sample, by the rules of `metrics.flops`.

    For a quantized file they are integer operations; the conversion of a number counts as 2. A
    normalization that the converter has folded into a kernel is not counted.

    Args:
        content: The file.
        x: Input of `LiteRTModel.predict`, at least one sample, which gives the shapes and the
            iterations of loops.

    Raises:
        UserError: LiteRT cannot run it, and its shapes are free.
    """
    model = LiteRTModel(content)
    rows = 1 if model.rows in (-1, None) else int(model.rows)
    feeds = {}
    given = model.named(x)
    for tensor in model.inputs:
        array = tensor.encode(given[tensor.name])
        if model.rows is not None:
            array = np.resize(array, (rows, *array.shape[1:]))
        elif tensor.shape[:1] == (-1,):  # a quantizer may take the -1 from the output alone
            array = array[:1]
        feeds[tensor.index] = array
    counted = _Counted(content, feeds)
    return Flops.summed(counted.counted, counted.uncounted).of_each(rows)


class _Counted:
    """The operations of a file, on one call of it."""

    def __init__(self, content: bytes, feeds: Mapping[int, np.ndarray]) -> None:
        self.counted: Counter[str] = Counter()
        self.uncounted: Counter[str] = Counter()
        self.content = content
        self.model = schema.Model.GetRootAs(content, 0)
        # Without delegates, which keep to themselves what happens between; what a loop has counted
        # is read afterwards.
        self.interpreter = Interpreter(
            model_content=content,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            experimental_preserve_all_tensors=True,
        )
        self.has_run = False
        try:
            for index, array in feeds.items():
                self.interpreter.resize_tensor_input(index, array.shape)
            self.interpreter.allocate_tensors()
            for index, array in feeds.items():
                self.interpreter.set_tensor(index, array)
            self.interpreter.invoke()
            self.has_run = True
        except (RuntimeError, ValueError) as error:  # of an operation that a delegate alone has
            for detail in self.interpreter.get_input_details():
                if -1 in detail["shape_signature"][1:]:  # of the samples the file says 1
                    raise UserError(f"The FLOPs of the file cannot be counted: {error}") from error
        self._add(0, 1)

    def _add(self, number: int, times: int) -> None:
        graph = self.model.Subgraphs(number)
        details = self.interpreter.get_tensor_details(number)
        shapes = {int(each["index"]): tuple(map(int, each["shape"])) for each in details}
        for place in range(graph.OperatorsLength()):
            operation = _Operation(self, graph, graph.Operators(place), shapes)
            if operation.kind == "WHILE":
                turns = self._turns(number, operation)
                if turns is None:
                    self.uncounted["loop of unknown length, counted once"] += times
                body = operation.options.BodySubgraphIndex()
                self._add(body, times * (1 if turns is None else turns))
                self._add(
                    operation.options.CondSubgraphIndex(),
                    times * (1 if turns is None else turns + 1),
                )
            elif operation.kind == "IF":
                self._add_branch(operation, times)
            else:
                count = operation.count()
                if count is None:
                    self.uncounted[operation.kind] += times
                else:
                    self.counted[operation.kind] += times * count

    def _add_branch(self, operation: "_Operation", times: int) -> None:
        """The branch with the most."""
        own = self.counted, self.uncounted
        options = operation.options
        found = []
        for branch in (options.ThenSubgraphIndex(), options.ElseSubgraphIndex()):
            self.counted, self.uncounted = Counter(), Counter()
            self._add(branch, times)
            found.append((self.counted, self.uncounted))
        self.counted, self.uncounted = own
        most = max(found, key=lambda each: each[0].total())
        self.counted += most[0]
        self.uncounted += most[1]

    def _turns(self, number: int, operation: "_Operation") -> int | None:
        """The number of iterations of a loop, by a counter to which each iteration adds 1."""
        if not self.has_run:
            return None
        body = self.model.Subgraphs(operation.options.BodySubgraphIndex())
        inputs, outputs = body.InputsAsNumpy(), body.OutputsAsNumpy()
        makers: dict[int, _Operation] = {}
        for place in range(body.OperatorsLength()):
            one = _Operation(self, body, body.Operators(place), {})
            makers.update(dict.fromkeys(one.outputs, one))
        for place, output in enumerate(outputs):
            maker = makers.get(int(output))
            if maker is None or maker.kind != "ADD" or int(inputs[place]) not in maker.inputs:
                continue
            step = next((i for i in maker.inputs if i != int(inputs[place])), None)
            raw = None if step is None else constant(self.content, self.model, body.Tensors(step))
            tensor = body.Tensors(int(output))
            if raw is None or tensor.Type() != schema.TensorType.INT32 or len(raw) != 4:
                continue
            begun, ended = (
                int(np.reshape(self.interpreter.get_tensor(side[place], number), ()))
                for side in (operation.inputs, operation.outputs)
            )
            if step_size := int(raw.view(np.int32)[0]):
                return (ended - begun) // step_size
        return None


class _Operation:
    """One of the file, with the shapes that it works on."""

    def __init__(
        self,
        file: _Counted,
        graph: "schema.SubGraph",
        operator: "schema.Operator",
        shapes: Mapping[int, tuple[int, ...]],
    ) -> None:
        code = file.model.OperatorCodes(operator.OpcodeIndex())
        self.kind = _kind(code)
        taken = operator.InputsAsNumpy() if operator.InputsLength() else []
        self.inputs = [int(number) for number in taken]
        made = operator.OutputsAsNumpy() if operator.OutputsLength() else []
        self.outputs = [int(number) for number in made]
        self._file = file
        self._graph = graph
        self._operator = operator
        self._shapes = shapes

    @cached_property
    def options(self) -> Any:
        """The table of its options; None if it has none."""
        table = self._operator.BuiltinOptions()
        name = _names(schema.BuiltinOptions).get(self._operator.BuiltinOptionsType(), "NONE")
        if table is None or name == "NONE":
            return None
        options = getattr(schema, name)()
        options.Init(table.Bytes, table.Pos)
        return options

    def count(self) -> int | None:
        """The number of its operations; None if it is unknown."""
        if not any(map(self._is_number, (*self.inputs, *self.outputs))):
            return 0
        if self.kind in _FREE or moves_only(self.kind.removeprefix("Flex")):
            return 0
        if self.kind == "DEQUANTIZE" and self._is_constant(self.inputs[0]):
            return 0  # once, when the file is loaded
        made = self._base()
        if made is None:
            return None
        activation = getattr(self.options, "FusedActivationFunction", None)
        return made + (self._numbers(self.outputs[0]) if activation and activation() else 0)

    def _base(self) -> int | None:
        kind, out = self.kind, self._numbers(self.outputs[0])
        if kind in _FOR_EACH_OUTPUT:
            return _FOR_EACH_OUTPUT[kind] * out
        if kind in _FOR_EACH_INPUT:
            return _FOR_EACH_INPUT[kind] * self._numbers(self.inputs[0])
        if kind in _REDUCTIONS:
            return self._numbers(self.inputs[0]) - out
        if kind == "ADD_N":
            return (len(self.inputs) - 1) * out
        if kind in ("MAX_POOL_2D", "AVERAGE_POOL_2D", "L2_POOL_2D"):
            return out * self.options.FilterHeight() * self.options.FilterWidth()
        if kind == "BATCH_MATMUL":
            shape = self._shapes[self.inputs[0]]
            return 2 * out * shape[-2 if self.options.AdjX() else -1]
        if kind in _LSTMS:
            return self._lstm()
        if kind in _PRODUCTS:
            kernel = self._shapes[self.inputs[1]]
            moving = self.inputs[2] if kind == "TRANSPOSE_CONV" else self.outputs[0]
            bias = self.inputs[_BIAS[kind]] if len(self.inputs) > _BIAS[kind] else -1
            products = 2 * self._numbers(moving) * math.prod(kernel[_PRODUCTS[kind]])
            return products + (out if bias >= 0 else 0)
        return None

    def _lstm(self) -> int:
        """For each sample and step, two operations per weight."""
        steps = math.prod(self._shapes[self.inputs[0]][:-1])
        weights = [i for i in self.inputs[1:9] if i >= 0]
        units = self._shapes[weights[-1]][0]
        return steps * (2 * sum(map(self._numbers, weights)) + _LSTM_UNIT * units)

    def _numbers(self, tensor: int) -> int:
        return math.prod(self._shapes[tensor])

    def _is_constant(self, tensor: int) -> bool:
        described = self._graph.Tensors(tensor)
        return constant(self._file.content, self._file.model, described) is not None

    def _is_number(self, tensor: int) -> bool:
        """A float, or an integer that stands for one."""
        if tensor < 0:
            return False
        described = self._graph.Tensors(tensor)
        quantization = described.Quantization()
        return described.Type() in _FLOATS or (
            quantization is not None and quantization.ScaleLength() > 0
        )


# Which sizes of the kernel are multiplied with the numbers that come out (of a transposed
# convolution, that go in), and which input is the bias.
_PRODUCTS = {
    "FULLY_CONNECTED": slice(1, None),
    "CONV_2D": slice(1, None),
    "DEPTHWISE_CONV_2D": slice(1, 3),
    "CONV_3D": slice(None, -1),
    "TRANSPOSE_CONV": slice(None, 3),
}
_BIAS = {**dict.fromkeys(_PRODUCTS, 2), "TRANSPOSE_CONV": 3}
_FLOATS = {
    getattr(schema.TensorType, name)
    for name in ("FLOAT16", "FLOAT32", "FLOAT64", "BFLOAT16", "COMPLEX64", "COMPLEX128")
    if hasattr(schema.TensorType, name)
}


def _kind(code: "schema.OperatorCode") -> str:
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    name = _names(schema.BuiltinOperator).get(number, f"operation {number}")
    custom = code.CustomCode()
    return custom.decode(errors="replace") if name == "CUSTOM" and custom else name


def _names(enumeration: Any) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}

"""Floating-point operations: of a forward pass, of a training step, of any TensorFlow function.

A multiply-add counts as 2, a comparison or a function such as exp or tanh of a number as 1, and a
composed function as its parts (a sigmoid 4, a softmax 5). Operations that only move numbers are not
counted, nor are those on integers, except for the matrix products of quantized layers. Nothing is
run: the counts follow from the shapes in the traced function, multiplied by the iterations of
loops. Of several branches the one with the most operations counts.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mlflow_keras_adv.compat.tensorflow import body_of
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.metrics.left_alone import left_alone
from mlflow_keras_adv.metrics.operations import operations_in

_logger = logging.getLogger(__name__)

_LOOPS = ("While", "StatelessWhile")
_BRANCHES = {
    **dict.fromkeys(("If", "StatelessIf"), ("then_branch", "else_branch")),
    **dict.fromkeys(("Case", "StatelessCase"), ("branches",)),
}
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_SHAPELESS = " of unknown shape"
_MOST_NAMED = 8  # in a sentence
_LONGEST_SAID = 500


@dataclass(frozen=True)
class Flops:
    """Floating-point operations.

    Attributes:
        total: Their number.
        per_op: Their number by TensorFlow's or LiteRT's name of the operation.
        uncounted: Floating-point operations that are not in `total`, or not exactly, as the name
            says: how often each is executed, by name.
    """

    total: int
    per_op: Mapping[str, int] = field(default_factory=dict)
    uncounted: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        left_out = self.left_out
        return f"{self.total:,} FLOPs" + (f"; not counted: {left_out}" if left_out else "")

    @property
    def has_unknown_shapes(self) -> bool:
        """Whether `total` is too low because shapes are not known."""
        return any(name.endswith(_SHAPELESS) for name in self.uncounted)

    @property
    def left_out(self) -> str:
        """The operations that are not counted, in words: "2 x Cholesky, 1 x FFT"; may be empty."""
        names = [f"{count:,} x {name}" for name, count in self.uncounted.items()]
        more = len(names) - _MOST_NAMED
        return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more kinds" if more > 0 else "")

    def of_each(self, count: int) -> "Flops":
        """Of each of so many samples, rounded; what is not counted is that of all of them."""
        per_op = {name: round(made / count) for name, made in self.per_op.items()}
        return Flops(round(self.total / count), per_op, dict(self.uncounted))

    @classmethod
    def summed(cls, counted: Mapping[str, int], uncounted: Mapping[str, int]) -> "Flops":
        """Made of the operations by kind."""
        kept = {name: count for name, count in counted.items() if count}
        return cls(sum(kept.values()), kept, dict(uncounted))


def flops(model: keras.Model, x: Any) -> Flops:
    """Counts the floating-point operations of a forward pass of one sample, in inference.

    Args:
        model: A built model; it is traced, and run on one sample only if its shapes depend on the
            values of the input. It stays as it is.
        x: Input, at least one sample: an array of shape (samples, …), or a list or dict of these.

    Returns:
        The operations for a batch of one, including those that are done once per batch, such as the
        square roots of the variances of a BatchNormalization.

    Raises:
        UserError: It cannot be traced on a single sample.
    """
    shapes = [tuple(each.shape) for each in getattr(model, "inputs", None) or ()]
    fixed = shapes[0][0] if shapes and shapes[0] else None
    rows = int(fixed or 1)

    def few(array: Any) -> Any:
        return tf.convert_to_tensor(np.resize(array, (rows, *np.shape(array)[1:])))

    fed = keras.tree.map_structure(few, x)
    forward = tf.function(lambda inputs: model(inputs, training=False))
    return flops_of_call(model, partial(forward.get_concrete_function, fed), fed)


def flops_of_call(model: keras.Model, traced: Callable[[], Any], fed: Any) -> Flops:
    """Like `flops`, for a call that may have been traced already.

    Args:
        model: The model.
        traced: Gives the function traced from its call in inference.
        fed: What it was called with, tensors.
    """
    rows = len(keras.tree.flatten(fed)[0])
    try:
        found = flops_of_function(traced())
        if found.has_unknown_shapes:
            found = _flops_of_run(model, fed)
    except Exception as error:  # what a model raises has no end
        raise UserError(f"The FLOPs of {model.name!r} cannot be counted: {error}") from error
    return found.of_each(rows)


def _flops_of_run(model: keras.Model, fed: Any) -> Flops:
    """Counts with the shapes at run time, such as those of a text that is split into words."""
    open_ended: list[Any] = []

    def forward(inputs: Any) -> Any:
        answers = model(inputs, training=False)
        made = [each for op in _graph_of_now().get_operations() for each in op.outputs]
        open_ended[:] = [
            each
            for each in made
            if not each.shape.is_fully_defined() and each.dtype not in (tf.variant, tf.resource)
        ]
        return answers, [tf.shape(each) for each in open_ended]

    call = tf.function(forward, autograph=False)
    with left_alone(model):
        _, shapes = call(fed)
    traced = call.get_concrete_function(fed)
    for tensor, shape in zip(open_ended, shapes, strict=True):
        tensor.set_shape(shape.numpy())  # the graph is ours, and not run again
    return flops_of_function(traced)


def _graph_of_now() -> Any:
    return tf.compat.v1.get_default_graph()


def training_step_flops(
    model: keras.Model, x: Any, y: Any = None, sample_weight: Any = None
) -> Flops:
    """Counts the operations of one training step: forward, backward, metrics and optimizer.

    Args:
        model: A compiled model that has made a step already, so that all its variables exist. Its
            `train_step` is traced once and not run; the model stays as it is.
        x: The batch, arrays or `tf.TensorSpec`s of known shape.
        y: Its labels.
        sample_weight: Its weights.

    Returns:
        The operations for the whole batch. Dividing them by its samples does not give those of a
        sample: the optimizer's part does not depend on the batch.

    Raises:
        UserError: The model has made no step yet, a shape is unknown, or the step cannot be traced.
    """
    data = keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
    return flops_of_step(model, data if isinstance(data, tuple) else (data,))


def flops_of_step(model: Any, data: Any) -> Flops:
    """See `training_step_flops`; `data` is what `train_step` takes."""
    optimizer = getattr(model, "optimizer", None)
    unbuilt = isinstance(optimizer, keras.optimizers.Optimizer) and not optimizer.built
    if not model.built or optimizer is None or unbuilt:
        raise UserError(
            f"The FLOPs of a step of {model.name!r} cannot be counted before its first one: "
            "call fit, or train_on_batch on a batch."
        )

    def spec(array: Any) -> tf.TensorSpec:
        found = tf.TensorSpec(np.shape(array) if _is_plain(array) else array.shape, _dtype(array))
        if not found.shape.is_fully_defined():
            raise UserError(
                f"The FLOPs of a step of {model.name!r} cannot be counted: it is given batches of "
                f"the shape {found.shape}; expected one in which all sizes are known."
            )
        return found

    def none_made(*_: Any, **__: Any) -> Any:
        raise UserError(
            f"The step of {model.name!r} makes a variable: train it for a step, then count."
        )

    specs = tf.nest.map_structure(spec, data)
    step = tf.function(lambda batch: model.train_step(batch), autograph=False)  # as Keras makes it
    try:
        with tf.variable_creator_scope(none_made):
            traced = step.get_concrete_function(specs)
    except UserError:
        raise
    except Exception as error:  # what a step of the user's own raises has no end
        raise UserError(
            f"The FLOPs of a step of {model.name!r} cannot be counted: {error}"
        ) from error
    return flops_of_function(traced)


def flops_of_function(function: Any, *args: Any, **kwargs: Any) -> Flops:
    """Counts the operations of one call of any function that TensorFlow can trace.

    For example of the step of your own training loop: `flops_of_function(train_step, x, y)`. It is
    not traced again if it has been called with arguments of these shapes.

    Args:
        function: A `tf.function`, a function traced from one, or one that can be.
        *args: Its arguments, or `tf.TensorSpec`s for them, of known shape; none of a traced one.
        **kwargs: The same.
    """
    if not hasattr(function, "graph"):
        traceable = (
            function if hasattr(function, "get_concrete_function") else tf.function(function)
        )
        function = traceable.get_concrete_function(*args, **kwargs)
    found = _Graph(function.graph, {})
    return Flops.summed(found.counted, found.uncounted)


def flops_and_said(count: Callable[[], Flops]) -> tuple[dict[str, float], str]:
    """`flops` for the numbers of a finished model, and what has to be said of it.

    Args:
        count: Counts; whatever it raises, there is no number then, and a sentence.

    Returns:
        The sentence is empty where all is counted.
    """
    try:
        found = count()
        if found.has_unknown_shapes:
            raise UserError(f"{found.left_out}.")
    except Exception as error:  # of any model, file or release; it is one number of many
        said = f"There is no flops: {' '.join(str(error).split())}"[:_LONGEST_SAID]
        _logger.warning("%s", said)
        return {}, said
    said = f"flops is without {found.left_out}." if found.uncounted else ""
    if said:
        _logger.info("%s", said)
    return {"flops": float(found.total)}, said


def _dtype(array: Any) -> Any:
    dtype = getattr(array, "dtype", None)
    if dtype is None:
        return tf.convert_to_tensor(array).dtype
    return tf.string if getattr(dtype, "kind", None) in tuple("OSU") else tf.as_dtype(dtype)


def _is_plain(array: Any) -> bool:
    return not hasattr(array, "shape")


class _Graph:
    """The operations of one run of a graph, for its outputs and side effects.

    Args:
        graph: A `FuncGraph`.
        given: What is known of its inputs: whole numbers, by their places.
    """

    def __init__(self, graph: Any, given: Mapping[int, int]) -> None:
        self.counted: Counter[str] = Counter()
        self.uncounted: Counter[str] = Counter()
        self.graph = graph
        self._values: dict[Any, int | None] = {
            tensor.ref(): given.get(place) for place, tensor in enumerate(graph.inputs)
        }
        self._turns: dict[Any, tuple[int | None, dict[int, int], bool]] = {}
        for operation in _needed(graph):
            self._count(operation)

    def output(self, place: int) -> int | None:
        """The whole number that comes out at a place, where it is known."""
        return self._value(self.graph.outputs[place])

    def _count(self, operation: Any) -> None:
        if operation.type in _LOOPS:
            self._count_loop(operation)
        elif operation.type in _CALLS:
            self._add(_Graph(body_of(operation, "f"), self._known(operation.inputs)))
        elif operation.type in _BRANCHES:
            given = self._known(list(operation.inputs)[1:])
            branches = [_Graph(body, given) for body in _bodies(operation)]
            self._add(max(branches, key=lambda each: each.counted.total()))
        else:
            try:
                count = operations_in(operation)
            except ValueError:
                self.uncounted[f"{operation.type}{_SHAPELESS}"] += 1
                return
            if count is None:
                self.uncounted[operation.type] += 1
            else:
                self.counted[operation.type] += count

    def _count_loop(self, operation: Any) -> None:
        turns, _, exact = self._turns_of(operation)
        given = self._known(operation.inputs)
        body, asked = body_of(operation, "body"), body_of(operation, "cond")
        kept = {
            place: value
            for place, value in given.items()
            if _source(body.outputs[place]) is body.inputs[place]
        }
        if turns is None:
            self.uncounted["loop of unknown length, counted once"] += 1
        elif not exact:
            self.uncounted["loop that may end early, counted in full"] += 1
        self._add(_Graph(body, kept), 1 if turns is None else turns)
        self._add(_Graph(asked, kept), 1 if turns is None else turns + 1)

    def _add(self, inner: "_Graph", times: int = 1) -> None:
        for own, found in ((self.counted, inner.counted), (self.uncounted, inner.uncounted)):
            for name, count in found.items():
                own[name] += times * count

    def _known(self, tensors: Any) -> dict[int, int]:
        found = {place: self._value(tensor) for place, tensor in enumerate(tensors)}
        return {place: value for place, value in found.items() if value is not None}

    def _turns_of(self, operation: Any) -> tuple[int | None, dict[int, int], bool]:
        """Turns of a loop, what its counters are then, and whether it cannot end before."""
        if operation not in self._turns:
            self._turns[operation] = self._find_turns(operation)
        return self._turns[operation]

    def _find_turns(self, operation: Any) -> tuple[int | None, dict[int, int], bool]:
        body, asked = body_of(operation, "body"), body_of(operation, "cond")
        given = self._known(operation.inputs)
        steps = {
            place: 0 if step is None else step
            for place, output in enumerate(body.outputs)
            if (step := _step_of(body, place, output)) is not None and place in given
        }
        places = {tensor.ref(): place for place, tensor in enumerate(asked.inputs)}
        limits: list[int] = []
        exact = True
        for low, high, equal in _asked(asked.outputs[0]):
            turns = None
            if low is not None:
                at, to = (_place_or_value(each, places) for each in (low, high))
                turns = _turns(at, to, given, steps, equal)
            if turns is None:
                exact = False
            else:
                limits.append(turns)
        if not limits:
            return None, {}, False
        turns = min(limits)
        ends = {place: given[place] + turns * step for place, step in steps.items()}
        return turns, ends if exact else {}, exact

    def _value(self, tensor: Any) -> int | None:
        """A whole number that is known before anything runs."""
        key = tensor.ref()
        if key not in self._values:
            self._values[key] = None  # of one that depends on itself
            self._values[key] = self._found_value(tensor)
        return self._values[key]

    def _found_value(self, tensor: Any) -> int | None:
        if not tensor.dtype.is_integer:
            return None
        operation = tensor.op
        if operation.type in _LOOPS:
            return self._turns_of(operation)[1].get(tensor.value_index)
        if operation.type in ("Identity", "Cast"):
            return self._value(operation.inputs[0])
        known = tf.get_static_value(tensor)
        if known is not None:
            return int(known.reshape(())) if np.size(known) == 1 else None
        inputs = [self._value(each) for each in operation.inputs]
        if operation.type in ("Max", "Min") and inputs:  # of one number, as Keras' RNNs have it
            return inputs[0]
        fold = _FOLDS.get(operation.type)
        if fold is None or any(each is None for each in inputs):
            return None
        return int(fold(*inputs))


_FOLDS: dict[str, Any] = {
    "AddV2": lambda one, other: one + other,
    "Sub": lambda one, other: one - other,
    "Mul": lambda one, other: one * other,
    "Maximum": max,
    "Minimum": min,
    "FloorDiv": lambda one, other: one // other if other else 0,
}


def _needed(graph: Any) -> list[Any]:
    """The operations that are run: those that outputs or effects depend on."""
    waiting = [each.op for each in graph.outputs] + list(graph.control_outputs)
    found: dict[Any, None] = {}
    while waiting:
        operation = waiting.pop()
        if operation not in found:
            found[operation] = None
            waiting += [each.op for each in operation.inputs]
            waiting += operation.control_inputs
    return list(found)


def _bodies(operation: Any) -> Iterator[Any]:
    for attribute in _BRANCHES[operation.type]:
        yield body_of(operation, attribute)


def _source(tensor: Any) -> Any:
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return tensor


def _step_of(body: Any, place: int, output: Any) -> int | None:
    """The change of a loop variable in an iteration; None if it is unknown."""
    source = _source(output)
    if source is body.inputs[place]:
        return 0
    if source.op.type in ("AddV2", "Add", "Sub"):
        one, other = map(_source, source.op.inputs)
        sign = -1 if source.op.type == "Sub" else 1
        if sign > 0 and other is body.inputs[place]:
            one, other = other, one
        known = tf.get_static_value(other) if one is body.inputs[place] else None
        if known is not None and np.size(known) == 1 and other.dtype.is_integer:
            return sign * int(known)
    return None


def _asked(condition: Any) -> Iterator[tuple[Any, Any, bool]]:
    """The conditions of another iteration: (low, high, or equal); None for other conditions."""
    operation = _source(condition).op
    if operation.type == "LogicalAnd":
        for each in operation.inputs:
            yield from _asked(each)
    elif operation.type in ("Less", "LessEqual"):
        yield (*operation.inputs, operation.type == "LessEqual")
    elif operation.type in ("Greater", "GreaterEqual"):
        yield (*reversed(list(operation.inputs)), operation.type == "GreaterEqual")
    elif tf.get_static_value(operation.outputs[0]) is None:
        yield None, None, False


def _place_or_value(tensor: Any, places: Mapping[Any, int]) -> tuple[str, int] | None:
    source = _source(tensor)
    if source.ref() in places:
        return "place", places[source.ref()]
    known = tf.get_static_value(source)
    return None if known is None or np.size(known) != 1 else ("value", int(known))


def _turns(
    low: tuple[str, int] | None,
    high: tuple[str, int] | None,
    given: Mapping[int, int],
    steps: Mapping[int, int],
    equal: bool,
) -> int | None:
    """The number of iterations in which `low < high` holds, as one moves towards the other."""

    def line(side: tuple[str, int] | None) -> tuple[int, int] | None:
        if side is None or side[0] == "value":
            return None if side is None else (side[1], 0)
        return (given[side[1]], steps[side[1]]) if side[1] in steps else None

    one, other = line(low), line(high)
    if one is None or other is None or (approach := one[1] - other[1]) <= 0:
        return None
    distance = other[0] - one[0] + (1 if equal else 0)
    return max(0, math.ceil(distance / approach))

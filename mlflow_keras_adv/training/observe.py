"""What an optimizer can tell while it runs: gradient norms, learning rate, loss scale.

Nothing is computed twice and no class is replaced: the methods that the real step passes through
are wrapped on the instance, and each wrapper writes what it sees into the table of a
`StepRecorder`. No variable is added to the optimizer, so saving, loading and copying it go on as
before.
"""

import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import tensorflow as tf

from mlflow_keras_adv.training.aside import aside
from mlflow_keras_adv.training.recorder import CAPACITY, StepRecorder, recorder_of

# Layers whose norms are recorded, and the rows of their table: it is wide, so it is short.
MAX_LAYERS = 512
LAYERS_CAPACITY = 128

_trace = threading.local()  # MirroredStrategy traces its replicas in threads


class OptimizerProbe:
    """Observes one optimizer: each of its updates writes a few cells of its own table.

    Gradients are read where Keras clips them: `_clip_gradients` is called once per real update,
    with gradients that are unscaled, accumulated over micro-batches and, under loss scaling,
    finite. It is private, but the only place that both sides of clipping pass through. An optimizer
    that never calls it is read at `apply`, before any clipping.

    Columns: `norm`, `norm_clipped` (where something was clipped), `learning_rate`; with a
    `LossScaleOptimizer` also `loss_scale` at every step and `applied` at those not skipped.

    Args:
        optimizer: A Keras optimizer.
        capacity: Rows needed at least between two reads.

    Attributes:
        recorder: The table, shared by all probes of this optimizer.
        layers: A second table with the norm of each layer's gradient, unscaled and before clipping,
            by the layer's path; None unless `observe_layers` was called.
    """

    def __init__(self, optimizer: Any, *, capacity: int = 1) -> None:
        self.recorder = recorder_of(optimizer, capacity=max(capacity, CAPACITY))
        self.layers: StepRecorder | None = None
        self._capacity = capacity
        self._outer = optimizer
        self._inner = getattr(optimizer, "inner_optimizer", optimizer)
        self._undo: list[Callable[[], None]] = []

    def observe_layers(self) -> None:
        """Has the next steps that are traced write the norms of their layers too."""
        self.layers = recorder_of(
            self._outer,
            subject="layers",
            capacity=max(self._capacity, LAYERS_CAPACITY),
            width=MAX_LAYERS,
        )

    def attach(self) -> None:
        """Wraps the optimizer's methods on the instance."""
        recorder, outer, optimizer = self.recorder, self._outer, self._inner

        def clip_gradients(original: Callable[..., Any], gradients: Iterable[Any]) -> Any:
            _trace.clip_was_called = True
            gradients = list(gradients)
            clipped = list(original(gradients))
            halves = _half_squares(gradients)
            if self.layers is not None and len(halves) == len(_trace.paths):
                self.layers.write_all(_norms_by_layer(halves, _trace.paths))
            values = {"norm": _norm(halves), "learning_rate": optimizer.learning_rate}
            if any(after is not before for after, before in zip(clipped, gradients, strict=True)):
                values["norm_clipped"] = global_norm(clipped)
            recorder.write_all(values)
            return clipped

        def apply(
            original: Callable[..., Any], gradients: Iterable[Any], *rest: Any, **kw: Any
        ) -> Any:
            gradients = list(gradients)
            variables = (rest[0] if rest else kw.get("trainable_variables")) or ()
            _trace.paths = _paths(gradients, list(variables or optimizer._trainable_variables))
            if outer is not optimizer:
                recorder.write("applied", 1)
            if hasattr(optimizer, "optimizers"):  # the children of a MultiOptimizer are observed
                return original(gradients, *rest, **kw)
            rate = tf.identity(optimizer.learning_rate)  # before the update moves the iteration
            _trace.clip_was_called = bool(optimizer.gradient_accumulation_steps)
            result = original(gradients, *rest, **kw)
            if not _trace.clip_was_called:
                norm = global_norm(gradients) / (optimizer.loss_scale_factor or 1.0)
                recorder.write_all({"norm": norm, "learning_rate": rate})
            return result

        def scaled_apply(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            # As in Keras' scale_loss: the variable exists after the first step only.
            recorder.write(
                "loss_scale", outer.dynamic_scale if outer.built else outer.initial_scale
            )
            return original(*args, **kwargs)

        self._undo.append(wrap_method(optimizer, "_clip_gradients", clip_gradients))
        self._undo.append(wrap_method(optimizer, "apply", apply))
        if outer is not optimizer:
            self._undo.append(wrap_method(outer, "apply", scaled_apply))

    def detach(self) -> None:
        """Puts the methods back."""
        while self._undo:
            self._undo.pop()()


def find_optimizers(model: Any) -> dict[str, Any]:
    """The optimizers that a model trains with, by the name of the attribute that holds them.

    Looks at the attributes of the model, into lists and dicts, and at the optimizer of a model
    inside (named as that model's attribute). The children of a `MultiOptimizer` stand for it, as
    `child_<i>`; a `LossScaleOptimizer` around one keeps the empty name.
    """
    found: dict[str, Any] = {}
    for attribute, value in vars(model).items():
        if attribute.startswith("_self_"):  # bookkeeping of TensorFlow, which holds them twice
            continue
        for name, candidate in _members(attribute.lstrip("_"), value):
            new = all(candidate is not other for other in found.values())
            if is_optimizer(candidate) and new:
                found[name] = candidate
    named: dict[str, Any] = {}
    for name, optimizer in found.items():
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        children = getattr(inner, "optimizers", None)
        if children is None:
            named[name] = optimizer
            continue
        named |= {f"child_{index}": child for index, child in enumerate(children)}
        if inner is not optimizer:
            named[""] = optimizer
    return named


def is_optimizer(value: Any) -> bool:
    """Whether this is an optimizer of Keras 3, or of tf_keras where that is in use."""
    libraries = [keras, *filter(None, [sys.modules.get("tf_keras")])]
    return isinstance(value, tuple(library.optimizers.Optimizer for library in libraries))


def global_norm(gradients: Iterable[Any]) -> Any:
    """Global L2 norm of a list of gradients, a float32 scalar.

    The rows of an `IndexedSlices` (the gradient of an `Embedding`) may repeat an index; equal ones
    are summed first, so that the norm is that of the dense gradient, without making it dense.

    Args:
        gradients: Tensors, `IndexedSlices` or None, of any shape and float dtype.
    """
    return _norm(_half_squares(gradients))


def reduced(value: Any) -> Any:
    """The sum of a value over the replicas of the distribution strategy; itself without one."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def wrap_method(owner: Any, name: str, wrapper: Callable[..., Any]) -> Callable[[], None]:
    """Calls `wrapper(original, *args)` in place of a method of one instance.

    Args:
        owner: The instance.
        name: The method; nothing is done if the instance has none of this name.
        wrapper: Receives the original method first, then the arguments of the call.

    Returns:
        A function that puts back what was found.
    """
    original = getattr(owner, name, None)
    if original is None:
        return lambda: None
    found_on_instance = name in vars(owner)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    def undo() -> None:
        if vars(owner).get(name) is wrapped:
            delattr(owner, name)
            if found_on_instance:
                setattr(owner, name, original)

    setattr(owner, name, wrapped)
    return undo


def _half_squares(gradients: Iterable[Any]) -> list[Any]:
    """Half the sum of the squares of each gradient: one operation each, where squares take two."""
    return [
        tf.nn.l2_loss(tf.cast(_distinct_rows(reduced(aside(gradient))), tf.float32))
        for gradient in gradients
        if gradient is not None
    ]


def _norm(half_squares: list[Any]) -> Any:
    return tf.sqrt(2.0 * tf.add_n(half_squares)) if half_squares else tf.constant(0.0)


def _paths(gradients: list[Any], variables: list[Any]) -> list[str]:
    """Paths of the variables that have a gradient, in the order in which clipping sees them."""
    pairs = zip(gradients, variables, strict=True)
    return [getattr(v, "path", v.name) for gradient, v in pairs if gradient is not None]


def _norms_by_layer(half_squares: list[Any], paths: list[str]) -> dict[str, Any]:
    layers: dict[str, list[Any]] = {}
    for half_square, path in zip(half_squares, paths, strict=True):
        layers.setdefault(path.rpartition("/")[0] or path, []).append(half_square)
    return {layer: _norm(own) for layer, own in list(layers.items())[:MAX_LAYERS]}


def _distinct_rows(gradient: Any) -> Any:
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    # Sorting finds equal indices with static shapes only, as XLA needs them (tf.unique has none).
    order = tf.argsort(gradient.indices)
    indices = tf.gather(gradient.indices, order)
    starts = tf.concat([[0], tf.cast(indices[1:] != indices[:-1], tf.int32)], axis=0)
    return tf.math.unsorted_segment_sum(
        tf.gather(gradient.values, order), tf.cumsum(starts), tf.size(indices)
    )


def _members(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(f"{name}.{key}", each) for key, each in value.items()]
    if isinstance(value, (list, tuple)):
        return [(f"{name}.{index}", each) for index, each in enumerate(value)]
    if isinstance(value, keras.Model):
        return [(name, getattr(value, "optimizer", None))]
    return [(name, value)]

"""Observes optimizers while they run: gradient norms, learning rate, loss scale.

Nothing is computed twice and no class is replaced: the methods that the real step passes through
are watched on the instance, and what is seen goes into the table of a `StepRecorder`. No variable
is added to the optimizer, so saving, loading and copying it go on as before.
"""

import logging
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

import keras
import tensorflow as tf

from mlflow_keras_adv.compat.keras import sums_after_clipping, trained_by
from mlflow_keras_adv.training.aside import aside
from mlflow_keras_adv.training.cluster import has_replicas, in_one_process, sums_over_replicas
from mlflow_keras_adv.training.recorder import CAPACITY, StepRecorder, recorder_of
from mlflow_keras_adv.training.watching import Look, watch_method

_logger = logging.getLogger(__name__)

# Of the table with the norms of layers: it is wide, so it is short. More layers have further ones.
LAYERS_WIDTH = 512
LAYERS_CAPACITY = 128


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
        self._inner = inside_of(optimizer)
        self._undo: list[Callable[[], None]] = []
        self._said = self._said_of_layers = self._said_of_processes = False
        self._trace = threading.local()  # MirroredStrategy traces its replicas in threads

    def observe_layers(self) -> None:
        """Has the next steps that are traced write the norms of their layers too."""
        self.layers = recorder_of(
            self._outer,
            subject="layers",
            capacity=max(self._capacity, LAYERS_CAPACITY),
            width=LAYERS_WIDTH,
        )

    def attach(self) -> None:
        """Looks at the optimizer's methods, on the instance."""
        what = f"Norms and rates of the optimizer {self._outer.name!r}"

        def watch(owner: Any, name: str, look: Look) -> None:
            self._undo.append(watch_method(owner, name, look, what=what, replays=True))

        watch(self._inner, "_clip_gradients", self._look_at_clipping)
        watch(self._inner, "_all_reduce_sum_gradients", self._look_at_sums)
        watch(self._inner, "apply", self._look_at_update)
        if not hasattr(self._inner, "apply"):  # of tf_keras
            watch(self._inner, "apply_gradients", self._look_at_pairs)
        if self._outer is not self._inner:
            watch(self._outer, "apply", self._look_at_scaling)

    def begin_row(self) -> None:
        """Called, where a step is traced or runs eagerly, before the updates of its batch."""
        self._trace.updates, self._trace.graph = 0, None

    def detach(self) -> None:
        """Puts the methods back."""
        while self._undo:
            self._undo.pop()()

    def _look_at_clipping(self, *arguments: Any, **named: Any) -> Generator[None, Any, None]:
        self._trace.clip_was_called = True
        (gradients,) = [*arguments, *named.values()]
        gradients = list(gradients)
        clipped = list((yield))
        clips = any(after is not before for after, before in zip(clipped, gradients, strict=True))
        values = _rate_of(self._inner)
        if self._sums_later():
            self._trace.awaited = "norm_clipped" if clips else "norm"
            if clips:
                values |= self._norm_over_replicas(gradients)
        else:
            halves = _half_squares(gradients)
            self._write_layers(halves)
            values |= {"norm": _norm(halves)}
            if clips:
                values["norm_clipped"] = global_norm(clipped)
        self.recorder.write_all(values)

    def _look_at_sums(self, *arguments: Any, **named: Any) -> Generator[None, Any, None]:
        """Reads the norm of what the optimizer itself sums over the replicas, which costs nothing.

        They clip their own gradients before; so it is the clipped norm where they do.
        """
        awaited, self._trace.awaited = getattr(self._trace, "awaited", None), None
        summed = yield
        if awaited is None:
            return
        halves = _half_squares(gradient for gradient, _ in summed)
        if awaited == "norm":
            self._write_layers(halves)
        self.recorder.write(awaited, _norm(halves))

    def _sums_later(self) -> bool:
        """Whether the gradients are a replica's own: Keras 3 clips them before it sums them."""
        return has_replicas() and sums_after_clipping(self._inner)

    def _norm_over_replicas(self, gradients: list[Any], scale: Any = None) -> dict[str, Any]:
        """The norm of gradients whose sum over the replicas the training does not need itself.

        Empty where the replicas are in several processes.
        """
        if not in_one_process():
            if not self._said_of_processes:
                self._said_of_processes = True
                _logger.warning(
                    "gradient/norm of the optimizer %r is not recorded: each process clips "
                    "gradients of its own, whose sum before that is computed nowhere. "
                    "gradient/norm_clipped, of what all of them apply, is.",
                    self._outer.name,
                )
            return {}
        present = [aside(gradient) for gradient in gradients if gradient is not None]
        halves = _half_squares(sums_over_replicas(present))
        if scale is not None:
            halves = [half / scale**2 for half in halves]
        self._write_layers(halves)
        return {"norm": _norm(halves)}

    def _look_at_update(self, *arguments: Any, **named: Any) -> Generator[None, Any, None]:
        optimizer = self._inner
        gradients, variables, *_ = [*arguments, *named.values(), None]
        gradients = list(gradients)
        if not variables:  # tf_keras hands over pairs, Keras 3 may leave them out
            variables = trained_by(optimizer)
        self._trace.paths = _paths(gradients, list(variables))
        self._count_update()
        if self._outer is not optimizer:
            self.recorder.write("applied", 1)
        if _children_of(optimizer):  # they are observed
            return
        # Before the update moves the iteration.
        rate = {name: tf.identity(each) for name, each in _rate_of(optimizer).items()}
        self._trace.clip_was_called = bool(getattr(optimizer, "gradient_accumulation_steps", None))
        yield
        if not self._trace.clip_was_called:
            followed = _to_follow(gradients, variables)
            scale = getattr(optimizer, "loss_scale_factor", None)
            self.recorder.write_all({**self._norm_over_replicas(followed, scale), **rate})

    def _look_at_pairs(
        self, pairs: Iterable[tuple[Any, Any]], *_arguments: Any, **_named: Any
    ) -> Generator[None, Any, None]:
        pairs = list(pairs)
        self._trace.paths = _paths([each for each, _ in pairs], [each for _, each in pairs])
        self._count_update()
        yield

    def _write_layers(self, half_squares: list[Any]) -> None:
        if self.layers is None:
            return
        paths: list[str] = getattr(self._trace, "paths", [])
        if len(half_squares) == len(paths):
            self.layers.write_all(_norms_by_layer(half_squares, paths))
        elif not self._said_of_layers:
            self._said_of_layers = True
            _logger.warning(
                "No norms of the layers that the optimizer %r updates are recorded: it clips %d "
                "gradients of the %d that it was given, and does not say which.",
                self._outer.name,
                len(half_squares),
                len(paths),
            )

    def _count_update(self) -> None:
        """Says so if a batch has more than one: of each cell the table holds the last."""
        graph, counted_in = _outermost_graph(), getattr(self._trace, "graph", None)
        if counted_in is None or counted_in() is not graph:  # TensorFlow traces a first step twice
            self._trace.updates, self._trace.graph = 0, weakref.ref(graph)
        self._trace.updates += 1
        if self._trace.updates == 2 and not self._said:
            self._said = True
            _logger.warning(
                "The optimizer %r makes more than one update a batch: what is recorded of it is "
                "the last update of each batch.",
                self._outer.name,
            )

    def _look_at_scaling(self, *arguments: Any, **named: Any) -> Generator[None, Any, None]:
        outer = self._outer
        # As in Keras' scale_loss: the variable exists after the first step only.
        self.recorder.write(
            "loss_scale", outer.dynamic_scale if outer.built else outer.initial_scale
        )
        yield


def find_optimizers(model: Any) -> dict[str, Any]:
    """Finds the optimizers of a model, by the name of the attribute that holds them.

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
        inner = inside_of(optimizer)
        children = _children_of(inner)
        if not children:
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


def inside_of(optimizer: Any) -> Any:
    """The optimizer that a `LossScaleOptimizer` updates with; any other is its own.

    An attribute of this name is not enough: optimizers of a user's own have such, too.
    """
    return optimizer.inner_optimizer if _scales_the_loss(optimizer) else optimizer


def global_norm(gradients: Iterable[Any]) -> Any:
    """Computes the global L2 norm of a list of gradients, a float32 scalar.

    The rows of an `IndexedSlices` (the gradient of an `Embedding`) may repeat an index; equal ones
    are summed first, so that the norm is that of the dense gradient, without making it dense.

    Args:
        gradients: Tensors, `IndexedSlices` or None, of any shape and float dtype.
    """
    return _norm(_half_squares(gradients))


def _outermost_graph() -> Any:
    """The graph of the function that is traced, around its branches; eagerly always the same."""
    graph = tf.compat.v1.get_default_graph()
    while hasattr(outer := getattr(graph, "outer_graph", None), "outer_graph"):
        graph = outer
    return graph


def _scales_the_loss(optimizer: Any) -> bool:
    libraries = [keras.optimizers]
    if (tf_keras := sys.modules.get("tf_keras")) is not None:
        libraries.append(tf_keras.mixed_precision)
    return isinstance(optimizer, tuple(library.LossScaleOptimizer for library in libraries))


def _children_of(optimizer: Any) -> list[Any]:
    """The optimizers in a `MultiOptimizer`; empty for any other."""
    children = getattr(optimizer, "optimizers", None)
    if not isinstance(children, list | tuple) or not all(map(is_optimizer, children)):
        return []
    return list(children)


def _rate_of(optimizer: Any) -> dict[str, Any]:
    """The rate of its next update; empty for an optimizer of a user's own that knows none."""
    try:
        return {"learning_rate": optimizer.learning_rate}
    except (AttributeError, NotImplementedError):
        return {}


def _half_squares(gradients: Iterable[Any]) -> list[Any]:
    """Half the sum of the squares of each gradient: one operation each, where squares take two."""
    return [
        tf.nn.l2_loss(tf.cast(_distinct_rows(aside(gradient)), tf.float32))
        for gradient in gradients
        if gradient is not None
    ]


def _norm(half_squares: list[Any]) -> Any:
    return tf.sqrt(2.0 * tf.add_n(half_squares)) if half_squares else tf.constant(0.0)


def _paths(gradients: list[Any], variables: list[Any]) -> list[str]:
    """Paths of the variables that have a gradient, in the order in which clipping sees them."""
    pairs = zip(_to_follow(gradients, variables), variables, strict=True)
    return [getattr(v, "path", v.name) for gradient, v in pairs if gradient is not None]


def _to_follow(gradients: list[Any], variables: Iterable[Any]) -> list[Any]:
    """The gradients; None of variables that take theirs as their value, as the scales of float8."""
    return [
        None if getattr(variable, "overwrite_with_gradient", False) else gradient
        for gradient, variable in zip(gradients, variables, strict=True)
    ]


def _norms_by_layer(half_squares: list[Any], paths: list[str]) -> dict[str, Any]:
    layers: dict[str, list[Any]] = {}
    for half_square, path in zip(half_squares, paths, strict=True):
        layers.setdefault(path.rpartition("/")[0] or path, []).append(half_square)
    return {layer: _norm(own) for layer, own in layers.items()}


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

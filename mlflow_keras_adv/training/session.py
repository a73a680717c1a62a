"""TrainingSession: one training of one model, observed from its begin to its end.

Several callbacks may look on: the first one begins the session, each subscribes a reader, rows that
any of them asks for are handed to all, and the last one to leave puts everything back.
"""

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from mlflow_keras_adv.training.observe import (
    OptimizerProbe,
    find_optimizers,
    reduced,
    wrap_method,
)
from mlflow_keras_adv.training.recorder import StepRecorder, recorder_of

READ_EVERY_SECONDS = 5.0

Column = np.ma.MaskedArray[Any, Any]


@dataclass(frozen=True)
class Readings:
    """What happened since the last reading. All arrays have one entry per training batch.

    Attributes:
        batches: Number of training batches consumed.
        examples: Number of training examples in each; 0 where the data does not tell.
        columns: Per metric key a masked float array; masked where a batch has no such number.
        events: Per metric key of a counter a bool array, true where it counts one more.
        layers: Per path of a layer the norm of its gradient; empty unless layers are observed.
        times: Unix time in seconds, interpolated between the moments at which the host looked.
        updated: Names of the optimizers that made an update, or skipped one.
    """

    batches: int
    examples: np.ndarray
    columns: Mapping[str, Column]
    events: Mapping[str, np.ndarray]
    layers: Mapping[str, Column]
    times: np.ndarray
    updated: frozenset[str]


Reader = Callable[[Readings], None]


class TrainingSession:
    """Observes the optimizers of a model, and hands out what they wrote.

    Args:
        model: The model that is trained.
        optimizers: The optimizers to observe, by name; their names become part of the keys where
            there are several.
        token: Tells this training from another one of the same model (see `join_session`).
        capacity: Rows needed at least between two calls of `steps_begin`.

    Attributes:
        in_fit: Whether the model's own step is observed, which also tells the batch's loss.
    """

    def __init__(
        self, model: Any, optimizers: Mapping[str, Any], *, token: object, capacity: int = 1
    ) -> None:
        self.model = model
        self.token = token
        self.optimizers = dict(optimizers)
        self.in_fit = False
        self._probes = {
            name: OptimizerProbe(each, capacity=capacity) for name, each in optimizers.items()
        }
        probes = iter(self._probes.values())
        first = next(probes, None)
        self.primary = first.recorder if first else recorder_of(model, capacity=capacity)
        self._readers: list[Reader] = []
        self._undo: list[Callable[[], None]] = []
        self._unread = 0
        self._unread_since = time.time()
        self._read_at = time.monotonic() + READ_EVERY_SECONDS
        for recorder in self.recorders:
            recorder.read()  # what a step outside of any session left behind
        for probe in self._probes.values():
            probe.attach()
            self._undo.append(probe.detach)
        _sessions[model] = self

    @property
    def recorders(self) -> list[StepRecorder]:
        """Every table this training writes into, the primary one first."""
        probes = self._probes.values()
        tables = [self.primary, *(p.recorder for p in probes), *(p.layers for p in probes)]
        return list(dict.fromkeys(table for table in tables if table is not None))

    def observe_layers(self) -> None:
        """Has steps that are traced from now on write the gradient norm of each layer too."""
        for probe in self._probes.values():
            probe.observe_layers()

    def subscribe(self, reader: Reader) -> None:
        """Hands every later reading to `reader`."""
        self._readers.append(reader)

    def unsubscribe(self, reader: Reader) -> None:
        """Reads once more and takes `reader` off; the last one to leave closes the session."""
        if reader not in self._readers:
            return
        self.read()
        self._readers.remove(reader)
        if not self._readers:
            self.close()

    def advance(self, data: Any) -> None:
        """Begins the row of the next batch (a graph operation).

        Args:
            data: The batch, any nesting of tensors.
        """
        # Behind the data: at the end of an iterator the step is entered once more, and only what
        # needs the missing batch does not run.
        with tf.control_dependencies(
            [leaf for leaf in tf.nest.flatten(data) if tf.is_tensor(leaf)]
        ):
            for recorder in self.recorders[1:]:
                recorder.advance()
            self.primary.advance(examples=reduced(batch_size(data)))

    def steps_begin(self, steps: int) -> None:
        """Called on the host before `steps` more batches are consumed: reads if it is time to."""
        full = self._unread + steps > min(recorder.capacity for recorder in self.recorders)
        if self._unread and (full or time.monotonic() >= self._read_at):
            self.read()
        if not self._unread:
            self._unread_since = time.time()
        self._unread += steps

    def read(self) -> None:
        """Takes the rows out of the tables and hands them to every reader."""
        self._unread = 0
        self._read_at = time.monotonic() + READ_EVERY_SECONDS
        tables = {id(recorder): recorder.read() for recorder in self.recorders}
        rows = tables[id(self.primary)]
        if rows.count == 0:
            return
        columns = {key: each for key, each in rows.columns.items() if key.startswith("batch/")}
        events: dict[str, np.ndarray] = {}
        layers: dict[str, Column] = {}
        updated = set()
        for name, probe in self._probes.items():
            own = tables[id(probe.recorder)].columns
            path = f"{name}/" if name and len(self._probes) > 1 else ""
            columns |= _columns(own, path)
            events |= _events(own, path)
            # Under loss scaling a step may be skipped; its optimizer is at work all the same.
            if any(own[column].count() for column in ("norm", "loss_scale") if column in own):
                updated.add(name)
            if probe.layers is not None:
                layers |= tables[id(probe.layers)].columns
        readings = Readings(
            batches=rows.count,
            examples=rows.columns["examples"].filled(0),
            columns=columns,
            events=events,
            layers=layers,
            times=np.linspace(self._unread_since, time.time(), rows.count + 1)[1:],
            updated=frozenset(updated),
        )
        for reader in list(self._readers):
            reader(readings)

    def close(self) -> None:
        """Hands out what is left and puts the model and its optimizers back as they were found."""
        self.read()
        while self._undo:
            self._undo.pop()()
        self._readers.clear()
        if _sessions.get(self.model) is self:
            del _sessions[self.model]

    def observe_fit(self) -> None:
        """Wraps the model's own step, so that `fit` writes a row a batch, with the batch's loss."""
        model, primary = self.model, self.primary
        inside = threading.local()  # evaluation, too, computes a loss

        @contextmanager
        def train_step_entered() -> Iterator[None]:
            inside.train_step = True
            try:
                yield
            finally:
                inside.train_step = False

        def train_step(original: Callable[..., Any], data: Any) -> Any:
            self.advance(data)
            with train_step_entered():
                return original(data)

        def compute_loss(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            loss = original(*args, **kwargs)
            if getattr(inside, "train_step", False) and loss is not None:
                primary.write("batch/loss", reduced(tf.reduce_sum(loss)))
            return loss

        self.in_fit = True
        found = model.train_function
        self._undo.append(lambda: setattr(model, "train_function", found))
        self._undo.append(wrap_method(model, "compute_loss", compute_loss))
        self._undo.append(wrap_method(model, "train_step", train_step))
        # What an earlier fit has compiled goes past the wrappers.
        model.make_train_function(force=True)


_sessions: "weakref.WeakKeyDictionary[Any, TrainingSession]" = weakref.WeakKeyDictionary()


def join_session(model: Any, *, token: object) -> TrainingSession:
    """The session of the training that is under way, begun if the caller is the first to look on.

    Args:
        model: The model that is trained.
        token: An object that all callbacks of one training share and no other training has. A
            session with another token is what an interrupted training left behind: it is closed.
    """
    session = _sessions.get(model)
    if session is not None and session.token is token:
        return session
    if session is not None:
        session.close()
    session = TrainingSession(
        model, find_optimizers(model), token=token, capacity=steps_per_execution(model)
    )
    session.observe_fit()
    return session


def _columns(own: Mapping[str, Column], path: str) -> dict[str, Column]:
    named = {
        f"gradient/{path}norm": own.get("norm"),
        f"gradient/{path}norm_clipped": own.get("norm_clipped"),
        f"optimizer/{path}learning_rate": own.get("learning_rate"),
        f"optimizer/{path}loss_scale": own.get("loss_scale"),
    }
    # An infinite norm is counted as a nonfinite gradient; in a chart it would hide all others.
    return {
        key: np.ma.masked_where(np.isinf(column.data), column)
        for key, column in named.items()
        if column is not None
    }


def _events(own: Mapping[str, Column], path: str) -> dict[str, np.ndarray]:
    events = {}
    nonfinite = np.zeros(0, bool)
    if "norm" in own:
        norm = own["norm"]
        nonfinite = ~np.ma.getmaskarray(norm) & ~np.isfinite(norm.data)
    if "loss_scale" in own:
        applied = own.get("applied")
        skipped = ~np.ma.getmaskarray(own["loss_scale"])
        if applied is not None:
            skipped &= np.ma.getmaskarray(applied)
        events[f"optimizer/{path}skipped_updates"] = skipped
        nonfinite = skipped | nonfinite if nonfinite.size else skipped
    if nonfinite.size:
        events[f"gradient/{path}nonfinite"] = nonfinite
    return events


def steps_per_execution(model: Any) -> int:
    """Number of batches that one call of the model's train function consumes at most."""
    steps = getattr(model, "steps_per_execution", None)  # None in tf_keras before `compile`
    return 1 if steps is None else int(steps)


def batch_size(data: Any) -> Any:
    """Number of examples in a batch: the first dimension of its first tensor, a float32 scalar.

    Args:
        data: Any nesting of tensors and arrays; 0 is returned where it holds none.
    """
    for leaf in tf.nest.flatten(data):
        if leaf is not None and len(getattr(leaf, "shape", ())) > 0:
            return tf.cast(tf.shape(leaf)[0], tf.float32)
    return tf.constant(0.0)

"""TrainingSession: one training of one model, observed from its begin to its end.

Several callbacks may take part: the first one begins the session, each subscribes a reader, rows
that any of them reads are passed to all, and the last one to leave restores model and optimizers.
"""

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import tensorflow as tf

from mlflow_keras_adv.replacing import Replacement
from mlflow_keras_adv.training.batches import (
    batch_size,
    count_batches,
    examples_in,
    steps_per_execution,
)
from mlflow_keras_adv.training.cluster import (
    has_replicas,
    in_one_process,
    processes_of,
    steps_are_remote,
    strategy_of,
    sums_over_replicas,
)
from mlflow_keras_adv.training.fence import Fence
from mlflow_keras_adv.training.fit_probe import FitProbe
from mlflow_keras_adv.training.observe import OptimizerProbe, find_optimizers
from mlflow_keras_adv.training.readings import (
    Column,
    Readings,
    counted_events,
    metric_columns,
    united_norms,
)
from mlflow_keras_adv.training.recorder import Rows, StepRecorder, recorder_of
from mlflow_keras_adv.training.trainings import training_around_own, training_of
from mlflow_keras_adv.training.watching import watch_method

_logger = logging.getLogger(__name__)

# Longest time in seconds until the values of a step are passed to the readers. The table cannot be
# read during a compiled call; steps of a call that takes longer are delivered when it returns.
HAND_IN_SECONDS = 5.0

# Columns of which an update writes one at least.
_NORMS = ("norm", "norm_clipped")


Reader = Callable[[Readings], None]


class TrainingSession:
    """Observes the optimizers of a model, and passes their values to readers.

    Args:
        model: The model that is trained.
        optimizers: The optimizers to observe, by name; their names become part of the keys where
            there are several.
        token: Tells this training from another one of the same model (see `join_session`).
        capacity: Rows needed at least between two calls of `steps_begin`.
        clock: Monotonic time in seconds.

    Attributes:
        is_remote: Whether the steps run in other processes, where they cannot be observed.
    """

    def __init__(
        self,
        model: Any,
        optimizers: Mapping[str, Any],
        *,
        token: object,
        capacity: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.token = token
        self.optimizers = dict(optimizers)
        self._fit_probe: FitProbe | None = None
        self._counts_batches = False
        strategy = strategy_of(model)
        self._processes = processes_of(strategy)
        self.is_remote = steps_are_remote(strategy)
        seen = {} if self.is_remote else optimizers
        self._probes = {
            name: OptimizerProbe(each, capacity=capacity) for name, each in seen.items()
        }
        probes = iter(self._probes.values())
        first = next(probes, None)
        self.primary = first.recorder if first else recorder_of(model, capacity=capacity)
        self._capacity = capacity
        self._observes_layers = False
        self._readers: dict[Reader, Fence] = {}
        self._undo: list[Callable[[], None]] = []
        self._is_described = False  # the batch: each step that runs in Python would do it again
        self._clock = clock
        self._batch: int | None = None
        self._unread = 0
        self._unread_since = time.time()
        self._hand_in_at = self._looked_at = clock()
        self._ended: tuple[float, float] | None = None
        self._room = self._least_capacity()
        for recorder in self.recorders:
            recorder.read()  # what a step outside of any session left behind
        _sessions[model] = self
        _last_look.begin()
        if self.is_remote:
            _logger.warning(
                "The steps of %r run on the workers of parameter servers, at moments of their own: "
                "what happens in them (batch/…, gradient/…, optimizer/…) is not recorded, the "
                "values of each epoch are.",
                model.name,
            )
        try:
            for probe in self._probes.values():
                probe.attach()
            self._read_before_saving()
        except BaseException:
            self.close()
            raise

    @property
    def recorders(self) -> list[StepRecorder]:
        """Every table this training writes into, the primary one first."""
        probes = self._probes.values()
        tables = [self.primary, *(p.recorder for p in probes), *(p.layers for p in probes)]
        return list(dict.fromkeys(table for table in tables if table is not None))

    def observe_layers(self) -> None:
        """Has steps that are traced from now on write the gradient norm of each layer too."""
        self._observes_layers = True
        for probe in self._probes.values():
            probe.observe_layers()
        self._room = self._least_capacity()
        if self._fit_probe is not None:
            self._fit_probe.choose_train_function(self.recorders)

    @property
    def in_fit(self) -> bool:
        """Whether the model's own step is observed, which also tells the batch's loss."""
        return self._fit_probe is not None

    @property
    def batch(self) -> Any:
        """The form of its batches: `tf.TensorSpec`s with free sizes; None if unknown.

        Of a step of one replica, which is traced for one.
        """
        return _batches.get(self.model)

    def batches_counted(self) -> int | None:
        """Training batches that the model's weights have seen; see `count_batches`."""
        return count_batches(self.optimizers.values())

    def subscribe(self, reader: Reader) -> None:
        """Passes every later reading to `reader`."""
        self._readers[reader] = Fence("What a callback makes of the steps", tries_again=True)

    def unsubscribe(self, reader: Reader) -> None:
        """Reads once more and takes `reader` off; the last one to leave closes the session."""
        if reader not in self._readers:
            return
        try:
            self.read()
        finally:
            self._readers.pop(reader, None)
            if not self._readers:
                self.close()

    def advance(self, data: Any) -> None:
        """Begins the row of the next batch (a graph operation).

        Args:
            data: The batch, any nesting of tensors.
        """
        if not (tf.executing_eagerly() and self._is_described):
            _batches[self.model] = _described(data)
            self._is_described = True
        # Behind the data: at the end of an iterator the step is entered once more, and only what
        # needs the missing batch does not run.
        leaves = tf.nest.flatten(data, expand_composites=True)
        with tf.control_dependencies([leaf for leaf in leaves if tf.is_tensor(leaf)]):
            self._begin_rows()
            for recorder in self.recorders[1:]:
                recorder.advance()
            self.primary.advance(examples=self._global(batch_size(data)))

    def advance_on_host(self, data: Any) -> None:
        """Like `advance`, for a loop in Python, outside of any graph."""
        self._begin_rows()
        for recorder in self.recorders[1:]:
            recorder.advance_on_host()
        self.primary.advance_on_host(examples=examples_in(data) * self._processes)

    def count_on_host(self, batches: int, examples: float = 0.0) -> None:
        """Counts batches that nobody hands in.

        Args:
            batches: How many.
            examples: In all of them.
        """
        for _ in range(batches):
            self.primary.advance_on_host(examples=examples / batches)

    def steps_begin(self, steps: int, batch: int) -> None:
        """Called on the host before `steps` more batches are consumed: reads if it is time to.

        It is time when the tables might not hold them (nor as many again, in case someone else has
        had them read since the last batch began), and when the oldest row might be older than
        `HAND_IN_SECONDS` by the next call, if that comes as late as this one did.

        Args:
            steps: Number of batches, at most.
            batch: Index of the first of them in its epoch. However many callbacks look on, only
                the first call for a batch counts.
        """
        if batch == self._batch:
            return
        now = self._clock()
        late = 2 * now - self._looked_at > self._hand_in_at
        if self._unread and (late or self._unread + 2 * steps > self._room):
            self.read()
        if not self._unread:
            self._unread_since = time.time()
            self._hand_in_at = now + HAND_IN_SECONDS
        if self.is_remote and self._counts_batches:
            self.count_on_host(steps)
        self._batch = batch
        self._looked_at = now
        self._ended = None
        self._unread += steps

    def steps_end(self) -> None:
        """Called on the host when the batches of an epoch are consumed: reads.

        But for the row of the last batch if an optimizer made no update in it: a group of
        micro-batches that is incomplete may still be applied, and belongs to that batch.
        """
        self.read(hold=True)

    def read(self, *, hold: bool = False) -> None:
        """Takes the rows out of the tables and hands them to every reader.

        Args:
            hold: Leave the last one where `steps_end` says so.
        """
        self._unread, self._batch = 0, None
        ended_at, until = self._ended or (time.time(), self._clock())
        tables = {id(recorder): recorder.read() for recorder in self.recorders}
        if hold and any(_without_update(tables[id(p.recorder)]) for p in self._probes.values()):
            for recorder in self.recorders:
                if tables[id(recorder)].count:
                    recorder.give_back()
                    tables[id(recorder)] = tables[id(recorder)].without_last()
            self._unread, self._ended = 1, (ended_at, until)
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
            columns |= metric_columns(own, path)
            events |= counted_events(own, path)
            # Under loss scaling a step may be skipped; its optimizer is at work all the same.
            if any(own[each].count() for each in (*_NORMS, "loss_scale") if each in own):
                updated.add(name)
            if probe.layers is not None:
                layers = united_norms(layers, tables[id(probe.layers)].columns)
        readings = Readings(
            batches=rows.count,
            examples=rows.columns["examples"].filled(0),
            columns=columns,
            events=events,
            layers=layers,
            times=np.linspace(self._unread_since, ended_at, rows.count + 1)[1:],
            until=until,
            updated=frozenset(updated),
        )
        for reader, fence in list(self._readers.items()):
            with fence():
                reader(readings)

    def close(self) -> None:
        """Passes the last rows to the readers, and restores the model and its optimizers."""
        try:
            self.read()
        finally:
            self._undo += [probe.detach for probe in self._probes.values()]
            while self._undo:
                with Fence(f"{self.model.name!r} as it was found")():
                    self._undo.pop()()
            self._readers.clear()
            if _sessions.get(self.model) is self:
                del _sessions[self.model]
            if not _sessions:
                _last_look.end()

    def observe_fit(self) -> None:
        """Looks at the model's own step, so that `fit` writes a row a batch, with its loss."""
        if self.is_remote:
            self._counts_batches = True
            return
        self._fit_probe = FitProbe(self.model, self.advance, self.primary, self.follow)
        self._undo.append(self._fit_probe.detach)
        self._fit_probe.attach()
        self._fit_probe.choose_train_function(self.recorders)

    def follow(self) -> None:
        """Observes the optimizers that the model has now: it may be compiled anew at any time.

        A step that is traced from now on writes to their tables. The optimizers that are no longer
        the model's are left as they were found. A loop has those that it was given.
        """
        if self._fit_probe is None:
            return
        optimizers = find_optimizers(self.model)
        kept = {
            name: self._probes[name]
            for name, each in optimizers.items()
            if self.optimizers.get(name) is each
        }
        if len(kept) == len(optimizers) == len(self._probes):
            return
        self.read()
        for name, probe in self._probes.items():
            if name not in kept:
                probe.detach()
        new = {name: each for name, each in optimizers.items() if name not in kept}
        self.optimizers = optimizers
        self._probes = {}
        for name, each in optimizers.items():
            self._probes[name] = kept.get(name) or OptimizerProbe(each, capacity=self._capacity)
        if self._probes:
            self.primary = next(iter(self._probes.values())).recorder
        self._fit_probe.recorder = self.primary
        for name in new:
            self._probes[name].recorder.read()
            self._probes[name].attach()
            if self._observes_layers:
                self._probes[name].observe_layers()
        self._room = self._least_capacity()
        if new:
            _logger.warning(
                "%s has another optimizer in the middle of its training: %s. Recorded from its "
                "first update on.",
                self.model.name,
                ", ".join(each.name for each in new.values()),
            )

    def _global(self, examples: Any) -> Any:
        """Of how many examples the global batch is, of which this process has a share."""
        examples = tf.cast(examples, tf.float32)
        if not has_replicas():
            return examples * self._processes
        if in_one_process():
            return sums_over_replicas([examples])[0]
        return examples * tf.distribute.get_strategy().num_replicas_in_sync

    def _begin_rows(self) -> None:
        for probe in self._probes.values():
            probe.begin_row()

    def _least_capacity(self) -> int:
        return min(recorder.capacity for recorder in self.recorders)

    def _read_before_saving(self) -> None:
        """Reads the tables before a checkpoint is saved, since a run may have to resume from it."""
        training_thread = threading.get_ident()

        def look(*_arguments: Any, **_named: Any) -> Generator[None, Any, None]:
            if threading.get_ident() == training_thread:
                self.read()
            yield

        for name in ("save", "save_weights"):
            what = f"The steps of {self.model.name!r} before it was saved"
            self._undo.append(watch_method(self.model, name, look, what=what))


# Of each model whose step has been traced, its batch: a later training may use that step again.
_batches: "weakref.WeakKeyDictionary[Any, Any]" = weakref.WeakKeyDictionary()
_sessions: "weakref.WeakKeyDictionary[Any, TrainingSession]" = weakref.WeakKeyDictionary()


class _LastLook:
    """Reads the tables when a process ends by `os._exit`, which tells nobody.

    Takes the place of that function while a training is under way. A forked child, which ends so as
    a rule, has nothing to read.
    """

    def __init__(self) -> None:
        self._process = 0
        self._place = Replacement(os, "_exit", self._exit)

    def begin(self) -> None:
        if not self._place.stands:
            self._process = os.getpid()
            self._place.begin()

    def end(self) -> None:
        self._place.end()

    def _exit(self, status: int) -> None:
        if os.getpid() == self._process:
            for session in list(_sessions.values()):
                with suppress(Exception):
                    session.read()
        self._place.found(status)


_last_look = _LastLook()


def session_of(model: Any) -> TrainingSession | None:
    """The session of a model that is under way."""
    return _sessions.get(model)


def join_session(model: Any, *, token: object) -> TrainingSession:
    """The session of the training that is under way, begun if the caller is the first to look on.

    Args:
        model: The model that is trained.
        token: An object that all callbacks of one training share and no other training has. A
            session with another token is that of a training around this one, or it is what an
            interrupted training left behind: then it is closed.
    """
    session = _sessions.get(model)
    if session is not None and (session.token is token or training_around_own(model) is not None):
        return session
    if session is not None:
        session.close()
    session = TrainingSession(
        model, find_optimizers(model), token=token, capacity=steps_per_execution(model)
    )
    if (training := training_of(model)) is not None:  # whatever becomes of the callbacks
        training.at_end(lambda _: session.close())
    session.observe_fit()
    return session


def _described(data: Any) -> Any:
    """The shapes and dtypes of a batch; None of what is not made of dense tensors."""
    context = tf.distribute.get_replica_context()
    leaves = tf.nest.flatten(data)
    if context is None or context.num_replicas_in_sync > 1 or not all(map(tf.is_tensor, leaves)):
        return None
    if not all(isinstance(leaf, tf.Tensor) for leaf in leaves):  # sparse or ragged
        return None
    rows = batch_size(data) if tf.executing_eagerly() else None  # in a graph it is free already

    def spec(leaf: Any) -> tf.TensorSpec:
        free = rows is not None and leaf.shape.rank and leaf.shape[0] == rows
        return tf.TensorSpec([None, *leaf.shape[1:]] if free else leaf.shape, leaf.dtype)

    return tf.nest.map_structure(spec, data)


def _without_update(rows: Rows) -> bool:
    """Whether the last batch was consumed without an update of this optimizer."""
    norms = [rows.columns[each] for each in _NORMS if each in rows.columns]
    return rows.count > 0 and all(np.ma.getmaskarray(each)[-1] for each in norms)

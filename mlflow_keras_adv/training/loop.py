"""Loop: epochs, batches and callbacks for a training loop that is written by hand."""

import inspect
import logging
import sys
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mlflow_keras_adv.compat.keras import initial_epoch_of, put_initial_epoch
from mlflow_keras_adv.errors import expect
from mlflow_keras_adv.training.batches import count_batches
from mlflow_keras_adv.training.cluster import (
    over_replicas,
    over_values,
    require_same_begin,
    steps_are_remote,
    strategy_of,
)
from mlflow_keras_adv.training.fence import Fence
from mlflow_keras_adv.training.leaving import Asker, NotesInterrupts, exception_leaving
from mlflow_keras_adv.training.observe import is_optimizer
from mlflow_keras_adv.training.readings import Readings
from mlflow_keras_adv.training.recorder import recorder_of
from mlflow_keras_adv.training.session import TrainingSession
from mlflow_keras_adv.training.trainings import Training

_logger = logging.getLogger(__name__)

# Curves that one value with several numbers may become.
MAX_ENTRIES = 64


class Loop:
    """Gives a `GradientTape` loop the services of `fit`: callbacks, progress bar, recording.

    It calls ordinary Keras callbacks (`EarlyStopping`, `ModelCheckpoint`, `MlflowLogger`, …) and
    observes the optimizers, so that norms and rates are recorded without a line in the step.

    Example:
        ```python
        loop = mka.Loop(model, optimizers=optimizer, callbacks=[mka.MlflowLogger()])

        @tf.function
        def train_step(x, y):
            with tf.GradientTape() as tape:
                loss = loss_fn(y, model(x, training=True))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables))
            loop.record(loss=loss)

        for epoch in loop.epochs(10):
            for x, y in loop.batches(train):
                train_step(x, y)
            loop.log(val_loss=evaluate(validation))
        ```

    Args:
        model: The model that the callbacks get. If it has no `optimizer`, it has the first of
            `optimizers` while the loop runs.
        optimizers: A Keras optimizer, or several by their names in the metric keys.
        callbacks: Keras callbacks.
        verbose: 0 for silence, 1 for a progress bar, 2 for one line per epoch.

    Raises:
        TypeError: An optimizer is none, or a callback is a class instead of an instance.
    """

    def __init__(
        self,
        model: Any,
        *,
        optimizers: Any,
        callbacks: Iterable[Any] = (),
        verbose: int = 1,
    ) -> None:
        named = optimizers if isinstance(optimizers, Mapping) else {"optimizer": optimizers}
        for name, optimizer in named.items():
            if not is_optimizer(optimizer):
                raise TypeError(
                    f"Received {optimizer!r} as the optimizer {name!r}; expected an instance of "
                    "keras.optimizers.Optimizer, or a dict of such by name."
                )
        callbacks = list(callbacks)
        for callback in callbacks:
            if isinstance(callback, type):
                raise TypeError(
                    f"Received the class {callback.__name__} among the callbacks; expected an "
                    f"instance: {callback.__name__}(...)."
                )
        self.model = model
        self.history: dict[str, list[Any]] = {}
        self._optimizers = dict(named)
        self._callbacks = callbacks
        self._verbose = verbose
        self._session: _Spared | None = None
        self._epochs: weakref.ref[_Epochs] | None = None
        self._recording = Fence("What a loop records", tries_again=True)
        self._callback_list: Any = None
        self._totals: dict[str, tuple[float, float]] = {}
        self._logged: dict[str, Any] = {}
        self._said: set[str] = set()
        self._advanced = self._updates_before = 0
        # By training, the data whose first epoch has begun.
        self._fed: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()
        self._multi_steps: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def epochs(self, epochs: int, *, initial_epoch: int = 0) -> Iterator[int]:
        """Yields the epochs' numbers, from `initial_epoch` to `epochs - 1`.

        Ends early when a callback sets `model.stop_training`. At the end, also by `break` or an
        exception, the callbacks are called and the model is restored. A loop that was interrupted
        and is referenced only by a traceback ends when the next one begins.

        Args:
            epochs: Number of the last epoch plus one, as in `fit`.
            initial_epoch: Number of the first, unless `BackupAndRestore` restores a later one.

        Returns:
            An iterator of the numbers.

        Raises:
            RuntimeError: If this Loop is running.
            TypeError: `epochs` is no whole number.
        """
        earlier = None if self._epochs is None else self._epochs()
        if earlier is not None:
            earlier.end_if_left()
        expect("epochs", epochs, (int, np.integer), "how many, a whole number")
        if self._session is not None:
            raise RuntimeError("This Loop is running already. End it, or make a second Loop.")
        made = _Epochs(self._run_epochs(epochs, initial_epoch))
        self._epochs = weakref.ref(made)
        return made

    def _run_epochs(self, epochs: int, initial_epoch: int) -> Generator[int, None, None]:
        """The epochs; an exception that is thrown in is what left the user's loop."""
        if self._session is not None:
            raise RuntimeError("This Loop is running already. End it, or make a second Loop.")
        self._callback_list = keras.callbacks.CallbackList(
            list(self._callbacks),
            add_history=True,
            add_progbar=self._verbose != 0,
            model=self.model,
            verbose=self._verbose,
            epochs=epochs,
            steps=None,
        )
        # Where BackupAndRestore says, as it does to `fit`, at which epoch to go on.
        found_epoch = initial_epoch_of(self.model)
        put_initial_epoch(self.model, None)
        lends_optimizer = getattr(self.model, "optimizer", None) is None
        found_none = "optimizer" in vars(self.model)
        first = next(iter(self._optimizers.values()))
        if lends_optimizer:
            self.model.optimizer = first
        training = Training(self.model, {"callbacks": self._callbacks})
        self._session = _Spared(
            lambda: TrainingSession(self.model, self._optimizers, token=self._callback_list.params)
        )
        self._session.subscribe(self._add_up)
        self.model.stop_training = False
        logs: dict[str, Any] = {}
        ended = False
        try:
            with training:
                self._callback_list.on_train_begin()
                try:
                    first_epoch = initial_epoch_of(self.model) or initial_epoch
                    batches = count_batches(self._optimizers.values())
                    begin = f"epoch {first_epoch}, batch {'?' if batches is None else batches}"
                    require_same_begin(strategy_of(self.model), begin)
                    for epoch in range(first_epoch, epochs):
                        self._totals, self._logged = {}, {}
                        self._advanced, self._updates_before = 0, self._updates()
                        self._callback_list.on_epoch_begin(epoch)
                        yield epoch
                        logs = self._epoch_logs()
                        if not logs and not self.history:
                            self._say_once(
                                "This loop has recorded no value in its first epoch, not even a "
                                "loss. Call loop.record(loss=loss) in the train step, or "
                                "loop.log(loss=...) once an epoch."
                            )
                        self._callback_list.on_epoch_end(epoch, logs)
                        for name, value in logs.items():
                            self.history.setdefault(name, []).append(value)
                        if self.model.stop_training:
                            break
                    ended = True
                except GeneratorExit:
                    pass  # a `break`
                except BaseException as error:
                    training.end(error)  # before callbacks are told of an end, and not of which
                    raise
                finally:
                    with nullcontext() if ended else _backups_kept(self._callback_list.callbacks):
                        self._callback_list.on_train_end(logs)
        finally:
            self._session.unsubscribe(self._add_up)
            self._session = None
            put_initial_epoch(self.model, found_epoch)
            if lends_optimizer and self.model.optimizer is first:
                del self.model.optimizer  # TensorFlow would go on tracking it
                if found_none:
                    self.model.optimizer = None

    def _updates(self) -> int:
        """How many updates the optimizers have made; 0 where they do not tell."""
        return count_batches(self._optimizers.values()) or 0

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            _logger.warning(message)

    def batches(self, data: Iterable[Any]) -> Iterator[Any]:
        """Yields the batches of one epoch, and counts them.

        Args:
            data: A `tf.data.Dataset`, a `keras.utils.PyDataset` or any iterable of batches. The
                `on_epoch_begin` and `on_epoch_end` of a `PyDataset` are called as by `fit`, which
                also calls `on_epoch_end` before the first epoch; its batches come in their order,
                as with `fit(shuffle=False)`.

        Yields:
            The batches of `data`, unchanged.

        Raises:
            RuntimeError: No epoch of this Loop is running.
            TypeError: `data` cannot be iterated over.
        """
        session = self._running()
        expect("data", data, Iterable, "an iterable of batches, such as a tf.data.Dataset")
        self._expect(data)
        self._begin_epoch_of(data, session)
        try:
            for index, batch in enumerate(data):
                session.steps_begin(1, index)
                self._callback_list.on_train_batch_begin(index)
                session.advance_on_host(batch)
                yield batch
                self._callback_list.on_train_batch_end(index, {})
                if self.model.stop_training:
                    break
        finally:
            if self._session is session:  # what is left of an earlier loop may be cleared up late
                session.steps_end()
                _call_if_any(data, "on_epoch_end")

    def run(
        self, step: Callable[..., Any], data: tf.data.Dataset, *, steps_per_call: int = 8
    ) -> None:
        """Runs one epoch with several steps per call, inside the graph.

        A small model spends more time in Python than in its step; this calls the graph once per
        `steps_per_call` steps, as `steps_per_execution` does in `fit`.

        Args:
            step: Called with the components of a batch, as in `step(x, y)`.
            data: A dataset of batches.
            steps_per_call: Number of steps made by one call.

        Raises:
            RuntimeError: No epoch of this Loop is running.
            ValueError: `steps_per_call` is below 1.
        """
        if steps_per_call < 1:
            raise ValueError(f"Received steps_per_call={steps_per_call}; expected 1 or more.")
        session = self._running()
        known = self._expect(data)
        key = getattr(step, "python_function", step)
        many_steps = self._multi_steps.get(key)
        if many_steps is None:
            many_steps = self._multi_steps[key] = self._many_steps(step)
        iterator, done, limit = iter(data), 0, tf.constant(steps_per_call)
        while done != known and not self.model.stop_training:
            session.steps_begin(steps_per_call, done)
            self._callback_list.on_train_batch_begin(done)
            made = int(many_steps(iterator, limit))
            done += made
            if made:
                self._callback_list.on_train_batch_end(done - 1, {})
            if made < steps_per_call:
                break
        session.steps_end()

    @tf.autograph.experimental.do_not_convert  # which takes longer than all that it does
    def record(self, *, reduction: str = "sum", **values: Any) -> None:
        """Records scalars of the current step, from inside a `tf.function` too.

        They become the curves `batch/<name>`, and their mean over the epoch, each batch weighted by
        its number of examples as in `fit`, becomes the epoch's `<name>` in the callbacks' logs. A
        value with several numbers (at most `MAX_ENTRIES`, of a shape that is known when the step is
        traced) becomes `<name>/<index>`. Values that are no numbers are left out, with a warning.

        Under a distribution strategy the values of the replicas are reduced: in the replicas' step
        by one operation a call, which the replicas of all processes have to make; outside of it
        where they are distributed over replicas. A tensor outside of their step is taken to be
        reduced already.

        Args:
            reduction: "sum", which is right for a loss that is divided by the global batch size, as
                in TensorFlow's guide; or "mean".
            **values: Numbers or scalar tensors of a replica, or distributed over the replicas.

        Raises:
            ValueError: If `reduction` is neither.
        """
        if reduction not in ("sum", "mean"):
            raise ValueError(f"Received reduction={reduction!r}; expected 'sum' or 'mean'.")
        if steps_are_remote(strategy_of(self.model)):
            self._say_once(
                "loop.record cannot reach the process that trains from a worker of parameter "
                "servers: fetch the value there, and give it to loop.log once an epoch."
            )
            return
        with self._recording():
            mean = reduction == "mean"
            cells, reduced = dict[str, Any](), dict[str, Any]()
            for name, value in values.items():
                try:
                    if isinstance(value, tf.distribute.DistributedValues):
                        value = over_values(value, mean=mean, strategy=strategy_of(self.model))
                        reduced |= _cells(f"batch/{name}", value)
                    else:
                        cells |= _cells(f"batch/{name}", value)
                except (TypeError, ValueError) as error:
                    self._say_left_out("record", name, error)
            if cells or reduced:
                recorder = recorder_of(next(iter(self._optimizers.values())))
                recorder.write_all({**over_replicas(cells, mean=mean), **reduced})

    def advance(self, batches: int, *, examples: int = 0) -> None:
        """Counts training batches that are not given by `batches` or `run`.

        Such as those that a `tf.distribute.coordinator.ClusterCoordinator` has scheduled. Without
        it, an epoch under a `ParameterServerStrategy` is as long as the optimizer has counted
        updates, which may be some less than were made: workers count at the same time.

        Args:
            batches: How many.
            examples: How many examples are in all of them, for the pace.

        Raises:
            RuntimeError: No epoch of this Loop is running.
            ValueError: `batches` is negative.
        """
        if batches < 0:
            raise ValueError(f"Received batches={batches}; expected 0 or more.")
        self._running().count_on_host(batches, examples)
        self._advanced += batches

    def log(self, **values: Any) -> None:
        """Adds values to the logs of the current epoch: `val_loss`, `val_accuracy`, a metric.

        Args:
            **values: Numbers or scalar tensors, under the names that `fit` would give them; or an
                array of numbers, such as the values of a metric for each class, which the callbacks
                get as an array. Values that are no numbers are left out, with a warning.
        """
        self._running()
        for name, value in values.items():
            try:
                self._logged[name] = _numbers(value)
            except Exception as error:  # whatever a value that is not ours answers
                self._say_left_out("log", name, error)

    def function(self, step: Callable[..., Any]) -> Any:
        """Makes a new `tf.function` of a step that was traced before the loop could observe it.

        Args:
            step: The function that was decorated with `tf.function`, or a plain one.

        Returns:
            The new `tf.function`.
        """
        return tf.function(getattr(step, "python_function", step))

    def _begin_epoch_of(self, data: Any, session: "_Spared") -> None:
        fed = self._fed.setdefault(session, [])
        if all(data is not each for each in fed):
            fed.append(data)
            _call_if_any(data, "on_epoch_end")  # as `fit` does, which resets its data first
        _call_if_any(data, "on_epoch_begin")

    def _say_left_out(self, method: str, name: str, error: Exception) -> None:
        if name not in self._said:
            self._said.add(name)
            _logger.warning("loop.%s leaves out %r, which is no number: %s", method, name, error)

    def _running(self) -> "_Spared":
        if self._session is None:
            raise RuntimeError(
                "This Loop is not running: use it inside `for epoch in loop.epochs(n):`."
            )
        return self._session

    def _expect(self, data: Any) -> int:
        """Tells the progress bar how many steps there will be; a negative number if unknown."""
        known = int(data.cardinality()) if isinstance(data, tf.data.Dataset) else _length(data)
        if known >= 0:
            self._callback_list.params["steps"] = known
        return known

    def _many_steps(self, step: Callable[..., Any]) -> Any:
        session = self._running()

        @tf.function
        def many_steps(iterator: Any, limit: Any) -> Any:
            made = tf.constant(0)
            batch = iterator.get_next_as_optional()
            while made < limit and batch.has_value():
                values = batch.get_value()
                session.advance(values)
                step(*values) if isinstance(values, tuple) else step(values)
                made += 1
                if made < limit:
                    batch = iterator.get_next_as_optional()
            return made

        return many_steps

    def _add_up(self, readings: Readings) -> None:
        # Batches that do not tell their size count alike.
        weights = np.where(readings.examples.any(), readings.examples, 1.0)
        for key, column in readings.columns.items():
            if key.startswith("batch/"):
                name = key.removeprefix("batch/")
                total, weight = self._totals.get(name, (0.0, 0.0))
                present = ~np.ma.getmaskarray(column)
                total += float(np.sum(column.data[present] * weights[present]))
                self._totals[name] = (total, weight + float(np.sum(weights[present])))

    def _epoch_logs(self) -> dict[str, Any]:
        if not self._advanced and steps_are_remote(strategy_of(self.model)):
            self.advance(self._updates() - self._updates_before)
        self._running().read()
        means = {name: total / weight for name, (total, weight) in self._totals.items() if weight}
        return means | self._logged


class _Spared:
    """A session whose failures are not the loop's: what fails in it is said, and the loop goes on.

    Args:
        begin: Makes the session.
    """

    def __init__(self, begin: Callable[[], TrainingSession]) -> None:
        self._fence = Fence("The steps of a loop")
        self._session: TrainingSession | None = None
        with self._fence():
            self._session = begin()

    def __getattr__(self, name: str) -> Callable[..., None]:
        @tf.autograph.experimental.do_not_convert
        def spared(*arguments: Any, **named: Any) -> None:
            if self._session is not None:
                with self._fence():
                    getattr(self._session, name)(*arguments, **named)

        return spared


class _Epochs:
    """The iterator of a loop's epochs: it learns whether it was left by a `break` or an exception.

    Args:
        generator: What yields the epochs, and is thrown the exception.
    """

    def __init__(self, generator: Generator[int, None, None]) -> None:
        self._generator = generator
        self._interrupts = NotesInterrupts()
        self._asker: Asker | None = None

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self._asker is None:
            self._interrupts.begin()
        self._asker = Asker(sys._getframe(1))
        try:
            return next(self._generator)
        except BaseException:
            self._interrupts.end()
            raise

    def end_if_left(self) -> None:
        """Ends the loop if the code that asked for its last epoch has been left since."""
        if self._asker is None:
            self.close()
        elif not self._asker.is_running():
            unseen = KeyboardInterrupt() if self._interrupts.noted else None
            self.close(self._asker.left_by() or unseen)

    def close(self, error: BaseException | None = None) -> None:
        """Ends the loop, as a `break` does.

        Args:
            error: What left it, if it was an exception.
        """
        self._interrupts.end()
        if error is None:
            self._generator.close()
            return
        with suppress(BaseException):  # the user's own; it is on its way
            self._generator.throw(error)

    def __del__(self) -> None:
        state = inspect.getgeneratorstate(self._generator)
        if state == inspect.GEN_CLOSED or sys.is_finalizing():  # it is ended, or all is
            return
        interrupted = self._interrupts.noted
        self.close(exception_leaving(sys._getframe(1), interrupted=interrupted))


@contextmanager
def _backups_kept(callbacks: Iterable[Any]) -> Iterator[None]:
    """Keeps the files of BackupAndRestore: a loop that was left early may be taken up again.

    `fit` calls no `on_train_end` after an exception, but the other callbacks here need it.
    """
    deleting = [each for each in callbacks if getattr(each, "delete_checkpoint", False)]
    for callback in deleting:
        callback.delete_checkpoint = False
    try:
        yield
    finally:
        for callback in deleting:
            callback.delete_checkpoint = True


def _length(data: Any) -> int:
    try:
        return len(data)
    except TypeError:
        # A PyDataset may have this instead.
        known = getattr(data, "num_batches", None)
        return known if isinstance(known, int) else -1


def _call_if_any(data: Any, hook: str) -> None:
    if callable(method := getattr(data, hook, None)):
        method()


def _numbers(value: Any) -> Any:
    """A float, or an array of several."""
    array = np.asarray(value)
    if array.size == 1:
        return float(array.item())
    if array.size == 0 or array.dtype.kind not in "biufV":  # V: the bfloat16 of a tensor
        raise ValueError(f"it is {value!r:.80}")
    return array.astype(np.float64)


def _cells(key: str, value: Any) -> dict[str, Any]:
    """Scalars by their keys; see `Loop.record`."""
    tensor = tf.convert_to_tensor(value)
    if not (tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool):
        raise ValueError(f"it is of type {tensor.dtype.name}")
    if tensor.shape.rank in (0, None):
        return {key: tensor}
    size = tensor.shape.num_elements()
    if size is None or not 0 < size <= MAX_ENTRIES:
        raise ValueError(
            f"it is of shape {tensor.shape}; expected a scalar, or a shape that is known with at "
            f"most {MAX_ENTRIES} numbers"
        )
    if size == 1:
        return {key: tf.reshape(tensor, [])}
    return {"/".join([key, *map(str, index)]): tensor[index] for index in np.ndindex(*tensor.shape)}

"""RunCallback: the base of every callback here, for Keras 3, tf_keras and `Loop`."""

import functools
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import keras
import numpy as np

from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.tracking.run import Run, attach_run, current_run
from mlflow_keras_adv.tracking.sigterm import raise_if_lost, was_terminated
from mlflow_keras_adv.training.batches import steps_per_execution
from mlflow_keras_adv.training.fence import Fence
from mlflow_keras_adv.training.fits import AsksForTheEnd, know_fits
from mlflow_keras_adv.training.readings import Readings
from mlflow_keras_adv.training.session import join_session
from mlflow_keras_adv.training.trainings import training_of

_logger = logging.getLogger(__name__)
_Hook = TypeVar("_Hook", bound=Callable[..., None])

# Hooks that are only called while a training goes on.
_IN_TRAINING = {"on_epoch_begin", "on_epoch_end", "on_train_batch_begin", "on_train_batch_end"}


def _sparing(hook: _Hook) -> _Hook:
    """Keeps what fails in a hook from the training, but for a `UserError` at its begin."""
    name = hook.__name__

    @functools.wraps(hook)
    def sparing(self: "RunCallback", *args: Any, **kwargs: Any) -> None:
        if name == "on_train_begin":
            self._terminated_before = was_terminated()
        elif name in _IN_TRAINING:
            raise_if_lost(terminated_before=self._terminated_before)
        said: UserError | None = None
        what = f"{type(self).__name__}.{name}"
        with self._fences.setdefault(name, Fence(what, tries_again=True))():
            try:
                hook(self, *args, **kwargs)
            except UserError as error:
                if name != "on_train_begin":
                    raise
                said = error
        if said is not None:
            raise said

    return sparing  # type: ignore[return-value]


class RunCallback(keras.callbacks.Callback, AsksForTheEnd):
    """A callback that writes to a run, and never ends the training that it observes.

    Errors in its hooks are logged, once for each hook, and the training continues; only a
    `UserError` at the beginning is raised. It gets to know the end of the training, however it
    ends. A copy or a pickle contains only the constructor's arguments: no run, session or model.

    A subclass has `begin`, which acquires what it needs in a training, and `end`, which writes the
    rest.

    Args:
        run: The run to write to, or its id. Default: the current run when the training begins.
    """

    _terminated_before = True  # until a training begins

    def __init__(self, run: Run | str | None = None) -> None:
        super().__init__()
        self._run_id = _plain(run)
        self._joined: Joined | None = None
        self._fences: dict[str, Fence] = {}
        know_fits()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, hook in list(vars(cls).items()):
            if name.startswith("on_") and callable(hook):
                setattr(cls, name, _sparing(hook))
        if "__init__" in vars(cls):
            cls.__init__ = _remembering(cls.__init__)  # type: ignore[method-assign]

    def __reduce__(self) -> tuple[Any, ...]:
        args, kwargs = vars(self).get("_arguments", ((), {}))
        return functools.partial(type(self), *args, **kwargs), ()

    @_sparing
    @keeps_random_state()
    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Joins the training; without a run that is logged, and nothing else is done."""
        self.leave()
        joined = Joined.at(self, self._run_id)
        if joined is None:
            return
        try:
            self.begin(joined)
        except BaseException:
            joined.leave()
            raise
        self._joined = joined

    @_sparing
    @keeps_random_state()
    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Leaves the training."""
        self.leave()

    @keeps_random_state()
    def leave(self) -> None:
        """Leaves a training that ended or raised, and writes the values so far."""
        if (joined := self._joined) is None:
            return
        try:
            joined.leave()  # hands out what is left to read
        finally:
            self._joined = None
        self.end(joined)

    def begin(self, joined: "Joined") -> None:
        """Begins a training.

        Args:
            joined: The training.
        """

    def end(self, joined: "Joined") -> None:
        """Writes the rest when a training has ended.

        Args:
            joined: The training, which is left already.
        """

    def receive(self, readings: Readings, steps: "np.ndarray[Any, Any]") -> None:
        """Receives the values of steps.

        Args:
            readings: Their values.
            steps: Training batches consumed in the run, shape `[batches]`.
        """

    def _implements_train_batch_hooks(self) -> bool:
        return True

    def _implements_test_batch_hooks(self) -> bool:
        return False

    def _implements_predict_batch_hooks(self) -> bool:
        return False


class Joined:
    """A training that a callback takes part in, and the run that it writes to.

    The step is the number of training batches consumed in the run, with and without `MlflowLogger`
    and in whatever order the callbacks stand.

    Args:
        callback: A callback in `on_train_begin`. Its `leave` is called if its run ends before the
            training does, as it does by an exception; `receive` with each reading.
        run: The run.

    Attributes:
        run: The run.
    """

    def __init__(self, callback: RunCallback, run: Run) -> None:
        self.run = run
        self._model = callback.model
        self._hand_out = callback.receive
        self._fences: dict[str, Fence] = {}
        self._session = join_session(callback.model, token=callback.params)
        self._session.subscribe(self._receive)
        self._withdraw = [run.on_exit(callback.leave)]
        if (training := training_of(callback.model)) is not None:
            self._withdraw.append(training.at_end(lambda _: callback.leave()))

    @classmethod
    def at(cls, callback: RunCallback, run_id: str | None) -> "Joined | None":
        """Joins the training that begins, or logs why not.

        Args:
            callback: The callback.
            run_id: The run to write to; None for the current run.

        Returns:
            None if there is no run, which is no reason to stop a training.
        """
        reason: object
        try:
            run = attach_run(run_id) if run_id is not None else current_run()
            reason = (
                "it has no run to write to. Train inside `with track():`, put it after "
                "MlflowLogger in the list of callbacks, or pass it a run."
            )
        except UserError as error:
            run, reason = None, error
        if run is not None:
            return cls(callback, run)
        name = type(callback).__name__
        _logger.warning("%s does nothing in this training: %s", name, reason)
        return None

    def observe_layers(self) -> None:
        """Has the readings hold the norm of each layer's gradient too."""
        self._session.observe_layers()

    def batch_begin(self, batch: int) -> None:
        """Must be called at the beginning of each batch by callbacks that need every row."""
        self._session.steps_begin(steps_per_execution(self._model), batch)

    def step(self) -> int:
        """Training batches consumed so far in the run, up to now."""
        self._session.read()
        return self.run.axis.batches

    def leave(self) -> None:
        """Takes part no longer; what is left to read is handed out before."""
        for withdraw in self._withdraw:
            withdraw()
        self._session.unsubscribe(self._receive)

    def spares_training(self, task: str) -> AbstractContextManager[None]:
        """Ends the block, and not the training, when something in it fails; says so once.

        Args:
            task: What is done in the block, as the subject of a sentence.
        """
        return self._fences.setdefault(task, Fence(task, tries_again=True))()

    def _receive(self, readings: Readings) -> None:
        self._hand_out(readings, self.run.axis.steps_of(readings, readings.batches))


def _plain(argument: Any) -> Any:
    """An argument as it can be kept: of a run its id."""
    return argument.run_id if isinstance(argument, Run) else argument


def _remembering(init: Callable[..., None]) -> Callable[..., None]:
    """Keeps the arguments of the outermost constructor, which a copy is made of."""

    @functools.wraps(init)
    def remembering(self: RunCallback, *args: Any, **kwargs: Any) -> None:
        kept = tuple(map(_plain, args)), {key: _plain(each) for key, each in kwargs.items()}
        self.__dict__.setdefault("_arguments", kept)
        init(self, *args, **kwargs)

    return remembering

"""MlflowLogger: records a training in an MLflow run, by the conventions of this package."""

import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from mlflow_keras_adv.callbacks.base import RunCallback
from mlflow_keras_adv.callbacks.best import best_of
from mlflow_keras_adv.callbacks.epoch_keys import PACE, EpochKeys
from mlflow_keras_adv.callbacks.step_flops import StepFlops
from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.metrics.directions import mode_of_name
from mlflow_keras_adv.tracking.directions import TAG as DIRECTIONS
from mlflow_keras_adv.tracking.directions import note
from mlflow_keras_adv.tracking.names import flatten
from mlflow_keras_adv.tracking.outbox import GRACE_SECONDS
from mlflow_keras_adv.tracking.process_end import before_the_end, grace_left
from mlflow_keras_adv.tracking.run import Run, attach_run, current_run, track
from mlflow_keras_adv.tracking.sigterm import raises_terminated
from mlflow_keras_adv.training.batches import steps_per_execution
from mlflow_keras_adv.training.fence import Fence
from mlflow_keras_adv.training.readings import Readings
from mlflow_keras_adv.training.session import join_session, session_of
from mlflow_keras_adv.training.settings import (
    environment_tags,
    fit_settings,
    model_settings,
    model_summary,
    optimizer_settings,
)
from mlflow_keras_adv.training.trainings import (
    Training,
    end_all,
    training_around,
    training_around_own,
    training_of,
)

_logger = logging.getLogger(__name__)

before_the_end(end_all)

# Of each training that is under way and on record, the run.
_run_of: "WeakKeyDictionary[Training, str]" = WeakKeyDictionary()


class MlflowLogger(RunCallback):
    """Records every step and epoch of a training in an MLflow run.

    One axis for all curves: the number of training batches consumed so far in the run. At each
    step: `batch/loss`, `gradient/norm`, `gradient/norm_clipped` (where gradients are clipped),
    `optimizer/learning_rate` and, in mixed precision, `optimizer/loss_scale`. At the end of each
    epoch: `train/…` and `val/…` under Keras' metric names, and the pace. Once: settings as params,
    library versions as tags, the model's summary and the whole configuration as artifacts.

    The values are written inside the compiled step and read in bulk; training never waits for the
    store. They are passed to the run at most `HAND_IN_SECONDS` (5) after they were computed, or at
    the end of the compiled call that computed them, and before the model is saved. The callback can
    be copied and pickled: before training it contains only its arguments.

    A killed training with Keras' `BackupAndRestore` continues if the same command is run with the
    run's id: from the step of the checkpoint, or from step 1 if there is none. The run's tags
    `superseded…` say which points no longer count. Put `BackupAndRestore` behind this callback, so
    that the values of an epoch are recorded before its checkpoint.

    Example:
        ```python
        with mka.track("baseline"):
            model.fit(x, y, validation_data=(x_val, y_val), callbacks=[mka.MlflowLogger()])
        ```

    Args:
        run: The run to write to, or its id. Default: the innermost `track`, else MLflow's active
            run, else a run of its own that ends with the training.
        class_names: Names of the classes: a metric with a value for each of them, such as
            `F1Score(average=None)`, becomes the curves `val/f1/<class>`; without names `val/f1/0`,
            `val/f1/1`, ….
        flops: Whether to record the floating-point operations of a step of `fit` (forward,
            backward, metrics and optimizer) as `train/step_flops`, and `train/flops_per_second` in
            each epoch. For this the step is traced again at the end of the first epoch, which takes
            as long as before the first step.

    Raises:
        ValueError: If two classes have the same name.
    """

    def __init__(
        self,
        run: Run | str | None = None,
        *,
        class_names: Sequence[str] = (),
        flops: bool = False,
    ) -> None:
        super().__init__(run)
        if len(set(class_names)) < len(class_names):
            raise ValueError(
                f"Received class_names={list(class_names)!r}; expected names that differ."
            )
        self._class_names = tuple(map(str, class_names))
        self._flops = bool(flops)
        self._record: _Record | None = None

    @keeps_random_state()
    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Joins the training: from here on each step writes its row."""
        if not self._stands_aside():
            self.leave()  # nobody may have seen the last training raise
        around = training_around_own(self.model)
        if around is not None and around in _run_of:
            return  # its steps are steps of that training, which is on record
        keys = EpochKeys(self.model, self._class_names)
        self._record = _Record(self._run_id, self.model, self.params, keys, flops=self._flops)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Starts the clock; a training that goes on from a checkpoint finds its place."""
        if self._record is not None:
            self._record.epoch_begin(epoch)

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Reads the table when it is time to.

        At the begin and not at the end of a batch: overriding `on_train_batch_end` would make Keras
        give up dispatching its own callbacks off the training thread.
        """
        if self._record is not None:
            self._record.session.steps_begin(steps_per_execution(self.model), batch)

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Reads what the epoch's training left: validation is not part of its pace."""
        if self._record is not None:
            self._record.session.read()

    def on_test_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Learns what in the epoch's logs is of its validation."""
        if self._record is not None:
            self._record.keys.see_validation(logs or {})

    @keeps_random_state()
    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Logs the epoch's values at the step on which it ended."""
        if self._record is not None:
            self._record.epoch_end(epoch, logs or {})

    @keeps_random_state()
    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Restores the model. The run continues until `fit` returns."""
        if self._record is not None:
            record, self._record = self._record, None
            record.finish()

    def leave(self) -> None:
        """Ends the record of a training that raised, which never came to `on_train_end`.

        The training sees to it where it can, and so do the end of a `track` and of the process.
        """
        if self._record is not None:
            record, self._record = self._record, None
            record.end(InterruptedTrainingError())

    def _stands_aside(self) -> bool:
        """Keeps the record of a training in whose callbacks this one is given to another `fit`."""
        record, inner = self._record, training_of(self.model)
        if record is None or inner is None or not record.is_around(inner):
            return False

        def take_up_again(_: BaseException | None) -> None:
            self._record = record
            self.set_model(record.model)
            self.set_params(record.fit_params)

        inner.at_end(take_up_again)
        self._record = None
        return True


class InterruptedTrainingError(RuntimeError):
    """Stands for whatever ended a training without a word."""

    def __init__(self) -> None:
        super().__init__("The training ended without on_train_end: it was interrupted.")


class _Record:
    """One training on its way into a run."""

    def __init__(
        self,
        run_id: str | None,
        model: Any,
        fit_params: Mapping[str, Any] | None,
        keys: EpochKeys,
        *,
        flops: bool = False,
    ) -> None:
        self.keys = keys
        self._training = training_of(model)
        self._undo: list[Callable[[], object]] = []
        self._own: AbstractContextManager[Run] | None = None
        self._let_go: Callable[..., None] | None = None
        self._ended = False
        self.model = model
        self.fit_params = fit_params
        self._arguments = {} if self._training is None else self._training.arguments
        # None in a CallbackList of the user's own that was given none.
        self._fit_settings = fit_settings(self._arguments, fit_params or {})
        self._params: dict[str, object] = dict(flatten({"fit": self._fit_settings}))
        self._settings: dict[str, object] = {}
        self._described: dict[str, Any] = {}
        self._recorded: set[str] = set()
        self._directed: set[str] = set()
        self._directions: dict[str, str] = {}
        self._describing = Fence(f"Recording all settings of {model.name}", tries_again=True)
        self._said: set[str] = set()
        self._resumed = False
        self._late: tuple[int, Mapping[str, Any], set[str]] | None = None
        try:
            self.run = self._open(run_id, model)
            self._file_suffix = self.run.internals.count_up("trainings")
            self.session = join_session(model, token=fit_params)
            self.session.subscribe(self._receive)
            self._flops = StepFlops(self.session) if flops else None
            # The end of a `track` sees to it where nobody knows of the training's own.
            self._undo.append(self.run.on_exit(self._leave_session))
        except BaseException as error:
            self._close(error)
            raise

    def _open(self, run_id: str | None, model: Any) -> Run:
        around = training_around(model)
        if around is not None and (session := session_of(around.model)) is not None:
            session.read()  # steps are numbered in the order in which they were made
        run = attach_run(run_id) if run_id is not None else current_run()
        own: AbstractContextManager[Run] | None = None
        if run is None:
            own = track()
        elif run_id is None and around is not None and _run_of.get(around) == run.run_id:
            own = run.child(model.name)  # another model has curves of its own
        if own is not None:
            run, self._own = own.__enter__(), own
        assert run is not None
        if self._training is not None:
            _run_of[self._training] = run.run_id
            self._undo.append(self._training.at_end(self.end))
        if self._own is None:
            terminated = raises_terminated()
            terminated.__enter__()
            self._undo.append(lambda: terminated.__exit__(None, None, None))
            self._let_go = run.internals.writer.hold()
        return run

    def is_around(self, inner: Training) -> bool:
        """Whether `inner` is a `fit` that a callback of the training on this record calls."""
        training = self._training
        return (
            training is not None
            and training is not inner
            and training.is_under_way
            and training.is_of_this_thread
        )

    def epoch_begin(self, epoch: int) -> None:
        self._log_late()
        self.session.follow()
        if not self._resumed:
            self._resumed = True
            counted = self.session.batches_counted()
            self.run.resume_after(epoch, counted)
            self.run.set_tags(self.run.axis.offset_tags(counted, begins=True))
        self._began, self._seconds = time.monotonic(), 0.0
        self._batches = self._examples = 0
        self._sizes: Counter[int] = Counter()

    def epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        self.session.read()
        values = self.keys.values(logs)
        values["train/epoch"] = epoch + 1
        if self._batches:
            values["train/step_ms"] = 1000 * self._seconds / self._batches
        if self._examples:
            values["train/examples_per_second"] = self._examples / self._seconds
        if self._flops is not None and self._examples:
            values = self._flops_of_epoch() | values  # a metric of this name is the user's own
        self.run.log_metrics(values, step=self.run.axis.batches)
        self._note_directions(values)
        self._late = self.run.axis.batches, logs, set(logs)
        self.run.set_tags(self.run.axis.offset_tags(self.session.batches_counted()))
        self._say_what_is_missing()

    def _flops_of_epoch(self) -> dict[str, float]:
        if self._flops is None:
            return {}
        try:
            step = self._flops.of_largest(self._sizes)
            each_second = self._flops.of_epoch(self._sizes) / self._seconds
        except Exception as error:  # whatever a step of the user's own does when it is traced
            self._flops = None
            self._say(f"train/flops_per_second is not recorded: {error}")
            return {}
        if step.uncounted and "flops" not in self._said:
            self._said.add("flops")
            self.run.set_tags({"flops.step": f"step_flops is without {step.left_out}."})
        return {"train/step_flops": step.total, "train/flops_per_second": each_second}

    def _note_directions(self, keys: Iterable[str]) -> None:
        if new := {key for key in keys if key.startswith(("train/", "val/"))} - self._directed:
            self._directed |= new
            metrics = getattr(self.model, "metrics", [])
            modes = {key: mode_of_name(key.partition("/")[2], metrics) for key in new - PACE}
            self._directions |= {key: mode for key, mode in modes.items() if mode}
            self.run.set_tags({f"{DIRECTIONS}fit": note(self._directions)})

    def finish(self) -> None:
        """Ends the record of the steps; other callbacks may have more to do until `fit` returns."""
        if self._training is None:  # nobody knows when that is
            self.end(None)
            return
        self._log_late()
        self._leave_session()

    @keeps_random_state()
    def end(self, error: BaseException | None) -> None:
        """Ends the record, once.

        Args:
            error: What ended the training, if it did not come to its end.
        """
        if self._ended:
            return
        self._ended = True
        try:
            self._log_late()
            self._leave_session()
            if error is None and (best := best_of(self._arguments.get("callbacks"))):
                again = self.run.internals.counts["trainings"] > 1
                self.run.log_metrics(best, step=self.run.axis.batches if again else 0)
        finally:
            self._close(error)

    def _close(self, error: BaseException | None) -> None:
        while self._undo:
            with Fence("What ends with a record", tries_again=True)():
                self._undo.pop()()
        if self._own is not None:
            traceback = None if error is None else error.__traceback__
            self._own.__exit__(None if error is None else type(error), error, traceback)
        elif self._let_go is not None:
            if not self.run.internals.is_held:
                # Somebody else's run, which may end any moment: it has by then what it was handed.
                self.run.internals.writer.settle(grace_left(GRACE_SECONDS))
            self._let_go(error)

    def _log_late(self) -> None:
        """Logs what callbacks behind this one have added to the logs of the last epoch."""
        if self._late is None:
            return
        step, logs, known = self._late
        self._late = None
        added = {name: value for name, value in logs.items() if name not in known}
        if added:
            self.run.log_metrics(self.keys.values(added), step=step)

    def _leave_session(self) -> None:
        self.session.unsubscribe(self._receive)

    def _receive(self, readings: Readings) -> None:
        run = self.run
        steps = run.axis.steps_of(readings, readings.batches)
        self._seconds = readings.until - self._began
        self._batches += readings.batches
        self._examples += int(readings.examples.sum())
        self._sizes.update(readings.examples.astype(int).tolist())
        columns = dict(readings.columns)
        self.keys.see_steps(columns)
        for key, event in readings.events.items():
            count = run.internals.counts[key] + np.cumsum(event)
            run.internals.counts[key] = int(count[-1])
            columns[key] = np.ma.masked_array(count.astype(float), mask=~event)
        run.log_series(columns, steps=steps, timestamps_ms=(1000 * readings.times).astype(np.int64))
        if not self._recorded:
            self._describe(self._log_model)
        self._recorded |= {key for key, column in columns.items() if np.ma.count(column)}
        optimizers = self.session.optimizers
        new = [
            name
            for name in sorted(readings.updated)
            if name in optimizers and self._described.get(name) is not optimizers[name]
        ]
        if new:
            self._describe(self._log_optimizers, new)

    def _describe(self, describe: Callable[..., None], *arguments: Any) -> None:
        """Whatever a model or optimizer of the user's own answers, its training goes on."""
        with self._describing(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a lambda in a schedule, say: nothing is saved
            describe(*arguments)

    def _log_model(self) -> None:
        # Only now: a model that builds itself in its first step has no weights before.
        self._params |= flatten({"model": model_settings(self.model)})
        self.run.log_params(self._params)
        self.run.set_tags(environment_tags(self.model))
        self.run.log_text(model_summary(self.model), f"model_summary{self._file_suffix}.txt")

    def _log_optimizers(self, names: Sequence[str]) -> None:
        """Logs the settings of those that trained: one that a model merely holds has not."""
        optimizers = self.session.optimizers
        self._described |= {name: optimizers[name] for name in names}
        self._settings |= {name: optimizer_settings(optimizers[name]) for name in names}
        single = len(optimizers) == 1
        settings = next(iter(self._settings.values())) if single else self._settings
        self._params |= flatten({"optimizer": settings})
        self.run.log_params(self._params)
        self.run.log_dict(
            {"fit": self._fit_settings, "optimizer": settings},
            f"config{self._file_suffix}.json",
        )

    def _say_what_is_missing(self) -> None:
        if self.session.is_remote:  # it was said at its begin
            return
        if self._batches and not self._described:
            looked_at = ", ".join(self.session.optimizers) or "none"
            advice = (
                "Make the one that trains it an attribute of the model."
                if self.session.in_fit
                else "If the step was traced before the loop began, use loop.function(step)."
            )
            self._say(
                f"No optimizer of {self.model.name} made an update that could be seen (looked at: "
                f"{looked_at}), so gradient norms and learning rates are not recorded. {advice}"
            )
        if self._batches and self.session.in_fit and "batch/loss" not in self._recorded:
            self._say(
                f"The train_step of {self.model.name} neither calls self.compute_loss nor returns "
                "a loss, so batch/loss is not recorded; the epoch's train/loss is."
            )

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            _logger.warning(message)

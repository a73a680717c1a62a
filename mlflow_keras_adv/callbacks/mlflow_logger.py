"""MlflowLogger: a training's record, by the conventions of this package, in an MLflow run."""

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from mlflow_keras_adv.callbacks.either_keras import EitherKeras
from mlflow_keras_adv.callbacks.epoch_keys import EpochKeys
from mlflow_keras_adv.tracking.names import flatten
from mlflow_keras_adv.tracking.run import Run, attach_run, current_run, track
from mlflow_keras_adv.training.batches import steps_per_execution
from mlflow_keras_adv.training.readings import Readings
from mlflow_keras_adv.training.session import join_session
from mlflow_keras_adv.training.settings import (
    environment_tags,
    model_settings,
    model_summary,
    optimizer_settings,
)

_logger = logging.getLogger(__name__)


class MlflowLogger(EitherKeras):
    """Records every step and epoch of a training in an MLflow run.

    One axis for all curves: the number of training batches consumed so far in the run. At each
    step: `batch/loss`, `gradient/norm`, `gradient/norm_clipped` (where gradients are clipped),
    `optimizer/learning_rate` and, in mixed precision, `optimizer/loss_scale`. At the end of each
    epoch: `train/…` and `val/…` under Keras' metric names, and the pace. Once: settings as params,
    library versions as tags, the model's summary and the whole configuration as artifacts.

    The values are written inside the compiled step and read in bulk; training never waits for the
    store. They are handed to the run at most `HAND_IN_SECONDS` (5) after they were produced, or at
    the end of the call of the compiled step that produced them, and before the model is saved. The
    callback may be copied and pickled: before training it holds only its argument.

    A training that was killed goes on by the same command with the run's id, if it has Keras'
    `BackupAndRestore`: from the step of the checkpoint, or anew from step 1 if there is none. The
    run's tags `superseded…` say which points no longer count. Put `BackupAndRestore` behind this
    callback, so that an epoch's values are on record before its checkpoint.

    Example:
        ```python
        with mka.track("baseline"):
            model.fit(x, y, validation_data=(x_val, y_val), callbacks=[mka.MlflowLogger()])
        ```

    Args:
        run: The run to write to, or its id. Default: the innermost `track`, else MLflow's active
            run, else a run of its own that ends with the training.
        class_names: Names of the classes: a metric with a value for each of them, as
            `F1Score(average=None)`, becomes the curves `val/f1/<class>`; without names `val/f1/0`,
            `val/f1/1`, ….

    Raises:
        ValueError: If two classes have the same name.
    """

    def __init__(self, run: Run | str | None = None, *, class_names: Sequence[str] = ()) -> None:
        super().__init__()
        if len(set(class_names)) < len(class_names):
            raise ValueError(
                f"Received class_names={list(class_names)!r}; expected names that differ."
            )
        self._run_id = run.run_id if isinstance(run, Run) else run
        self._class_names = tuple(map(str, class_names))
        self._record: _Record | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy starts afresh: no run, no session, no model.
        return functools.partial(type(self), self._run_id, class_names=self._class_names), ()

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Joins the training: from here on each step writes its row."""
        self.leave()  # the last training may have raised, and no `track` has seen it
        keys = EpochKeys(self.model, self._class_names)
        self._record = _Record(self._run_id, self.model, self.params, keys)

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

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Logs the epoch's values at the step on which it ended."""
        if self._record is not None:
            self._record.epoch_end(epoch, logs or {})

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Leaves the model as it was found, and ends the run if it opened one."""
        if self._record is not None:
            self._record.end(interrupted=False)
            self._record = None

    def leave(self) -> None:
        """Ends the record of a training that raised, which never came to `on_train_end`.

        The end of a `track` and the begin of the next training see to it as well.
        """
        if self._record is not None:
            self._record.end(interrupted=True)
            self._record = None


class _Record:
    """One training on its way into a run."""

    def __init__(
        self, run_id: str | None, model: Any, fit_params: Mapping[str, Any], keys: EpochKeys
    ) -> None:
        run = attach_run(run_id) if run_id is not None else current_run()
        self._own: AbstractContextManager[Run] | None = None
        if run is None:
            self._own = track()
            run = self._own.__enter__()
        self.run = run
        self.keys = keys
        run.counts["trainings"] += 1
        self._file_suffix = f"-{n}" if (n := run.counts["trainings"]) > 1 else ""
        self._model = model
        self._params: dict[str, object] = {"fit.epochs": fit_params.get("epochs")}
        self._optimizers: dict[str, object] = {}
        self._recorded: set[str] = set()
        self._said: set[str] = set()
        self._resumed = False
        self.session = join_session(model, token=fit_params)
        self.session.subscribe(self._receive)
        self._forget_exit = run.on_exit(lambda: self.session.unsubscribe(self._receive))

    def epoch_begin(self, epoch: int) -> None:
        if not self._resumed:
            self._resumed = True
            counted = self.session.batches_counted()
            self.run.resume_after(epoch, counted)
            self.run.set_tags(self.run.axis.offset_tags(counted, begins=True))
        self._began, self._seconds = time.monotonic(), 0.0
        self._batches = self._examples = 0

    def epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        self.session.read()
        values = self.keys.values(logs)
        values["train/epoch"] = epoch + 1
        if self._batches:
            values["train/step_ms"] = 1000 * self._seconds / self._batches
        if self._examples:
            values["train/examples_per_second"] = self._examples / self._seconds
        self.run.log_metrics(values, step=self.run.axis.batches)
        self.run.set_tags(self.run.axis.offset_tags(self.session.batches_counted()))
        self._say_what_is_missing()

    def end(self, *, interrupted: bool) -> None:
        self.session.unsubscribe(self._receive)
        self._forget_exit()
        if self._own is not None:
            own, self._own = self._own, None
            error = RuntimeError("The training ended without on_train_end: it was interrupted.")
            own.__exit__(*((type(error), error, None) if interrupted else (None, None, None)))

    def _receive(self, readings: Readings) -> None:
        run = self.run
        steps = run.axis.steps_of(readings, readings.batches)
        self._seconds = readings.until - self._began
        self._batches += readings.batches
        self._examples += int(readings.examples.sum())
        columns = dict(readings.columns)
        self.keys.see_steps(columns)
        for key, event in readings.events.items():
            count = run.counts[key] + np.cumsum(event)
            run.counts[key] = int(count[-1])
            columns[key] = np.ma.masked_array(count.astype(float), mask=~event)
        run.log_series(columns, steps=steps, timestamps_ms=(1000 * readings.times).astype(np.int64))
        if not self._recorded:
            self._describe(self._log_model)
        self._recorded |= {key for key, column in columns.items() if np.ma.count(column)}
        if new := readings.updated - self._optimizers.keys():
            self._describe(self._log_optimizers, new)

    def _describe(self, describe: Callable[..., None], *arguments: Any) -> None:
        """Whatever a model or optimizer of the user's own answers, its training goes on."""
        try:
            describe(*arguments)
        except Exception as error:
            self._say(f"The settings of {self._model.name} are not fully recorded: {error!r}")

    def _log_model(self) -> None:
        # Only now: a model that builds itself in its first step has no weights before.
        self._params |= flatten({"model": model_settings(self._model)})
        self.run.log_params(self._params)
        self.run.set_tags(environment_tags(self._model))
        self.run.log_text(model_summary(self._model), f"model_summary{self._file_suffix}.txt")

    def _log_optimizers(self, names: frozenset[str]) -> None:
        """Logs the settings of those that trained: one that a model merely holds has not."""
        all_optimizers = self.session.optimizers
        self._optimizers |= {name: optimizer_settings(all_optimizers[name]) for name in names}
        single = len(all_optimizers) == 1
        settings = next(iter(self._optimizers.values())) if single else self._optimizers
        self._params |= flatten({"optimizer": settings})
        self.run.log_params(self._params)
        self.run.log_dict(
            {"fit": {"epochs": self._params["fit.epochs"]}, "optimizer": settings},
            f"config{self._file_suffix}.json",
        )

    def _say_what_is_missing(self) -> None:
        if self._batches and not self._optimizers:
            looked_at = ", ".join(self.session.optimizers) or "none"
            advice = (
                "Make the one that trains it an attribute of the model."
                if self.session.in_fit
                else "If the step was traced before the loop began, use loop.function(step)."
            )
            self._say(
                f"No optimizer of {self._model.name} made an update that could be seen (looked at: "
                f"{looked_at}), so gradient norms and learning rates are not recorded. {advice}"
            )
        if self._batches and self.session.in_fit and "batch/loss" not in self._recorded:
            self._say(
                f"The train_step of {self._model.name} does not call self.compute_loss, so "
                "batch/loss is not recorded; the epoch's train/loss is."
            )

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            _logger.warning(message)

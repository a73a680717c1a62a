"""Opens, fills and ends the runs of trials and of their executions."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from mlflow import MlflowClient

from mlflow_keras_adv.compat.keras_tuner import convert_to_metrics_dict, get_best_step
from mlflow_keras_adv.tracking.directions import TAG as DIRECTIONS
from mlflow_keras_adv.tracking.directions import note
from mlflow_keras_adv.tracking.ending import settle_ended
from mlflow_keras_adv.tracking.outbox import GRACE_SECONDS
from mlflow_keras_adv.tracking.run import Run, begin_again, track
from mlflow_keras_adv.tuner.fits import recorded_fits
from mlflow_keras_adv.tuner.hooks import harmless
from mlflow_keras_adv.tuner.run_ids import open_run, read_run_ids
from mlflow_keras_adv.tuner.trial_table import OWN_PREFIX, active_values, score_of, trial_name

# Largest number of trials that are still being delivered to the store while the next ones run.
TRIALS_ON_THE_WAY = 8


@dataclass
class _Open:
    """A trial under way.

    Attributes:
        trial: Keras Tuner's trial.
        run: Its run.
        stack: The stack that keeps the run open.
        params: The params of the run.
        executions: Executions that have begun.
        folds: Fits that have begun, where each has a run of its own.
        scores: Scores of the executions that have ended.
        error: The exception that it raised.
    """

    trial: Any
    run: Run
    stack: ExitStack
    params: dict[str, object] = field(default_factory=dict)
    executions: int = 0
    folds: int = 0
    scores: list[float] = field(default_factory=list)
    error: BaseException | None = None


class TrialRuns:
    """One run for each trial of this process, nested in the run of the search.

    Args:
        tuner: A tuner of Keras Tuner, or of a subclass.
        parent_run_id: Returns the id of the run of the search.
        nest_fits: Whether each `fit` of a trial has a run of its own.
    """

    def __init__(
        self, tuner: Any, parent_run_id: Callable[[], str], *, nest_fits: bool = False
    ) -> None:
        self._tuner = tuner
        self._parent_run_id = parent_run_id
        self._within = self._fold if nest_fits else nullcontext
        self._open: _Open | None = None

    @harmless
    def begin(self, trial: Any) -> None:
        """Opens the run of a trial, or that of its earlier attempt again."""
        self.end(trial=None)
        folder = self._tuner.get_trial_dir(trial.trial_id)
        if read_run_ids(folder):
            settle_ended(GRACE_SECONDS)  # the end of its earlier attempt comes before this one
        stack = ExitStack()
        new = _nested(trial_name(trial.trial_id), self._parent_run_id())
        run, again = open_run(stack, folder, "trial", new)
        self._open = _Open(trial, run, stack)
        tags: dict[str, object] = {
            "tuner.trial_id": trial.trial_id,
            "tuner.worker": self._tuner.tuner_id,
        }
        run.set_tags(tags | self._lineage(trial))
        self._open.params = self._params(trial)
        run.log_params(self._open.params)
        if again:
            _begin_again(run)

    @contextmanager
    def running(self, trial: Any) -> Iterator[None]:
        """A context for the work of a trial: records every `fit`, and notes an exception."""
        if self._open is None or self._open.trial.trial_id != trial.trial_id:
            self.begin(trial)  # a `search` of the user's own has no on_trial_begin
        with nullcontext() if self._open is None else recorded_fits(self._within):
            try:
                yield
            except BaseException as error:
                if self._open is not None:
                    self._open.error = error
                raise

    def execution(self, work: Callable[[], Any]) -> Any:
        """A context for one of several executions of a trial, recorded in a nested run."""
        stack, run = self._begin_execution() or (None, None)
        try:
            results = work()
        except BaseException as error:
            _leave(stack, error)
            raise
        self._end_execution(run, results)
        _leave(stack, None)
        return results

    @contextmanager
    def _fold(self) -> Iterator[None]:
        """A context for one of several fits of a trial, recorded in a nested run."""
        stack = self._begin_fold()
        try:
            yield
        except BaseException as error:
            _leave(stack, error)
            raise
        _leave(stack, None)

    @harmless
    def _begin_fold(self) -> ExitStack | None:
        if self._open is None:
            return None
        number, self._open.folds = self._open.folds, self._open.folds + 1
        stack, _ = self._nested_run(f"fold-{number}", {"tuner.fold": number})
        return stack

    @harmless
    def end(self, trial: Any) -> None:
        """Ends the run of a trial with the status that the oracle gives it.

        Args:
            trial: The tuner's trial, with the hyperparameters found while building. None ends a run
                that was left open.
        """
        if self._open is None:
            return
        ended, self._open = self._open, None
        error = ended.error
        try:
            if trial is not None:
                final = self._tuner.oracle.get_trial(trial.trial_id)
                error = error or _error_of(final)
                params = self._params(trial)
                # A build may have met some that were not known before.
                ended.run.log_params(
                    {name: v for name, v in params.items() if ended.params.get(name) != v}
                )
                ended.run.log_metrics(_results(final, ended.scores))
                direction = self._tuner.oracle.objective.direction
                ended.run.set_tags({f"{DIRECTIONS}trial": note({"trial/score": direction})})
        finally:
            _leave(ended.stack, error)
            settle_ended(GRACE_SECONDS, but=TRIALS_ON_THE_WAY)

    def abandon(self, error: BaseException | None) -> None:
        """Ends the run of the trial that was running when the search ended.

        Args:
            error: The exception that ended the search.
        """
        if self._open is not None:
            self._open.error = self._open.error or error
            self.end(trial=None)

    @harmless
    def _begin_execution(self) -> tuple[ExitStack, Run] | None:
        if self._open is None:
            return None
        number, self._open.executions = self._open.executions, self._open.executions + 1
        return self._nested_run(f"execution-{number}", {"tuner.execution": number})

    def _nested_run(self, name: str, tags: Mapping[str, object]) -> tuple[ExitStack, Run]:
        """A run nested in that of the open trial."""
        assert self._open is not None
        folder = self._tuner.get_trial_dir(self._open.trial.trial_id)
        stack = ExitStack()
        run, again = open_run(stack, folder, name, _nested(name, self._open.run.run_id))
        run.set_tags({"tuner.trial_id": self._open.trial.trial_id, **tags})
        if again:
            _begin_again(run)
        return stack, run

    @harmless
    def _end_execution(self, run: Run | None, results: Any) -> None:
        if self._open is None or run is None:
            return
        objective = self._tuner.oracle.objective
        score = float(convert_to_metrics_dict(results, objective)[objective.name])
        self._open.scores.append(score)
        best_step = get_best_step(results, objective)
        run.log_metrics({"trial/score": score, "trial/best_step": best_step})

    def _params(self, trial: Any) -> dict[str, object]:
        values = trial.hyperparameters.values.items()
        own = {name.replace("/", "."): v for name, v in values if name.startswith(OWN_PREFIX)}
        own.pop("tuner.trial_id", None)  # the trial it continues: lineage
        return active_values(trial.hyperparameters) | own

    def _lineage(self, trial: Any) -> dict[str, object]:
        """In Hyperband, the trial whose weights this one continues with."""
        continued = trial.hyperparameters.values.get("tuner/trial_id")
        if continued is None:
            return {}
        run_id = read_run_ids(self._tuner.get_trial_dir(continued)).get("trial", "unknown")
        return {"tuner.continues": trial_name(continued), "tuner.continues_run_id": run_id}


def _nested(name: str, parent_run_id: str) -> AbstractContextManager[Run]:
    """A new run; the next trial does not wait for its delivery."""
    return track(name, parent_run_id=parent_run_id, await_delivery=False)


def _begin_again(run: Run) -> None:
    """Prepares the run of a trial that was killed or failed for another attempt."""
    client = MlflowClient()
    tags = client.get_run(run.run_id).data.tags
    run.set_tags({"tuner.attempt": int(tags.get("tuner.attempt", 1)) + 1})
    begin_again(run)
    if "error" in tags:  # of the attempt before
        client.delete_tag(run.run_id, "error")


def _results(trial: Any, scores: list[float]) -> dict[str, float]:
    names = trial.metrics.metrics
    # A metric that is called as ours are is not the score, unless it is the objective.
    ours = ("score", "best_step", "score_std")
    found = {
        f"trial/{'reported/' if name in ours else ''}{name}": trial.metrics.get_last_value(name)
        for name in names
    }
    values = {key: value for key, value in found.items() if value is not None}
    if (score := score_of(trial)) is not None:
        values |= {"trial/score": score, "trial/best_step": trial.best_step}
    if len(scores) > 1:
        values["trial/score_std"] = statistics.stdev(scores)
    return values


def _error_of(trial: Any) -> BaseException | None:
    """The exception that ends the run with the status that Keras Tuner gave the trial."""
    if trial.status == "COMPLETED":
        return None
    if trial.status == "STOPPED":
        return KeyboardInterrupt("The oracle stopped the trial.")
    if trial.score is not None and math.isnan(trial.score):
        return ValueError("The score is NaN, which Keras Tuner counts as a failure.")
    return RuntimeError(trial.message or f"Keras Tuner calls the trial {trial.status}.")


@harmless
def _leave(stack: ExitStack | None, error: BaseException | None) -> None:
    if stack is not None:
        trace = error.__traceback__ if error else None
        stack.__exit__(type(error) if error else None, error, trace)

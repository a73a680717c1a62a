"""track_search(): a search of Keras Tuner as a run, each of its trials as a run nested in it."""

import functools
import logging
import time
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

from keras_tuner import Oracle
from keras_tuner.engine.base_tuner import BaseTuner

from mlflow_keras_adv.compat.keras_tuner import ONE_EXECUTION
from mlflow_keras_adv.errors import expect
from mlflow_keras_adv.replacing import Replacement
from mlflow_keras_adv.tracking.ending import settle_ended
from mlflow_keras_adv.tracking.outbox import GRACE_SECONDS
from mlflow_keras_adv.tracking.run import track
from mlflow_keras_adv.tuner.hooks import harmless, hooked
from mlflow_keras_adv.tuner.run_ids import note, open_run, read_run_ids
from mlflow_keras_adv.tuner.search_record import SearchRecord
from mlflow_keras_adv.tuner.trial_table import score_for, score_of
from mlflow_keras_adv.tuner.trials import TrialRuns

# A worker of another machine sees the chief's file when their shared folder shows it.
FOLDER_SECONDS = 60.0

_logger = logging.getLogger(__name__)

_Tuner = TypeVar("_Tuner", bound=BaseTuner)
_searching: set[int] = set()

_enabled = False
# The `search` of all tuners as it was, and ours.
_replaced: Replacement | None = None


def track_search(
    tuner: _Tuner,
    *,
    name: str | None = None,
    best_model_example: Any = None,
    nest_fits: bool = False,
) -> _Tuner:
    """Records every `search` of a tuner: a run for the search, and a nested run for each trial.

    The run of the search is nested in the active run, if there is one. It holds the settings of the
    tuner and the search space as params, the best trial so far as description and tag `winner`, and
    the metrics `search/score` and `search/best_score` over the trials that ended. The table
    `trials.json`, the figures `optimization_history.png`, `parallel_coordinates.png` and
    `hyperparameter_importance.png`, and `best_hyperparameters.json` are written at the end, and
    before only so often that they take 1 % of the time.

    A trial is `trial-007`, in the order of creation; the tag `tuner.trial_id` is Keras Tuner's own
    id. It holds the active hyperparameters as params, the curves of every `fit` in it (as
    `MlflowLogger` records them), and `trial/score`, `trial/best_step` and what else was reported.
    FINISHED is a completed trial, FAILED one that Keras Tuner calls failed or invalid (with its
    traceback), KILLED one that was stopped. With `executions_per_trial` above 1 each execution is a
    run nested in the trial, which has the mean and `trial/score_std`.

    A search that is started again in the folder of an earlier one continues its runs: ids are kept
    in `mlflow_runs.json` of Keras Tuner's folders, and `search_run_id` reads them. With another
    objective it is another search, with a run of its own. In a search by Keras Tuner's chief and
    workers each of these processes calls this function; the folder must be shared, as Keras Tuner
    requires, and must not be overwritten.

    The tuner, its callbacks and its models are left unchanged, except for `search`. An error of the
    recording is logged and the search continues. Trials do not wait for the store: the values of
    one trial are delivered while the next one trains, and `search` returns when all of them are in
    the store, or the store does not answer.

    Args:
        tuner: Any tuner of Keras Tuner, or of a subclass.
        name: Name of the run of the search. Default: the name of the tuner's class.
        best_model_example: A few samples, as `log_model` takes them. With them the model of the
            best trial is logged at the end, as the model `best` of the run of the search.
        nest_fits: Gives each `fit` of a trial a run of its own nested in the trial, `fold-0`,
            `fold-1`, …: for a `run_trial` that cross-validates.

    Returns:
        The tuner. Its `search` raises `UserError`, before the first trial, if the store cannot be
        reached.

    Raises:
        ValueError: It is no tuner.
    """
    if not isinstance(tuner, BaseTuner):
        raise ValueError(
            f"Received {tuner!r}. Expected a tuner of Keras Tuner, such as RandomSearch(...)."
        )
    found = vars(tuner).get("search")
    if getattr(found, "__func__", None) is not None and hasattr(found.__func__, "tracked_by"):
        return tuner

    def search(self: Any, *args: Any, **kwargs: Any) -> Any:
        original = found or types.MethodType(type(self).search, self)
        chosen = name or type(self).__name__
        with _recorded(self, chosen, example=best_model_example, nest_fits=nest_fits):
            return original(*args, **kwargs)

    search.tracked_by = __name__  # type: ignore[attr-defined]
    # Bound, and not a closure: a deep copy of the tuner searches with the copy.
    tuner.search = types.MethodType(search, tuner)
    return tuner


def search_run_id(tuner: BaseTuner) -> str | None:
    """Finds the run of a tuner's search, also if another process has recorded it.

    Args:
        tuner: A tuner of Keras Tuner.

    Returns:
        The id of the run; None if no search was recorded in the tuner's folder.

    Raises:
        TypeError: It is no tuner.
    """
    expect("the tuner", tuner, BaseTuner, "a tuner of Keras Tuner, such as RandomSearch(...)")
    return read_run_ids(tuner.project_dir).get("search")


def record_searches(*, disable: bool = False) -> None:
    """Records every `search` of every tuner, as `track_search` does: a part of `autolog`.

    Args:
        disable: Restore the original `search`.
    """
    global _enabled, _replaced
    _enabled = not disable
    if not disable and _replaced is None:
        original = BaseTuner.search

        @functools.wraps(original)
        def search(self: Any, *args: Any, **kwargs: Any) -> Any:
            with _recorded(self, type(self).__name__) if _enabled else nullcontext():
                return original(self, *args, **kwargs)

        _replaced = Replacement(BaseTuner, "search", search)
        _replaced.begin()
    # Whoever wrapped `search` after us keeps calling ours, which then only passes the call on.
    elif disable and _replaced is not None and _replaced.end():
        _replaced = None


@contextmanager
def _recorded(
    tuner: Any, name: str, *, example: Any = None, nest_fits: bool = False
) -> Iterator[None]:
    if id(tuner) in _searching:  # by an enclosing call
        yield
        return
    with ExitStack() as stack:
        _searching.add(id(tuner))
        stack.callback(_searching.discard, id(tuner))
        if isinstance(tuner.oracle, Oracle):
            # Keras Tuner makes the folder anew when the user asks for that: then the run is new.
            _set_aside_another_objective(tuner)
            inside = ExitStack()
            new = track(name, nested=True)
            run, _ = open_run(inside, tuner.project_dir, "search", new)
            record = SearchRecord(run, tuner, example=example)
            stack.push(lambda _type, error, _traceback: _leave(inside, error or record.failure))
            note(tuner.project_dir, "objective", _objective_of(tuner.oracle))
            stack.callback(settle_ended, GRACE_SECONDS)
            record.begin()
            stack.callback(record.finish)
            stack.enter_context(hooked(tuner.oracle, end_trial=_end_trial(tuner.oracle, record)))
            trials = TrialRuns(tuner, lambda: run.run_id, nest_fits=nest_fits)
        else:  # a worker's client of the oracle, which is in the chief
            stack.callback(settle_ended, GRACE_SECONDS)
            chief = functools.partial(_run_id_of_the_chief, tuner)
            trials = TrialRuns(tuner, chief, nest_fits=nest_fits)
        stack.push(lambda _type, error, _traceback: trials.abandon(error))
        stack.enter_context(hooked(tuner, **_hooks(tuner, trials)))
        yield


def _hooks(tuner: Any, trials: TrialRuns) -> dict[str, Callable[..., Any]]:
    def on_trial_begin(original: Callable[..., Any], trial: Any) -> Any:
        trials.begin(trial)
        return original(trial)

    def run_trial(original: Callable[..., Any], trial: Any, *args: Any, **kwargs: Any) -> Any:
        with trials.running(trial):
            return original(trial, *args, **kwargs)

    def on_trial_end(original: Callable[..., Any], trial: Any) -> Any:
        try:
            result = original(trial)
        except BaseException as error:  # such as too many failures in a row
            trials.abandon(error)
            raise
        trials.end(trial)
        return result

    # Keras Tuner keeps this one for subclasses to override: one call is one execution.
    def build_and_fit(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return trials.execution(lambda: original(*args, **kwargs))

    hooks: dict[str, Callable[..., Any]] = {
        "on_trial_begin": on_trial_begin,
        "run_trial": run_trial,
        "on_trial_end": on_trial_end,
    }
    if getattr(tuner, "executions_per_trial", 1) > 1 and hasattr(tuner, ONE_EXECUTION):
        hooks[ONE_EXECUTION] = build_and_fit
    return hooks


def _leave(inside: ExitStack, error: BaseException | None) -> None:
    """Ends the run of a search; as FAILED also if every trial failed without an exception."""
    trace = error.__traceback__ if error else None
    inside.__exit__(type(error) if error else None, error, trace)


@harmless
def _set_aside_another_objective(tuner: Any) -> None:
    """Keeps the run of a search for another objective in the same folder separate."""
    found, asked = read_run_ids(tuner.project_dir), _objective_of(tuner.oracle)
    if "search" not in found:
        return
    before = found.get("objective")
    if before is None:  # by version 0.1
        scored = (each for each in tuner.oracle.trials.values() if score_of(each) is not None)
        other = any(score_for(tuner.oracle, each) != score_of(each) for each in scored)
        before = "another one" if other else asked
    if before != asked:
        _logger.warning(
            "In %s the objective was %s, and is %s now: the search has a new run, and earlier "
            "trials count there by what they reported of it. Keras Tuner itself goes on with their "
            "old scores; overwrite=True or another project_name lets it begin anew.",
            tuner.project_dir,
            before,
            asked,
        )
        note(tuner.project_dir, "objective", asked, without="search")


def _objective_of(oracle: Oracle) -> str:
    objective = oracle.objective
    several = getattr(objective, "name_to_direction", {objective.name: objective.direction})
    return ", ".join(f"{name} ({several[name]})" for name in sorted(several))


def _end_trial(oracle: Oracle, record: SearchRecord) -> Callable[..., Any]:
    def end_trial(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        finally:
            # Known by its id alone in the form that Keras Tuner keeps for old tuners.
            (trial, *_) = (*args, *kwargs.values())
            known = oracle.trials.get(getattr(trial, "trial_id", trial))
            if known is not None and known.status in ("COMPLETED", "FAILED", "STOPPED"):
                record.trial_ended(known)

    return end_trial


def _run_id_of_the_chief(tuner: Any) -> str:
    deadline = time.monotonic() + FOLDER_SECONDS
    while (run_id := read_run_ids(tuner.project_dir).get("search")) is None:
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"The chief has left no run in {tuner.project_dir}. Let the chief and all workers "
                "share this folder, and let the chief call track_search too."
            )
        time.sleep(0.5)
    return run_id

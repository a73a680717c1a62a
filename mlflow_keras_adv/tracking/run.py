"""track(): which run to write to, and how it ends."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

import mlflow
from mlflow import MlflowClient
from mlflow.entities import RunInfo
from mlflow.environment_variables import MLFLOW_RUN_ID

from mlflow_keras_adv.tracking.axis import EarlierRecord, StepAxis, earlier_record
from mlflow_keras_adv.tracking.block import Block, blocks, holders, runs
from mlflow_keras_adv.tracking.ending import is_active
from mlflow_keras_adv.tracking.opening import open_child, open_run
from mlflow_keras_adv.tracking.outbox import GRACE_SECONDS
from mlflow_keras_adv.tracking.sigterm import holds_back_terminated, raises_terminated
from mlflow_keras_adv.tracking.store import opening_runs
from mlflow_keras_adv.tracking.sync import catching_up
from mlflow_keras_adv.tracking.writer import RunWriter

_logger = logging.getLogger(__name__)


class Run(RunWriter):
    """A run to write to, from any thread. Made by `track`, `current_run` and `attach_run`.

    Args:
        info: The run, as MLflow describes it.
        earlier: What it holds from before.

    Attributes:
        run_id: Id of the run.
        experiment_id: Id of its experiment.
        name: Name of the run.
        axis: The steps of its curves: training batches consumed so far.
        counts: Running counts that go on through several trainings of this run. Loggers keep them.
    """

    def __init__(self, info: RunInfo, earlier: EarlierRecord) -> None:
        super().__init__(
            info.run_id,
            MlflowClient(mlflow.get_tracking_uri()),
            key_tables=earlier.key_tables,
        )
        self.experiment_id: str = info.experiment_id
        self.name: str = info.run_name
        self.axis = StepAxis(earlier)
        self.counts: Counter[str] = Counter(earlier.counts)
        self._at_exit: dict[object, Callable[[], None]] = {}

    def child(
        self,
        name: str,
        *,
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, object] | None = None,
        description: str | None = None,
    ) -> AbstractContextManager["Run"]:
        """Opens a run nested in this one, from any thread.

        Args:
            name: Name of the child; short, and unlike its siblings' from the first letters.
            params: Its parameters.
            tags: Its tags.
            description: Its description, in Markdown.

        Returns:
            What `track` returns, for the child.
        """
        return track(
            name, parent_run_id=self.run_id, params=params, tags=tags, description=description
        )

    def resume_after(self, epochs: int, batches: int | None = None) -> None:
        """Goes back on the axis to a checkpoint, and tags what is superseded.

        MLflow keeps every point; the tag `superseded` says which do not count any more, in the
        words of `StepAxis.back_to_checkpoint`, which also says what the arguments are.
        """
        superseded = self.axis.back_to_checkpoint(epochs, batches)
        if superseded is not None:
            self.counts["resumed"] += 1
            number = self.counts["resumed"]
            self.set_tags({"superseded" if number == 1 else f"superseded.{number}": superseded})

    def on_exit(self, callback: Callable[[], None]) -> Callable[[], object]:
        """Has `callback` called once when the outermost `track` of this run ends.

        Also when it ends by an exception, and before the last values are delivered: the place to
        put back what was changed on a model. A run that no `track` holds never calls it.

        Returns:
            A function that withdraws the callback.
        """
        key = object()
        self._at_exit[key] = callback
        return lambda: self._at_exit.pop(key, None)

    def call_at_exit(self) -> None:
        """Calls what `on_exit` received, the last first; an error in one is logged."""
        while self._at_exit:
            _, callback = self._at_exit.popitem()
            try:
                callback()
            except Exception:
                _logger.exception("Run %s: a callback of on_exit failed.", self.run_id)


@contextmanager
def track(
    name: str | None = None,
    *,
    run_id: str | None = None,
    nested: bool = False,
    parent_run_id: str | None = None,
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, object] | None = None,
    description: str | None = None,
    log_system_metrics: bool = True,
    await_delivery: bool = True,
) -> Iterator[Run]:
    """Opens the run to write to, or adopts it, and ends what it opened with the true status.

    Which run: that of `run_id`; else that of an enclosing `track`; else that of `mlflow run`
    (MLFLOW_RUN_ID, which is consumed, as `mlflow.start_run` does); else the active run of MLflow;
    else a new one in the experiment that MLflow's fluent API would use. With `nested` or
    `parent_run_id` a new one inside another. In the block it is `mlflow.active_run()`.

    A run that was active before, or is held by a `track` already, is adopted: it goes on
    afterwards. Every other run is ended: FINISHED; FAILED after an exception, with the tag `error`
    and the artifact `traceback.txt`; KILLED after Ctrl-C or SIGTERM.

    Where the tracking server does not serve, or MLFLOW_KERAS_ADV_OFFLINE is set, a new run is
    recorded on this machine, and MLflow's tracking URI is that of the offline store until the block
    ends. What a store has not taken `outbox.GRACE_SECONDS` after its last sign of life stays in a
    journal, for `mlflow-keras-adv sync`.

    Args:
        name: Name of a new run; a run that exists keeps its own.
        run_id: A run to continue.
        nested: Open a child of the enclosing run, if there is one.
        parent_run_id: Open a child of this run, in its experiment.
        params: Parameters, nested or flat; see `RunWriter.log_params`.
        tags: Tags.
        description: Description of the run, in Markdown.
        log_system_metrics: Let MLflow record the machine's load, if this run is opened here and is
            not inside another: all runs of a process would show the same. MLflow's first values
            come after its sampling interval of 10 s; a shorter run has none.
        await_delivery: Wait at the end until the store has everything. Without, a run that is ended
            here is delivered beside what follows, and `ending.settle_ended` waits for it.

    Yields:
        The run.

    Raises:
        UserError: If the store cannot be written, or does not know the run.
        ValueError: If both a run to continue and a run to nest in are given.
    """
    if run_id is not None and (nested or parent_run_id is not None):
        raise ValueError(
            f"Received run_id={run_id!r} together with nested={nested} and "
            f"parent_run_id={parent_run_id!r}. A run that exists cannot be nested: give run_id "
            "alone to continue it, or leave it out for a new child."
        )
    with raises_terminated(), catching_up(blocks) as note, ExitStack() as stores:
        if nested and parent_run_id is None:
            enclosing = current_run()
            parent_run_id = enclosing.run_id if enclosing else MLFLOW_RUN_ID.get()
        if parent_run_id is not None:
            block = _enter_child(name, parent_run_id, stores)
        else:
            block = _enter(name, run_id, log_system_metrics, stores)
        run = block.run
        error: BaseException | None = None
        try:
            run.log_params(params or {})
            run.set_tags(tags or {})
            if description is not None:
                run.describe(description)
            yield run
        except BaseException as raised:
            error = raised
            raise
        finally:
            with holds_back_terminated():
                note(block.leave(error, GRACE_SECONDS if await_delivery else None))


def current_run() -> Run | None:
    """The run that this thread is in: the innermost that `track` or MLflow made active.

    For an active run of `mlflow.start_run()` it is the same object each time, so that its step axis
    goes on through several trainings. None where no run is active; another thread's is not seen.
    """
    active = mlflow.active_run()
    if active is not None:
        return _run_of(active.info)
    return blocks()[-1].run if blocks() else None  # its user called `mlflow.end_run()`


def known_run(run_id: str) -> Run | None:
    """A run by its id, if this process writes to it already."""
    return runs.get(run_id)


def attach_run(run_id: str) -> Run:
    """A run by its id, to write to and not to end.

    Raises:
        UserError: If the store cannot be reached, or does not know the run.
    """
    if run_id in runs:
        return runs[run_id]
    with opening_runs():
        info = MlflowClient().get_run(run_id).info
    return _run_of(info)


def _run_of(info: RunInfo, *, new: bool = False) -> Run:
    if info.run_id not in runs:
        earlier = EarlierRecord() if new else earlier_record(info.run_id, MlflowClient())
        runs.setdefault(info.run_id, Run(info, earlier))
    return runs[info.run_id]


def _enter(
    name: str | None, run_id: str | None, log_system_metrics: bool, stores: ExitStack
) -> Block:
    innermost = current_run()
    if innermost is not None and (
        run_id == innermost.run_id
        or (run_id is None and (innermost.run_id in holders or not MLFLOW_RUN_ID.get()))
    ):
        return Block(innermost, activated=False, opened=False)
    resumed = run_id or MLFLOW_RUN_ID.get()
    is_ours = resumed not in holders and not is_active(resumed)
    info = open_run(
        name,
        run_id=run_id,
        begins=is_ours,
        log_system_metrics=log_system_metrics and is_ours and innermost is None,
        stores=stores,
    )
    return Block(_run_of(info, new=resumed is None), activated=True, opened=is_ours)


def _enter_child(name: str | None, parent_run_id: str, stores: ExitStack) -> Block:
    parent = known_run(parent_run_id)
    experiment_id = None
    if parent is not None and parent.tracking_uri == mlflow.get_tracking_uri():
        experiment_id = parent.experiment_id
    child = open_child(name, parent_run_id, experiment_id, stores)
    return Block(_run_of(child, new=True), activated=True, opened=True)

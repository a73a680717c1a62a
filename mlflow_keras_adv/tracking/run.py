"""track(): which run to write to, and how it ends."""

import functools
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from types import NoneType, TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import mlflow
from mlflow import MlflowClient
from mlflow.entities import RunInfo
from mlflow.environment_variables import MLFLOW_RUN_ID

from mlflow_keras_adv.compat.mlflow import client_of
from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.durable.block import durable_block
from mlflow_keras_adv.errors import UserError, expect
from mlflow_keras_adv.ranks import say_who_writes, this_rank
from mlflow_keras_adv.tracking import active, offline
from mlflow_keras_adv.tracking.addresses import run_page, say_where
from mlflow_keras_adv.tracking.axis import EarlierRecord, StepAxis, earlier_record
from mlflow_keras_adv.tracking.durable_address import configured_uri
from mlflow_keras_adv.tracking.ending import end, settle_ended
from mlflow_keras_adv.tracking.journal import is_ended_by_another
from mlflow_keras_adv.tracking.opening import open_child, open_run
from mlflow_keras_adv.tracking.outbox import GRACE_SECONDS
from mlflow_keras_adv.tracking.paths import journals_folder
from mlflow_keras_adv.tracking.pending import Receipt
from mlflow_keras_adv.tracking.process_end import Stage, at
from mlflow_keras_adv.tracking.quiet import QuietWriter, quiet_run_info
from mlflow_keras_adv.tracking.sigterm import holds_back_terminated, raises_terminated
from mlflow_keras_adv.tracking.store import store_errors_for_users
from mlflow_keras_adv.tracking.sync import catch_up
from mlflow_keras_adv.tracking.system_metrics import watch_machine
from mlflow_keras_adv.tracking.texts import safe
from mlflow_keras_adv.tracking.writer import RunWriter, open_writers

_logger = logging.getLogger(__name__)
_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")
_Function = TypeVar("_Function", bound=Callable[..., Any])


class Internals:
    """What rooms of this package need of a run, and its user does not.

    Args:
        run_id: The run.
        earlier: What it holds from before.

    Attributes:
        writer: What delivers all that is handed in.
        counts: Running counts that go on through several trainings of this run. Loggers keep them.
        charts: Where MLflow draws the runs that are nested in it, if that was prepared; see
            `comparison.view.view_address`. Said when the run ends.
        pid: Id of the process that made this object; a forked child has it too, and ends no run.
    """

    def __init__(self, run_id: str, earlier: EarlierRecord) -> None:
        self.pid = pid = os.getpid()
        self.writer: RunWriter
        if this_rank().is_chief:
            offline_here = offline.waits_here(run_id)
            self.writer = RunWriter(
                run_id,
                offline.offline_client() if offline_here else client_of(configured_uri()),
                in_use=lambda: pid == os.getpid() and active.is_active(run_id),
                key_tables=earlier.key_tables,
            )
        else:
            self.writer = QuietWriter(run_id, configured_uri())
        self.counts: Counter[str] = Counter(earlier.counts)
        self.charts: str | None = None
        self._at_exit: dict[object, Callable[[], None]] = {}

    @property
    def is_held(self) -> bool:
        """Whether a block of `track` is around, which sees to the delivery."""
        return self.writer.run_id in _holders

    def count_up(self, name: str) -> str:
        """Counts one more; what sets its files apart: nothing of the first, then "-2", "-3"."""
        self.counts[name] += 1
        number = self.counts[name]
        return f"-{number}" if number > 1 else ""

    def at_exit(self, callback: Callable[[], None]) -> Callable[[], object]:
        """As `Run.on_exit`."""
        key = object()
        self._at_exit[key] = callback
        return lambda: self._at_exit.pop(key, None)

    def call_at_exit(self) -> None:
        """Calls what `at_exit` received, the last first; an error in one is logged."""
        while self._at_exit:
            _, callback = self._at_exit.popitem()
            try:
                callback()
            except Exception:
                _logger.exception("Run %s: a callback of on_exit failed.", self.writer.run_id)


def _as_by_its_writer(
    method: Callable[Concatenate[RunWriter, _Arguments], _Answer],
) -> "Callable[Concatenate[Run, _Arguments], _Answer]":
    """A method of `Run` that has its writer do it: its arguments, its docstring."""

    def answer(self: "Run", /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Answer:
        found: Callable[_Arguments, _Answer] = getattr(self.internals.writer, method.__name__)
        return found(*args, **kwargs)

    functools.update_wrapper(answer, method)
    answer.__qualname__ = f"Run.{method.__name__}"
    return answer


class Run:
    """A run to write to, from any thread. Made by `track`, `current_run` and `attach_run`.

    Args:
        info: MLflow's description of the run.
        earlier: Its record from earlier processes.

    Attributes:
        run_id: Id of the run.
        experiment_id: Id of its experiment.
        name: Name of the run.
        artifact_uri: Where its artifacts are.
        axis: The steps of its curves: training batches consumed so far.
        internals: What this package itself needs of it.
    """

    def __init__(self, info: RunInfo, earlier: EarlierRecord) -> None:
        self.run_id: str = info.run_id
        self.experiment_id: str = info.experiment_id
        self.name: str = info.run_name
        self.artifact_uri: str = info.artifact_uri
        self.axis = StepAxis(earlier)
        self.internals = Internals(self.run_id, earlier)

    def __repr__(self) -> str:
        return f"<Run {self.name!r} {self.run_id}>"

    @property
    def tracking_uri(self) -> str:
        """The store that the run is in."""
        return self.internals.writer.tracking_uri

    @property
    def receipt(self) -> Receipt:
        """What became of the metric values that were handed in so far."""
        return self.internals.writer.receipt

    log_metrics = _as_by_its_writer(RunWriter.log_metrics)
    log_series = _as_by_its_writer(RunWriter.log_series)
    log_params = _as_by_its_writer(RunWriter.log_params)
    set_tags = _as_by_its_writer(RunWriter.set_tags)
    describe = _as_by_its_writer(RunWriter.describe)
    log_artifact = _as_by_its_writer(RunWriter.log_artifact)
    log_figure = _as_by_its_writer(RunWriter.log_figure)
    log_image = _as_by_its_writer(RunWriter.log_image)
    log_text = _as_by_its_writer(RunWriter.log_text)
    log_dict = _as_by_its_writer(RunWriter.log_dict)
    log_table = _as_by_its_writer(RunWriter.log_table)
    log_dataset = _as_by_its_writer(RunWriter.log_dataset)
    delete_artifact = _as_by_its_writer(RunWriter.delete_artifact)
    flush = _as_by_its_writer(RunWriter.flush)

    def child(
        self,
        name: str,
        *,
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, object] | None = None,
        description: str | None = None,
    ) -> "Tracked":
        """Opens a run nested in this one, from any thread.

        Args:
            name: Name of the child; short, with distinct first letters among its siblings.
            params: Its parameters.
            tags: Its tags.
            description: Its description, in Markdown.

        Returns:
            A context manager as of `track`, for the child.
        """
        return track(
            name, parent_run_id=self.run_id, params=params, tags=tags, description=description
        )

    def resume_after(self, epochs: int, batches: int | None = None) -> None:
        """Moves the axis back to a checkpoint, from which training continues.

        MLflow keeps every point that was logged after the checkpoint. The tag `superseded` names
        the steps whose points no longer count.

        Args:
            epochs: Number of epochs that were finished at the checkpoint.
            batches: Number of training batches consumed by then. Default: those of that many
                epochs, as recorded by the run.
        """
        self._supersede(self.axis.back_to_checkpoint(epochs, batches))

    def _supersede(self, superseded: str | None) -> None:
        if superseded is not None:
            self.internals.counts["resumed"] += 1
            number = self.internals.counts["resumed"]
            self.set_tags({"superseded" if number == 1 else f"superseded.{number}": superseded})

    def on_exit(self, callback: Callable[[], None]) -> Callable[[], object]:
        """Registers a callback, which is called once when the outermost `track` of this run ends.

        It is also called if that ends by an exception, and before the last values are delivered, so
        that it can restore a model. A run outside of `track` never calls it.

        Args:
            callback: A function without arguments.

        Returns:
            A function that unregisters the callback.
        """
        return self.internals.at_exit(callback)


@dataclass(frozen=True)
class _Wish:
    """The arguments of `track`."""

    name: str | None
    run_id: str | None
    nested: bool
    parent_run_id: str | None
    params: Mapping[str, object] | None
    tags: Mapping[str, object] | None
    description: str | None
    log_system_metrics: bool
    await_delivery: bool


class Tracked(AbstractContextManager[Run]):
    """One block of `track`: what it found, and what it has to undo.

    For one `with`; as a decorator it makes a new one for each call. No generator: one that is
    dropped would be left whenever it is collected, which may be when the interpreter is half gone.
    A block that nobody leaves is ended at the end of the process.

    Args:
        wish: What `track` was asked for.
    """

    def __init__(self, wish: _Wish) -> None:
        self._wish = wish
        self._held = ExitStack()
        self._entered = False
        self._left = False
        self._delivered = False
        self._run: Run | None = None

    def __call__(self, function: _Function) -> _Function:
        """Makes the function one that runs in a block of its own at each call."""

        @functools.wraps(function)
        def tracked(*args: Any, **kwargs: Any) -> Any:
            with Tracked(self._wish):
                return function(*args, **kwargs)

        return tracked  # type: ignore[return-value]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # what copies, pickles and shells look for
            raise AttributeError(name)
        raise AttributeError(
            f"track() is a block, and gives its run to it: `with mka.track(...) as run:`, and then "
            f"`run.{name}`."
        )

    def __enter__(self) -> Run:
        if self._entered:
            raise RuntimeError("A track() serves one `with`. Call track() again for another.")
        self._entered = True
        self._held.enter_context(raises_terminated())
        try:
            run = self._open()
        except BaseException:
            self._left = True
            self._held.close()
            raise
        try:
            run.log_params(self._wish.params or {})
            run.set_tags(self._wish.tags or {})
            if self._wish.description is not None:
                run.describe(self._wish.description)
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return run

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._run is None or self._left:  # the end of the process was earlier
            return
        seconds = GRACE_SECONDS if self._wish.await_delivery else None
        if isinstance(error, GeneratorExit) and threading.current_thread() is not self._thread:
            seconds = None  # collected on any thread, which may be the one to be waited for
        try:
            with holds_back_terminated():
                self._delivered = self._leave(self._run, error, seconds)
        finally:
            self._held.close()

    def _open(self) -> Run:
        wish = self._wish
        if wish.run_id is not None and (wish.nested or wish.parent_run_id is not None):
            raise ValueError(
                f"Received run_id={wish.run_id!r} together with nested={wish.nested} and "
                f"parent_run_id={wish.parent_run_id!r}. A run that exists cannot be nested: give "
                "run_id alone to continue it, or leave it out for a new child."
            )
        parent_run_id = wish.parent_run_id
        if wish.nested and parent_run_id is None:
            enclosing = current_run()
            parent_run_id = enclosing.run_id if enclosing else MLFLOW_RUN_ID.get()
        self._held.callback(self._catch_up)
        if not this_rank().is_chief:
            found = _enter_quietly(wish)
        elif parent_run_id is not None:
            found = _enter_child(wish.name, parent_run_id, self._held)
        else:
            found = _enter(wish.name, wish.run_id, self._held)
        self._run = found.run
        if not offline.is_offline() and not found.run.internals.writer.is_quiet:
            self._held.enter_context(durable_block(found.run.tracking_uri, found.run.run_id))
        self._activated = found.activated
        self._pid, self._thread = os.getpid(), threading.current_thread()
        self._stack = active.stack_of_this_thread()
        self._holds = _holders.setdefault(found.run.run_id, self) is self
        self._ends_run = found.opened and self._holds
        self._outermost = found.outermost
        if self._ends_run:
            found.run.internals.writer.will_end_run()
            if wish.log_system_metrics and found.outermost:
                watch_machine(found.run.internals.writer, resumed=found.resumed)
        _open[self] = None
        _entered.set((*_blocks(), self))
        return found.run

    def end_with_the_process(self, error: BaseException | None) -> None:
        """Ends it if nobody has, and waits for nothing; what it holds beside the run, it keeps.

        Args:
            error: What ended the program.
        """
        if self._run is None or self._left or self._pid != os.getpid():
            return
        cut_off = self._thread is not threading.main_thread() and self._thread.is_alive()
        self._leave(self._run, error, None, status="KILLED" if cut_off else None)

    def _leave(
        self,
        run: Run,
        error: BaseException | None,
        seconds: float | None,
        *,
        status: str | None = None,
    ) -> bool:
        """Ends the block; see `ending.end`."""
        self._left = True
        delivered = True
        try:
            if self._holds:
                run.internals.call_at_exit()
        finally:
            _open.pop(self, None)
            _entered.set(_blocks())
            if self._activated:
                active.deactivate(run.run_id, self._stack)
            if self._holds:
                _holders.pop(run.run_id, None)
            if self._holds and run.internals.writer.is_quiet:
                _runs.pop(run.run_id, None)
            if self._ends_run and self._pid == os.getpid():
                _runs.pop(run.run_id, None)
                delivered = end(run.internals.writer, error, seconds, status=status)
            elif self._holds and seconds is not None:
                delivered = run.flush(seconds)
            if self._holds and self._pid == os.getpid():
                self._say_where(run)
        return delivered

    def _say_where(self, run: Run) -> None:
        """One line, once: nested runs leave it to theirs, an adopted run to who opened it."""
        pages = {}
        if self._ends_run and self._outermost:
            pages[""] = run_page(run.experiment_id, run.run_id)
        if (charts := run.internals.charts) is not None:
            pages["charts"], run.internals.charts = charts, None
        say_where(f"Run {safe(run.name)}", run.tracking_uri, pages, target=offline.target())

    @keeps_random_state()
    def _catch_up(self) -> None:
        if self._delivered and not _blocks():  # a store that does not answer is not asked twice
            catch_up()


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
) -> Tracked:
    """Opens a run, or adopts an open one, and ends the run that it has opened with its status.

    The run is that of `run_id`; else that of an enclosing `track`; else that of `mlflow run`
    (MLFLOW_RUN_ID, which is consumed, as by `mlflow.start_run`); else the active run of MLflow;
    else a new one in the experiment that MLflow's fluent API would use. With `nested` or
    `parent_run_id` it is a new run inside another. In the block it is `mlflow.active_run()`.

    A run that was active before, belongs to an enclosing `track`, or is open in another process of
    this machine is adopted: it continues after the block. Every other run is ended: FINISHED;
    FAILED after an exception, with the tag `error` and the artifact `traceback.txt`; KILLED after
    Ctrl-C or SIGTERM.

    Of several processes that train one model, only the chief does any of this (`TF_CONFIG`, `RANK`
    or `SLURM_PROCID` tell it, or MLFLOW_KERAS_ADV_RANK by hand): in the others the block is quiet,
    and what is handed in to its run is dropped.

    If the tracking server does not answer, or MLFLOW_KERAS_ADV_OFFLINE is set, a new run is
    recorded on this machine, and MLflow's tracking URI is that of the offline store until the block
    ends. Records that the store has not accepted `outbox.GRACE_SECONDS` after its last answer stay
    in a journal, for `mlflow-keras-adv sync`.

    Args:
        name: Name of a new run. An existing run keeps its own, except one that `mlflow run` opened
            without `--run-name`.
        run_id: A run to continue.
        nested: Open a child of the enclosing run, if there is one.
        parent_run_id: Open a child of this run, in its experiment.
        params: Parameters, nested or flat; see `RunWriter.log_params`.
        tags: Tags.
        description: Description of the run, in Markdown.
        log_system_metrics: Let MLflow record its system metrics, if this run is opened here and is
            not inside another: all runs of a process would show the same. MLflow's first values
            come after its sampling interval of 10 s; a shorter run has none.
        await_delivery: Wait at the end until the store has everything. Otherwise a run that is
            ended here is delivered in the background, and `ending.settle_ended` waits for it.

    Returns:
        A context manager for one `with`, which returns the `Run`; also a decorator of a function.

    Raises:
        TypeError: An argument is of the wrong type, such as a run where its id is expected.
        UserError: On entering the block, if the store cannot be written or does not have the run.
        ValueError: On entering the block, if both a run to continue and a run to nest in are given.
    """
    if isinstance(name, Run):
        raise TypeError(
            f"Received {name!r} as name; expected a str. track(run_id=run.run_id) continues a run."
        )
    expect("name", name, (str, NoneType), "a str")
    for what, given in (("run_id", run_id), ("parent_run_id", parent_run_id)):
        expect(what, given, (str, NoneType), "the id of a run, a str: run.run_id")
    for what, values in (("params", params), ("tags", tags)):
        expect(what, values, (Mapping, NoneType), "a dict of values by their names")
    return Tracked(
        _Wish(
            name,
            run_id=run_id,
            nested=nested,
            parent_run_id=parent_run_id,
            params=params,
            tags=tags,
            description=description,
            log_system_metrics=log_system_metrics,
            await_delivery=await_delivery,
        )
    )


def begin_again(run: Run) -> None:
    """Moves the axis back to its begin: an attempt came to nothing, and is repeated in its run.

    The tag `superseded` names its steps, as in `Run.resume_after`.
    """
    run._supersede(run.axis.back_to_begin())


def current_run() -> Run | None:
    """Returns the innermost run that `track` or MLflow made active in this context.

    Each of several asyncio tasks in a thread has its own; a task that is started inside a run
    inherits it. The active run of `mlflow.start_run()` is the same object each time, so that its
    step axis continues through several trainings.

    Returns:
        The run; None if this thread has no active run. Runs of other threads are ignored.
    """
    found = mlflow.active_run()
    if found is not None:
        return _run_of(found.info)
    inside = _blocks()
    return inside[-1]._run if inside else None  # its user called `mlflow.end_run()`


def known_run(run_id: str) -> Run | None:
    """A run by its id, if this process writes to it already."""
    return _runs.get(run_id)


@keeps_random_state()
def attach_run(run_id: str) -> Run:
    """Returns a run by its id, to write to it without ending it.

    Args:
        run_id: Its id.

    Returns:
        The run: the same object each time in a process.

    Raises:
        UserError: The store cannot be reached, or does not have the run.
    """
    if run_id in _runs:
        return _runs[run_id]
    if not this_rank().is_chief:
        say_who_writes(this_rank())
        return _run_of(quiet_run_info(run_id, None), new=True)
    with store_errors_for_users(run_id):
        info = MlflowClient().get_run(run_id).info
    return _run_of(info)


def run_of(run: Run | str | None, caller: str) -> Run:
    """The run that a function was given as `run`.

    Args:
        run: A run, its id, or None for the current run.
        caller: Name of the function, for the message.

    Returns:
        The run.

    Raises:
        TypeError: It is something else.
        UserError: No run is current, or the store does not know the id.
    """
    if isinstance(run, str):
        return attach_run(run)
    expect("run", run, (Run, NoneType), "a Run or its id, by name: run=run")
    found = current_run() if run is None else run
    if found is None:
        raise UserError(
            f"{caller}() needs a run, and none is open here. Call it inside of "
            "`with mka.track(...):`, or pass run=, a Run or its id."
        )
    return found


def id_of(run: Run | str | None, caller: str) -> str:
    """The id of the run that a function was given as `run`; see `run_of`."""
    return run if isinstance(run, str) else run_of(run, caller).run_id


# One Run for each id, so that all count on the same axis; and the block that holds each.
_runs: dict[str, Run] = {}
_holders: dict[str, Tracked] = {}
# The blocks of all threads that nobody has left, innermost last.
_open: dict[Tracked, None] = {}
# Those that this context is in, innermost last; some may have been left in another context.
_entered: ContextVar[tuple[Tracked, ...]] = ContextVar("entered", default=())


def _blocks() -> tuple[Tracked, ...]:
    return tuple(block for block in _entered.get() if not block._left)


@dataclass(frozen=True)
class _Found:
    """The run of a block.

    Attributes:
        run: The run.
        activated: Whether the block made it active in this thread.
        opened: Whether it opened it, and so has to end it.
        resumed: Whether the run was there before.
        outermost: Whether no other run was active.
    """

    run: Run
    activated: bool
    opened: bool
    resumed: bool = False
    outermost: bool = False


@keeps_random_state()
def _run_of(info: RunInfo, *, new: bool = False) -> Run:
    if info.run_id not in _runs:
        earlier = EarlierRecord() if new else earlier_record(info.run_id, MlflowClient())
        run = _runs.setdefault(info.run_id, Run(info, earlier))
        if not run.internals.writer.is_quiet:  # of the one that stays, where threads have made two
            open_writers[info.run_id] = run.internals.writer
    return _runs[info.run_id]


def _enter(name: str | None, run_id: str | None, stores: ExitStack) -> _Found:
    innermost = current_run()
    if innermost is not None and (
        run_id == innermost.run_id
        or (run_id is None and (innermost.run_id in _holders or not MLFLOW_RUN_ID.get()))
    ):
        return _Found(innermost, activated=False, opened=False)
    resumed = run_id or MLFLOW_RUN_ID.get()
    is_ours = resumed not in _holders and not active.is_active(resumed)
    # Another process has it open: that one ends it.
    is_anothers = (
        is_ours and resumed is not None and is_ended_by_another(resumed, journals_folder())
    )
    info = open_run(
        name,
        run_id=run_id,
        begins=is_ours,
        stores=stores,
    )
    run = _run_of(info, new=resumed is None)
    if is_anothers:
        run.internals.writer.will_not_end_run()
    return _Found(
        run,
        activated=True,
        opened=is_ours and not is_anothers,
        resumed=resumed is not None,
        outermost=innermost is None,
    )


def _enter_quietly(wish: _Wish) -> _Found:
    """The run on a rank that writes nothing: nobody is asked for it, and nobody is told of it."""
    say_who_writes(this_rank())
    new = wish.nested or wish.parent_run_id is not None
    innermost = current_run()
    if innermost is not None and not new and wish.run_id in (None, innermost.run_id):
        return _Found(innermost, activated=False, opened=False)
    # Consumed, as it is by the chief: MLflow would take it for a run to go on with, and end it.
    given = None if new else wish.run_id or os.environ.pop(MLFLOW_RUN_ID.name, None)
    run = _run_of(quiet_run_info(given, wish.name), new=True)
    return _Found(run, activated=False, opened=False)


def _enter_child(name: str | None, parent_run_id: str, stores: ExitStack) -> _Found:
    parent = known_run(parent_run_id)
    experiment_id = None
    if parent is not None and parent.tracking_uri == configured_uri():
        experiment_id = parent.experiment_id
    child = open_child(name, parent_run_id, experiment_id, stores)
    return _Found(_run_of(child, new=True), activated=True, opened=True)


@at(Stage.RUNS)
def _end_what_is_open(error: BaseException | None) -> None:
    """Ends the blocks that nobody has left, and runs of `mlflow.start_run()` that were written to.

    MLflow would call the latter FINISHED whatever has happened, and only the innermost of them; and
    wait for minutes for a store that does not answer.
    """
    for block in reversed(list(_open)):
        block.end_with_the_process(error)
    for run_id in active.all_active():
        run = _runs.get(run_id)
        if run is None or run.internals.pid != os.getpid():
            continue
        writer = run.internals.writer
        if writer.was_used and not writer.has_ended:
            del _runs[run_id]
            active.forget(run_id)
            end(writer, error or writer.exited_by, None)
    settle_ended(GRACE_SECONDS)

"""Selects the runs to compare: by id, experiment or search; parents are replaced by their runs."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from mlflow_keras_adv.comparison.texts import safe
from mlflow_keras_adv.errors import UserError, expect
from mlflow_keras_adv.tracking.store import require_store, without_password
from mlflow_keras_adv.tracking.target import pages

# Tag `technique` of the runs that hold comparisons, which are not compared themselves.
TECHNIQUE = "comparison"

_PAGE = 1000
_MOST_NAMES = 20  # of experiments, in a message
# A parent that is not among the runs itself costs a call; its params serve to tell runs apart.
_MAX_PARENTS = 50


@dataclass
class Selection:
    """The runs to compare.

    Attributes:
        runs: The runs, the newest first.
        parents: The parents of nested runs among them, by id; their params apply to those too.
        experiments: Names of the experiments, by id.
        notes: Sentences about the runs that were left out.
    """

    runs: list[Run] = field(default_factory=list)
    parents: dict[str, Run] = field(default_factory=dict)
    experiments: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def params(self, run: Run) -> dict[str, str]:
        """The params of a run and of its parent."""
        parent = self.parents.get(run.data.tags.get(MLFLOW_PARENT_RUN_ID, ""))
        return (dict(parent.data.params) if parent else {}) | dict(run.data.params)


def select_runs(
    run_ids: str | Sequence[str],
    experiments: str | Sequence[str],
    filter_string: str,
    max_runs: int,
    *,
    without: str = "",
) -> Selection:
    """Reads the runs to compare, with few calls.

    Args:
        run_ids: Ids of runs. A run with nested runs is replaced by these.
        experiments: Names or ids of experiments. Runs whose nested runs are selected are left out,
            since they repeat the numbers of a winner, and so are earlier comparisons.
        filter_string: As in `mlflow.search_runs`; applies to the experiments, and to the nested
            runs that replace a run.
        max_runs: Largest number of runs, of which the newest are selected.
        without: Id of a run that is left out: the one to which the comparison is logged.

    Returns:
        The runs, their parents and experiments.

    Raises:
        UserError: Nothing is named or found, the store does not answer, does not have what is
            named, or rejects the filter.
    """
    # A single name is one, not its letters.
    run_ids, experiments = (
        (each,) if isinstance(each, str) else each for each in (run_ids, experiments)
    )
    for each in run_ids:
        expect("a run", each, str, "the id of a run, a str: run.run_id")
    for each in experiments:
        expect("an experiment", each, str, "its name or id, a str")
    if not run_ids and not experiments:
        raise UserError(
            "No run and no experiment is named. Give ids of runs, or the names of experiments."
        )
    client = MlflowClient()
    require_store(client.tracking_uri)
    found: dict[str, Run] = {}
    parents: dict[str, Run] = {}
    for run_id in run_ids:
        run = _run(client, run_id)
        inside = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run.info.run_id}'"
        query = f"{filter_string} AND {inside}" if filter_string else inside
        if nested := _search(client, [run.info.experiment_id], query, max_runs + 1):
            parents[run.info.run_id] = run
            found |= {each.info.run_id: each for each in nested}
        else:
            found[run.info.run_id] = run
    if experiments:
        ids = [_experiment_id(client, name) for name in experiments]
        searched = _search(client, ids, filter_string, None)
        results = [run for run in searched if run.data.tags.get("technique") != TECHNIQUE]
        found |= {run.info.run_id: run for run in results if run.info.run_id != without}
    selection = Selection(parents=parents)
    above = {run.data.tags.get(MLFLOW_PARENT_RUN_ID) for run in found.values()}
    for run in sorted(found.values(), key=lambda run: -(run.info.start_time or 0)):
        if run.info.run_id in above:
            parents[run.info.run_id] = run
        else:
            selection.runs.append(run)
    if not selection.runs:
        raise UserError(
            f"There is no run to compare: runs {list(run_ids)}, experiments {list(experiments)}, "
            f"filter {filter_string!r}. Widen the filter, or name others."
        )
    selection.notes = _notes(selection, max_runs)
    selection.runs = selection.runs[:max_runs]
    nested_in = dict.fromkeys(r.data.tags.get(MLFLOW_PARENT_RUN_ID) for r in selection.runs)
    missing = [each for each in nested_in if each and each not in parents]
    parents |= {run_id: _run(client, run_id) for run_id in missing[:_MAX_PARENTS]}
    for experiment_id in dict.fromkeys(run.info.experiment_id for run in selection.runs):
        selection.experiments[experiment_id] = client.get_experiment(experiment_id).name
    return selection


def _notes(selection: Selection, max_runs: int) -> list[str]:
    notes = []
    if parents := len(selection.parents):
        which = "run stands" if parents == 1 else "runs stand"
        notes.append(f"{parents} parent {which} for the nested runs, which are compared.")
    if len(selection.runs) > max_runs:
        notes.append(f"Of {len(selection.runs)} runs the newest {max_runs} are compared.")
    return notes


def _run(client: MlflowClient, run_id: str) -> Run:
    advice = "The id of a run has 32 hexadecimal digits: it is `run.run_id`."
    with _asking(f"the run {run_id!r}", advice):
        if not re.fullmatch(r"[0-9a-f]{32}", run_id) and client.get_experiment_by_name(run_id):
            raise UserError(
                f"{run_id!r} is an experiment, not the id of a run: "
                f"compare(experiments=[{run_id!r}]), on the command line -e {run_id}."
            )
        return client.get_run(run_id)


def _experiment_id(client: MlflowClient, name: str) -> str:
    with _asking(f"the experiment {name!r}", "`mlflow experiments search` lists names and ids."):
        experiment = client.get_experiment_by_name(name)
        if experiment is None and name.isdecimal():
            experiment = client.get_experiment(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        known = client.search_experiments(max_results=_MOST_NAMES)
    names = ", ".join(repr(safe(each.name, 60)) for each in known) or "none"
    more = ", …" if len(known) == _MOST_NAMES else ""
    raise UserError(f"There is no experiment {name!r}. The store has: {names}{more}.")


def _search(
    client: MlflowClient, experiment_ids: Sequence[str], query: str, at_most: int | None
) -> list[Run]:
    advice = "Expected what `mlflow.search_runs` takes: \"params.lr = '0.01'\"."
    with _asking(f"the filter {query!r}", advice):
        found = []
        for run in _pages(client, experiment_ids, query):
            found.append(run)
            if len(found) == at_most:
                break
        return found


def _pages(client: MlflowClient, experiment_ids: Sequence[str], query: str) -> Iterable[Run]:
    newest = ["attributes.start_time DESC"]
    search = client.search_runs
    return pages(search, list(experiment_ids), query, max_results=_PAGE, order_by=newest)


@contextmanager
def _asking(what: str, advice: str) -> Iterator[None]:
    """Says in one sentence what the store answered."""
    try:
        yield
    except MlflowException as error:
        raise UserError(
            f"The tracking store does not accept {what}: "
            f"{without_password(error.message).rstrip('. ')}. {advice}"
        ) from error

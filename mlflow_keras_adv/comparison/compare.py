"""compare(): any runs side by side, as a table, as a page and as a prepared view of MLflow."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import mlflow
import pandas as pd

from mlflow_keras_adv.comparison.artifacts import Artifacts
from mlflow_keras_adv.comparison.chance import differ, interval
from mlflow_keras_adv.comparison.groups import Group, group_by_seed
from mlflow_keras_adv.comparison.histories import read_curves
from mlflow_keras_adv.comparison.logged_tables import read_tables
from mlflow_keras_adv.comparison.page import MAX_COLOURS, Contents, curve_keys, render
from mlflow_keras_adv.comparison.pictures import read_pictures
from mlflow_keras_adv.comparison.selection import TECHNIQUE, Selection, select_runs
from mlflow_keras_adv.comparison.table import (
    better,
    comparison_frame,
    deciding_metric,
    sort_groups,
)
from mlflow_keras_adv.comparison.texts import number, safe
from mlflow_keras_adv.comparison.view import view_address
from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.errors import UserError
from mlflow_keras_adv.tracking.addresses import (
    artifact_page,
    left_to_the_caller,
    run_page,
    say_where,
)
from mlflow_keras_adv.tracking.directions import AskedMode, asked, recorded
from mlflow_keras_adv.tracking.run import Run, current_run, track

MAX_RUNS = 500
# Of one variant; what is drawn of it is a mean and a band.
_MAX_SEEDS = 10
# The size of a table on a terminal.
_ROWS, _COLUMNS = 20, 7


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        sentence: The result, in Markdown.
        table: One row per variant, the best first; see `comparison.table.comparison_frame`.
        html: The page.
        run_id: The run that holds `comparison/report.html` and `comparison/table.json`, or None.
        address: MLflow's chart page of these runs, or None; see `comparison.view.view_address`.
        where: The line that `compare` has printed, with the addresses of page, run and charts.
    """

    sentence: str
    table: pd.DataFrame
    html: str
    run_id: str | None
    address: str | None
    where: str = ""

    def __str__(self) -> str:
        """The first columns and rows, for a terminal, without control characters."""
        columns = [each for each in self.table if each not in ("run_ids", "params")]
        shown = self.table[columns[:_COLUMNS]].head(_ROWS)
        lines = [[safe(each, 24) for each in columns[:_COLUMNS]]]
        lines += [
            [number(v, key) if isinstance(v, float) else safe(v, 32) for key, v in row.items()]
            for row in shown.to_dict("records")
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        texts = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        if len(self.table) > len(shown):
            texts.append(f"… and {len(self.table) - len(shown)} more")
        return "\n".join(texts)


@keeps_random_state()
def compare(
    runs: str | Sequence[str] = (),
    *,
    experiments: str | Sequence[str] = (),
    filter_string: str = "",
    by: str | Sequence[str] = (),
    monitor: str | None = None,
    mode: AskedMode = "auto",
    max_runs: int = MAX_RUNS,
    output: str | os.PathLike[str] | None = None,
    log: bool = True,
) -> Comparison:
    """Compares runs, prints where MLflow shows their charts, and logs the page and the table.

    Runs that differ only in the seed are one variant, with a mean and a standard deviation.

    Args:
        runs: Ids of runs. A run with nested runs is replaced by these.
        experiments: Names or ids of experiments.
        filter_string: As in `mlflow.search_runs`; applies to the experiments and to nested runs.
        by: Params that make a variant, `name` for the run's name. Default: name and all params.
        monitor: The metric by which the variants are sorted. Default: `final/accuracy`, else
            another one that most of them have; if there is none, they are not sorted.
        mode: Whether higher ("max") or lower ("min") is better; "auto": as recorded by the runs, or
            by a common name.
        max_runs: Largest number of runs, of which the newest are compared.
        output: A file to which the page is written, too.
        log: Whether to log it: to the current run of this thread, else to a new one.

    Returns:
        The table and the page.

    Raises:
        UserError: Nothing is named or found, no run has the metric `monitor`, it is not known which
            way it is better, the file cannot be written, or the store does not answer.
        ValueError: If `max_runs` is below 1, or `mode` is none.
    """
    by = (by,) if isinstance(by, str) else by
    if max_runs < 1:
        raise ValueError(f"Received max_runs={max_runs}. Expected 1 or more.")
    given = asked(mode)
    holder = current_run()
    without = holder.run_id if holder else ""
    selection = select_runs(runs, experiments, filter_string, max_runs, without=without)
    groups = group_by_seed(selection, by)
    if monitor is not None and not any(group.value(monitor) for group in groups):
        raise UserError(
            f"None of the {len(selection.runs)} runs has the metric {monitor!r}. They have: "
            f"{', '.join(_some_metrics(groups))}."
        )
    directions = recorded(selection.runs)
    score = monitor or deciding_metric(groups, directions)
    if score is not None and given is not None:
        directions[score] = given
    if score is not None and not better(score, directions):
        raise UserError(
            f"It is not known which way {score!r} is better. Pass mode='min' or mode='max' "
            "(--mode on the command line)."
        )
    groups = sort_groups(groups, score, directions)
    title = _title(groups, selection)
    ordered = [run for group in groups for run in group.runs]
    address = view_address(ordered, name=title, score=score, directions=directions)
    shown = groups[:MAX_COLOURS]
    artifacts = Artifacts(shown)
    pictures, fewer_pictures = read_pictures(artifacts)
    tables, fewer_tables = read_tables(artifacts)
    drawn = [run.info.run_id for group in shown for run in group.runs[:_MAX_SEEDS]]
    html = render(
        Contents(
            title=title,
            made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            groups=groups,
            score=score,
            directions=directions,
            curves=read_curves(drawn, curve_keys(shown)),
            pictures=pictures,
            tables=tables,
            experiments=selection.experiments,
            notes=[
                *(_chance(groups, score) if score else ()),
                *selection.notes,
                *_doubts(selection),
                *fewer_pictures,
                *fewer_tables,
            ],
            address=address,
        )
    )
    table, sentence = comparison_frame(groups, score), _sentence(groups, score)
    if output is not None:
        _write(Path(output), html)
    written = {} if output is None else {"page": str(Path(output).absolute())}
    charts = {} if address is None else {"charts": address}
    run_id, uri = None, mlflow.get_tracking_uri()
    if log:
        run, logged = _log(html, table, sentence)
        run_id, uri = run.run_id, run.tracking_uri
        written = logged | written
    where = say_where("Comparison", uri, written | charts)
    return Comparison(sentence, table, html, run_id, address, where)


def _log(html: str, table: pd.DataFrame, sentence: str) -> tuple[Run, dict[str, str]]:
    """Logs page and table; returns the run, and where both can be opened."""
    with ExitStack() as stack:
        run = current_run()
        opened = run is None
        if run is None:
            stack.enter_context(left_to_the_caller())
            tags = {"technique": TECHNIQUE}
            run = stack.enter_context(
                track("comparison", tags=tags, description=sentence, log_system_metrics=False)
            )
        run.log_text(html, "comparison/report.html")
        run.log_table(table, "comparison/table.json")
    where = (run.experiment_id, run.run_id)
    pages = {"run": run_page(*where)} if opened else {}
    pages["page"] = artifact_page(run.artifact_uri, *where, "comparison/report.html")
    return run, pages


def _write(path: Path, html: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"The page cannot be written to {path}: {error.strerror}. Name another file."
        ) from error


def _title(groups: Sequence[Group], selection: Selection) -> str:
    names = [group.name for group in groups]
    if len(names) <= 3:
        return "Comparison of " + ", ".join(safe(name, 40) for name in names)
    if len(selection.experiments) == 1:
        (experiment,) = selection.experiments.values()
        return f"{len(names)} variants of {safe(experiment, 60)}"
    return f"{len(names)} variants of {len(selection.experiments)} experiments"


def _sentence(groups: Sequence[Group], score: str | None) -> str:
    best = groups[0].value(score) if score else None
    if score is None or best is None:
        return (
            f"{len(groups)} variants, not ranked: they share no metric of which it is known which "
            "way it is better. Pass monitor= and mode=; see comparison/report.html."
        )
    # A description is Markdown: a name in it is code, and so no link, image or HTML.
    name = safe(groups[0].name).replace("`", "'")
    sure = interval(groups[0], score)
    within = ""
    if sure is not None:
        low, high = (number(each, score) for each in sure)
        within = f" (95 % {low} to {high}, {best.count} seeds)"
    first = f"First of {len(groups)} by {score}: `{name}`, {number(best.mean, score)}{within}."
    return " ".join([first, *_chance(groups, score)])


def _chance(groups: Sequence[Group], score: str) -> list[str]:
    """A sentence about the significance of the difference of two variants."""
    found = differ(groups, score)
    if found is None:
        return []
    other = safe(groups[1].name).replace("`", "'")
    test = "Student's t-test, paired by seed" if found.paired else "Welch's t-test"
    apart = number(abs(found.mean), score)
    return [f"It is {apart} from `{other}`; seeds alone do that with p = {found.p:.2g} ({test})."]


def _doubts(selection: Selection) -> list[str]:
    """Reasons to doubt a comparison: different data, runs that have not ended."""
    found = []
    data = {
        (each.dataset.name, each.dataset.digest)
        for run in selection.runs
        for each in (run.inputs.dataset_inputs if run.inputs else [])
    }
    if len(data) > 1:
        some = ", ".join(
            f"{safe(name, 30)} #{safe(digest, 12)}" for name, digest in sorted(data)[:4]
        )
        found.append(f"Not all runs used the same data: {some}{', …' if len(data) > 4 else ''}.")
    if unfinished := sum(run.info.status != "FINISHED" for run in selection.runs):
        which = "run has" if unfinished == 1 else "runs have"
        found.append(f"{unfinished} {which} failed or not ended; the values are the last ones.")
    return found


def _some_metrics(groups: Sequence[Group]) -> list[str]:
    keys = sorted({key for group in groups for run in group.runs for key in run.data.metrics})
    return [safe(key, 60) for key in keys[:20]] or ["none"]

"""Comparison of nested runs: a table, a figure and a sentence on their parent run."""

import logging
import math
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_keras_adv.comparison.view import view_address
from mlflow_keras_adv.compat.random_state import keeps_random_state
from mlflow_keras_adv.errors import UserError, expect, not_a_run
from mlflow_keras_adv.tracking.addresses import say_where
from mlflow_keras_adv.tracking.directions import AskedMode, asked, direction, recorded
from mlflow_keras_adv.tracking.outbox import GRACE_SECONDS
from mlflow_keras_adv.tracking.run import Run, id_of, run_of
from mlflow_keras_adv.tracking.store import answers, without_password
from mlflow_keras_adv.tracking.texts import safe

_logger = logging.getLogger(__name__)


@keeps_random_state()
def comparison_table(runs: Mapping[str, str]) -> pd.DataFrame:
    """Tabulates the `final/…` metrics of runs.

    Args:
        runs: Ids of the runs by their names in the table.

    Returns:
        One row per run: `variant`, then the `final/…` metrics under their own names, in the order
        of the first run that has them; NaN where a run has none.
    """
    client = MlflowClient()
    return _table({name: client.get_run(run_id).data.metrics for name, run_id in runs.items()})


@keeps_random_state()
def curve(key: str, *, run: Run | str | None = None) -> "pd.Series[float]":
    """Reads the history of a metric from the store.

    Args:
        key: Name of the metric.
        run: A run that has ended, or its id; the last values of an open run may not have arrived
            yet. Default: the current run.

    Returns:
        Values by step, in the order of the steps; empty if the run has no such metric.

    Raises:
        TypeError: The key is no text, or the run no run.
        UserError: The store has no such run, or none was given and none is open.
    """
    not_a_run("key", key, "curve(key, run=run)")
    expect("key", key, str, "the name of a metric: 'train/loss'")
    run_id = id_of(run, "curve")
    client = MlflowClient()
    points = sorted(client.get_metric_history(run_id, key), key=lambda point: point.step)
    if not points:
        try:  # of a run that it does not know, a store has no points either
            client.get_run(run_id)
        except MlflowException as error:
            raise UserError(
                f"There is no run {run_id!r}: {without_password(error.message)}. Expected a run "
                "or its id, run.run_id."
            ) from error
    steps = [point.step for point in points]
    return pd.Series([point.value for point in points], steps, dtype=float, name=key)


@keeps_random_state()
def learning_curves(runs: Mapping[str, str], keys: Sequence[str]) -> Figure:
    """Draws a panel per metric key and a line per run, over the training batches consumed.

    Args:
        runs: Ids of the runs by their names in the legend.
        keys: Metric keys; a run that lacks one has no line in that panel.
    """
    figure = Figure(figsize=(5.5 * len(keys), 4), layout="constrained")
    panels = figure.subplots(1, len(keys), squeeze=False)[0]
    lines: dict[str, Line2D] = {}
    for panel, key in zip(panels, keys, strict=True):
        for index, (variant, run_id) in enumerate(runs.items()):
            history = curve(key, run=run_id)
            if len(history):
                colour, style = f"C{index % 10}", ("-", "--", ":")[index // 10 % 3]
                (lines[variant],) = panel.plot(history.index, history, style, color=colour)
        panel.set(title=key, xlabel="training batches")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    shown = [variant for variant in runs if variant in lines]
    figure.legend(
        [lines[variant] for variant in shown],
        shown,
        loc="outside lower center",
        ncols=max(1, min(len(shown), 3 * len(keys))),
        frameon=False,
    )
    return figure


@keeps_random_state()
def log_comparison(
    variants: Mapping[str, Run | str],
    *,
    run: Run | str | None = None,
    candidates: Sequence[str] | None = None,
    monitor: str | None = None,
    mode: AskedMode = "auto",
    curves: Sequence[str] = (),
) -> str:
    """Compares nested runs, and logs the comparison to their parent.

    Logs the table `comparison.json`, the figure `learning_curves.png`, the `final/…` metrics of the
    winner (a parent without metrics shows an empty chart page) and the tag `winner`. The line that
    `track` prints at the end of the run has the address of MLflow's chart page of the nested runs.
    While the store does not answer, nothing is compared and a warning says so: the values are in
    journals, and can be compared once they are delivered.

    Args:
        variants: The nested runs, or their ids, by name. If one has not ended, this waits until the
            values logged so far are in the store.
        run: The parent, or its id. Default: the current run.
        candidates: Names of the variants that can win. Default: all.
        monitor: The metric whose last value decides; ties go to the variant with fewer
            `final/gzip_bytes`. It should be a validation metric: a choice by the test split would
            bias its result. Default: `val/accuracy`, else `val/loss`.
        mode: Whether the highest ("max") or the lowest ("min") wins; "auto": as recorded by the
            runs, or by a common name.
        curves: Metric keys of the figure's panels. Default: `train/loss` and `monitor`.

    Returns:
        The winner's name; "" if there are several candidates and the store does not answer.

    Raises:
        ValueError: No candidate has the metric `monitor`, or it is unknown whether that is better
            lower or higher.
        TypeError: The parent is no run, or the variants no dict of runs.
        UserError: No run is open.
    """
    not_a_run("variants", variants, "log_comparison({'a': run_a, …}, run=run)")
    expect("the variants", variants, Mapping, "a dict of runs by their names: {'a': run_a}")
    parent = run_of(run, "log_comparison")
    runs = {name: run_of(each, "log_comparison") for name, each in variants.items()}
    winner, _ = compare_variants(
        parent, runs, candidates=candidates, monitor=monitor, mode=mode, curves=curves
    )
    return winner


def compare_variants(
    run: Run,
    variants: Mapping[str, Run],
    *,
    candidates: Sequence[str] | None,
    monitor: str | None,
    mode: AskedMode,
    curves: Sequence[str],
) -> tuple[str, str]:
    """Like `log_comparison`; also returns the metric that has decided."""
    given = asked(mode)
    if not answers(run.tracking_uri):
        _logger.warning(
            "The runs %s are not compared: their store does not answer, and has not all of them. "
            "Call log_comparison() again when it does.",
            ", ".join(variants),
        )
        winner = candidates[0] if candidates is not None and len(candidates) == 1 else ""
        if winner:
            run.set_tags({"winner": winner})
        return winner, monitor or ""
    if not variants:
        raise ValueError("Received no variants to compare; expected at least one, by its name.")
    for each in variants.values():
        each.flush(GRACE_SECONDS)  # what is not in the store yet would be missing
    client = MlflowClient()
    run_ids = {name: each.run_id for name, each in variants.items()}
    found = {name: client.get_run(run_id) for name, run_id in run_ids.items()}
    metrics = {name: each.data.metrics for name, each in found.items()}
    names = list(candidates or variants)
    if monitor is None:
        usual = ("val/accuracy", "val/loss")
        monitor = next((k for k in usual if any(k in metrics[n] for n in names)), usual[0])
    scored = [name for name in names if monitor in metrics[name]]
    if not scored:
        raise ValueError(
            f"Received runs without the metric {monitor!r}, which chooses the winner. Log it "
            "in each of them, or pass monitor=."
        )
    directions = recorded(found.values())
    if given is not None:
        directions[monitor] = given
    better = direction(monitor, directions)
    if better not in ("min", "max"):
        raise ValueError(
            f"It is not known which way {monitor!r} is better. Pass mode='min' or mode='max'."
        )
    sign = 1 if better == "max" else -1

    def place(name: str) -> tuple[bool, float, float]:
        value = metrics[name][monitor]
        lost = math.isnan(value)  # NaN never wins
        return not lost, 0.0 if lost else sign * value, -metrics[name].get("final/gzip_bytes", 0)

    winner = max(scored, key=place)
    run.log_table(_table(metrics), "comparison.json")
    run.log_figure(
        learning_curves(run_ids, curves or tuple(dict.fromkeys(("train/loss", monitor)))),
        "learning_curves.png",
    )
    run.log_metrics({k: v for k, v in metrics[winner].items() if k.startswith("final/")}, step=0)
    run.set_tags({"winner": winner})
    score = next((k for k in ("final/accuracy", monitor) if k in metrics[winner]), None)
    title = f"{run.name}: {', '.join(variants)}"
    address = view_address(
        list(found.values()),
        name=title,
        score=score,
        directions=directions,
        parent_run_id=run.run_id,
    )
    if run.internals.is_held:
        run.internals.charts = address
    elif address is not None:
        say_where(f"Run {safe(run.name)}", run.tracking_uri, {"charts": address})
    return winner, monitor


def _table(metrics: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    rows = []
    for variant, values in metrics.items():
        final = {key: value for key, value in values.items() if key.startswith("final/")}
        rows.append({"variant": variant} | dict(sorted(final.items())))
    return pd.DataFrame(rows)

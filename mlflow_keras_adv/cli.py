"""`mlflow-keras-adv` on the command line. A command imports what it needs, when it is called."""

import os
import sys
from typing import Any

import click

from mlflow_keras_adv.errors import UserError


class _Commands(click.Group):
    """Says a `UserError` alone, and Ctrl-C in one word: exit codes 1 and 130."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)


@click.group(cls=_Commands)
@click.version_option(package_name="mlflow-keras-adv")
def main() -> None:
    """MLflow for Keras beyond fit()."""


@main.command()
@click.option("--uri", help="Try this tracking store, not the one MLflow is configured with.")
def doctor(uri: str | None) -> None:
    """Try the tracking store with a tiny run, model and version, and delete them again.

    Then delivers what is pending on this machine, as `sync` does. Exit code 0 if all that a
    training needs works, else 1.
    """
    from mlflow_keras_adv.diagnostics.doctor import examine

    healthy = examine(uri, say=click.echo)
    _sync(None)
    if not healthy:
        sys.exit(1)


@main.command()
@click.option("--to", "uri", help="Carry offline runs to this store, not the one they were for.")
def sync(uri: str | None) -> None:
    """Deliver what is pending on this machine: journals, and runs that were recorded offline.

    Runs whose process died without ending them become KILLED; what a living process is delivering
    is left to it. Calling it again makes no duplicates. Exit code 0 if nothing is pending any more,
    else 1.
    """
    if not _sync(uri):
        sys.exit(1)


@main.command()
@click.argument("name")
@click.argument("candidate")
@click.option(
    "--data",
    required=True,
    help="An .npz file with x_test and y_test, or x and y; x.<input> and y.<output> if there are "
    "several; sample_weight if there are weights.",
)
@click.option("--dataset", default="", help="Name of the dataset; default: that of the file.")
@click.option("--digest", default="", help="Digest of the dataset; default: computed.")
@click.option("--experiment", help="Name of the experiment that best-of-experiment searches.")
@click.option(
    "--min",
    "floors",
    multiple=True,
    metavar="METRIC=NUMBER",
    help="A metric must be at least this; repeatable.",
)
@click.option(
    "--max",
    "ceilings",
    multiple=True,
    metavar="METRIC=NUMBER",
    help="A metric must be at most this; repeatable.",
)
@click.option(
    "--monitor",
    help="What must not get worse; default: accuracy of a classifier, else the first metric that "
    "CANDIDATE was compiled with, else its loss.",
)
@click.option(
    "--margin", type=float, default=0.01, show_default=True, help="How much worse it may be."
)
@click.option("--relative", is_flag=True, help="The margin is a share of the champion's value.")
@click.option(
    "--mode",
    type=click.Choice(["auto", "min", "max"]),
    default="auto",
    help="Whether lower or higher is better; auto: as its name says.",
)
@click.option(
    "--confidence", type=float, help="How sure it must be that the margin holds, such as 0.95."
)
@click.option(
    "--slice",
    "slices",
    multiple=True,
    metavar="COLUMN",
    help="An array in the file: no group of equal values in it may get worse; repeatable.",
)
@click.option(
    "--min-agreement", type=float, help="Share of the decisions that must be the champion's, too."
)
@click.option(
    "--max-difference",
    type=float,
    help="How far the outputs may be from the champion's, relative to these.",
)
@click.option("--max-size-bytes", type=int, help="Largest size of the candidate's file.")
@click.option(
    "--max-latency-ratio",
    type=float,
    help="The candidate's median latency, divided by the champion's.",
)
@click.option(
    "--same-dataset", is_flag=True, help="The digest must be the one that the runs recorded."
)
@click.option("--max-flops", type=float, help="Most FLOPs of a forward pass of one sample: 5e6.")
@click.option("--reason", default="", help="The reason, kept in the history.")
@click.option(
    "--yes", is_flag=True, help="Promote if all gates pass. Without it, nothing is changed."
)
def promote(name: str, candidate: str, yes: bool, **options: Any) -> None:
    """Measure CANDIDATE beside the champion of the registered model NAME, and ask the gates.

    CANDIDATE is models:/m-…, runs:/<run id>/<name>, models:/<name>/<version>,
    models:/<name>@<alias> or best-of-experiment. It must always load and serve; if there are
    labels, it may be worse in the metric by the margin at most. With --yes it becomes the champion
    if all gates pass. Exit code 0 if they pass, else 1.
    """
    from mlflow_keras_adv.evaluation.measure_models import measure_models
    from mlflow_keras_adv.registry.command import promotion_of

    done = promotion_of(name, candidate, measure=measure_models, dry_run=not yes, **options)
    click.echo(str(done))
    if done.outcome == "passed":
        click.echo("Add --yes to promote it.")
    if done.outcome not in ("promoted", "passed"):
        sys.exit(1)


@main.command()
@click.argument("name")
@click.option("--reason", default="", help="The reason, kept in the history.")
def rollback(name: str, reason: str) -> None:
    """Make the previous champion of the registered model NAME the champion again."""
    from mlflow_keras_adv import registry

    click.echo(str(registry.rollback(name, reason=reason)))


@main.command()
@click.argument("name")
def history(name: str) -> None:
    """Show who moved the champion of the registered model NAME, when, why and on what evidence."""
    from mlflow_keras_adv import registry

    for entry in registry.history(name):
        click.echo(str(entry))


@main.command()
@click.argument("runs", nargs=-1, metavar="[RUN_ID]...")
@click.option(
    "-e",
    "--experiment",
    "experiments",
    multiple=True,
    help="Compare the runs of this experiment (name or id); repeatable.",
)
@click.option(
    "--filter",
    "filter_string",
    default="",
    help="Only runs that match, such as \"params.lr = '0.01'\".",
)
@click.option(
    "--by",
    multiple=True,
    help="Param (or: name) by which runs are grouped into variants; repeatable.",
)
@click.option("--monitor", help="Metric to sort by; default: final/accuracy, else another.")
@click.option(
    "--mode",
    type=click.Choice(["auto", "min", "max"]),
    default="auto",
    help="Whether lower or higher is better; auto: as the runs or its name say.",
)
@click.option("--max-runs", type=click.IntRange(1), default=500, show_default=True)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False), help="Write the page to this file, too."
)
@click.option("--log/--no-log", default=True, help="Log page and table to a new run.")
def compare(**options: Any) -> None:
    """Compare runs on one page: by their ids, of experiments, or of a search in these.

    A run with nested runs is replaced by these. Runs that differ only in the seed are one variant.
    """
    from mlflow_keras_adv.comparison.compare import compare as comparison_of
    from mlflow_keras_adv.tracking.addresses import left_to_the_caller

    with left_to_the_caller():
        found = comparison_of(**options)
    click.echo(str(found))
    if found.where:
        click.echo(found.where)


@main.command()
@click.option("-e", "--experiment", help="Show this one, by name or id; default: the newest run's.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="If it is free."
)
@click.option("--open", "browse", is_flag=True, help="Open the page in a browser.")
def ui(experiment: str | None, port: int, browse: bool) -> None:
    """Serve the store in MLflow's UI, and print the address of the page that shows the runs.

    The store is that of MLFLOW_TRACKING_URI, else ./mlflow.db. If it is a server, only the address
    is printed. Ctrl-C ends the UI.
    """
    from mlflow_keras_adv.tracking.ui import serve

    serve(experiment, port, click.echo, browse=browse)


def _sync(uri: str | None) -> bool:
    """Delivers what is pending, says so, and whether all of it was."""
    from mlflow_keras_adv.tracking import sync as syncing

    # MLflow would print two lines for each run that is ended.
    quiet = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"
    found = os.environ.get(quiet)
    os.environ[quiet] = "true"
    try:
        outcome = syncing.sync(uri)
    finally:
        del os.environ[quiet]
        if found is not None:
            os.environ[quiet] = found
    for line in outcome.delivered:
        click.echo(f"delivered  {line}")
    for line in outcome.pending:
        click.echo(f"pending    {line}")
    if not outcome.delivered and not outcome.pending:
        click.echo("Nothing is pending on this machine.")
    return not outcome.pending

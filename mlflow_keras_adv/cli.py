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
    from mlflow_keras_adv.doctor import examine

    healthy = examine(uri, say=click.echo)
    _sync(None)
    if not healthy:
        sys.exit(1)


@main.command()
@click.option("--to", "uri", help="Carry offline runs to this store, not the one they were for.")
def sync(uri: str | None) -> None:
    """Deliver what is pending on this machine: journals, and runs that were recorded offline.

    Runs whose process has died without a word are ended as KILLED; what a process that is alive
    holds is left to it. To call it again makes no duplicates. Exit code 0 if nothing is pending any
    more, else 1.
    """
    if not _sync(uri):
        sys.exit(1)


@main.command()
@click.argument("name")
@click.argument("candidate")
@click.option(
    "--data",
    required=True,
    help="An .npz file with x_test and y_test, or x and y; of several inputs or outputs x.<input>, "
    "y.<output>; sample_weight if there are any.",
)
@click.option("--dataset", default="", help="Its name in the record; default: that of the file.")
@click.option("--digest", default="", help="Its digest in the record; default: computed.")
@click.option("--experiment", help="Name of the experiment of best-of-experiment.")
@click.option(
    "--min", "floors", multiple=True, metavar="METRIC=NUMBER", help="A floor; repeatable."
)
@click.option("--max", "ceilings", multiple=True, metavar="METRIC=NUMBER", help="A ceiling.")
@click.option(
    "--metric",
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
    help="Which way the metric is better, where its name does not say.",
)
@click.option("--confidence", type=float, help="The loss has to be shown with this, as 0.95.")
@click.option(
    "--slice",
    "slices",
    multiple=True,
    metavar="COLUMN",
    help="An array of the file: in no group of equal values may it get worse; repeatable.",
)
@click.option("--min-agreement", type=float, help="With the champion, share of the decisions.")
@click.option("--max-difference", type=float, help="From the champion's outputs, in parts of them.")
@click.option("--max-size-bytes", type=int)
@click.option("--max-latency-ratio", type=float, help="Of the champion's, measured now.")
@click.option("--max-flops", type=float, help="Of a forward pass of one sample, as 5e6.")
@click.option("--same-dataset", is_flag=True, help="The digest has to be that of the record.")
@click.option("--reason", default="", help="Why, for the trail.")
@click.option("--yes", is_flag=True, help="Act. Without it nothing is changed.")
def promote(name: str, candidate: str, yes: bool, **options: Any) -> None:
    """Measure CANDIDATE beside the champion of the registered model NAME, and ask the gates.

    CANDIDATE is models:/m-…, runs:/<run id>/<name>, models:/<name>/<version>,
    models:/<name>@<alias> or best-of-experiment. It is always asked to load and serve, and with
    labels to be worse in the metric by no more than the margin. With --yes it becomes the champion
    if all gates pass. Exit code 0 if they do, else 1.
    """
    from mlflow_keras_adv.registry.command import promotion_of
    from mlflow_keras_adv.side_by_side import measure_models

    done = promotion_of(name, candidate, measure=measure_models, dry_run=not yes, **options)
    click.echo(str(done))
    if done.outcome == "passed":
        click.echo("Add --yes to promote it.")
    if done.outcome not in ("promoted", "passed"):
        sys.exit(1)


@main.command()
@click.argument("name")
@click.option("--reason", default="", help="Why, for the trail.")
def rollback(name: str, reason: str) -> None:
    """Make the previous champion of the registered model NAME the champion again."""
    from mlflow_keras_adv import registry

    click.echo(str(registry.rollback(name, reason=reason)))


@main.command()
@click.argument("name")
def history(name: str) -> None:
    """Who moved the champion of the registered model NAME, when, why and on what evidence."""
    from mlflow_keras_adv import registry

    for entry in registry.history(name):
        click.echo(str(entry))


@main.command()
@click.argument("runs", nargs=-1, metavar="[RUN_ID]...")
@click.option("-e", "--experiment", "experiments", multiple=True, help="Its runs; repeatable.")
@click.option("--filter", "filter_string", default="", help="As \"params.lr = '0.01'\".")
@click.option("--by", multiple=True, help="Param that makes a variant, or name; repeatable.")
@click.option("--score", help="Metric to sort by; default: final/accuracy, else another.")
@click.option("--mode", type=click.Choice(["min", "max"]), help="Which way the score is better.")
@click.option("--max-runs", type=click.IntRange(1), default=500, show_default=True)
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write the page here, too.")
@click.option("--log/--no-log", default=True, help="Log page and table to a new run.")
def compare(**options: Any) -> None:
    """Compare runs on one page: by their ids, of experiments, or of a search in these.

    A run with nested runs stands for these. Runs that differ in the seed alone are one variant.
    """
    from mlflow_keras_adv.comparison.compare import compare as comparison_of

    found = comparison_of(**options)
    click.echo(str(found))
    if found.run_id is not None:
        click.echo(f"Page: runs:/{found.run_id}/comparison/report.html")


def _sync(uri: str | None) -> bool:
    """Delivers what is pending, says so, and whether all of it was."""
    from mlflow_keras_adv.tracking import sync as syncing

    # MLflow would print two lines for each run that is ended.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    outcome = syncing.sync(uri)
    for line in outcome.delivered:
        click.echo(f"delivered  {line}")
    for line in outcome.pending:
        click.echo(f"pending    {line}")
    if not outcome.delivered and not outcome.pending:
        click.echo("Nothing is pending on this machine.")
    return not outcome.pending

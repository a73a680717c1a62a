"""`mlflow-keras-adv` on the command line. A command imports what it needs, when it is called."""

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


def _sync(uri: str | None) -> bool:
    """Delivers what is pending, says so, and whether all of it was."""
    from mlflow_keras_adv.tracking import sync as syncing

    outcome = syncing.sync(uri)
    for line in outcome.delivered:
        click.echo(f"delivered  {line}")
    for line in outcome.pending:
        click.echo(f"pending    {line}")
    if not outcome.delivered and not outcome.pending:
        click.echo("Nothing is pending on this machine.")
    return not outcome.pending

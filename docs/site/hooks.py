"""The help of every command, so that it is written in one place: the command itself.

`<!-- commands -->` on a page becomes that help when the site is built.
"""

from typing import Any

import click

from mlflow_keras_adv.cli import main


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs with the text of each page."""
    return markdown.replace("<!-- commands -->", _commands())


def _commands() -> str:
    parts = []
    for name, command in sorted(main.commands.items()):
        context = click.Context(command, info_name=f"mlflow-keras-adv {name}", max_content_width=88)
        parts.append(f"## {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)

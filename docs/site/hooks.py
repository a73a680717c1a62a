"""What pages say that stands elsewhere already, so that it stands in one place.

`<!-- readme: What to know -->` becomes what is below that heading of README, and
`<!-- commands -->` the help of every command.
"""

import re
from pathlib import Path
from typing import Any

import click
from mkdocs.exceptions import PluginError

from mlflow_keras_adv.cli import main

README = Path(__file__).parent.parent.parent / "README.md"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs with the text of each page."""
    markdown = re.sub(r"^<!-- readme: (.+) -->$", _section, markdown, flags=re.MULTILINE)
    return markdown.replace("<!-- commands -->", _commands())


def _section(wanted: re.Match[str]) -> str:
    heading = re.escape(wanted[1])
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", README.read_text(), re.DOTALL | re.M)
    if found is None:
        raise PluginError(f"README has no section {wanted[1]!r}")
    text = re.sub(r"^\[CONTRIBUTING\.md\].*$", "", found[1], flags=re.MULTILINE)  # its last line
    return re.sub(r"\[([^]]+)\]\((?!https?:)([^)]+)\)", _link, text)


def _link(found: re.Match[str]) -> str:
    """A link of README, which starts in the folder above: to a page, or to what is none."""
    text, target = found.groups()
    page = target.removeprefix("docs/")
    return f"[{text}]({page})" if page != target else f"{text} (`{target}`)"


def _commands() -> str:
    parts = []
    for name, command in sorted(main.commands.items()):
        context = click.Context(command, info_name=f"mlflow-keras-adv {name}", max_content_width=88)
        parts.append(f"## {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)

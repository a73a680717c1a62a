"""MLproject, written from the signature of each script's `main`.

python -m projects.mlproject
"""

import ast
import importlib
import json
from pathlib import Path

from pydantic import TypeAdapter

from mlflow_keras_adv.lessons import entry_point

ROOT = Path(__file__).parent.parent
TYPES = {"string": "string", "integer": "int", "number": "float", "boolean": "bool"}
HEAD = """\
name: mlflow_keras_adv

conda_env: conda.yaml

# Written by `python -m projects.mlproject` from the signature of `main` in each projects/<name>.py.
# Which values are valid: python -m projects.<name> --help
entry_points:
"""


def scripts() -> list[str]:
    """The scripts that have a `main`, in order."""
    return sorted(
        path.stem
        for path in (ROOT / "projects").glob("*.py")
        if any(
            isinstance(node, ast.FunctionDef) and node.name == "main"
            for node in ast.parse(path.read_text()).body
        )
    )


def text() -> str:
    """The whole file."""
    return HEAD + "".join(map(entry, scripts()))


def entry(name: str) -> str:
    """What it says of a script."""
    declared = entry_point.parameters(importlib.import_module(f"projects.{name}").main)
    lines = [f"  {name}:", "    parameters:"]
    for each in declared:
        kind = TYPES[TypeAdapter(each.annotation).json_schema()["type"]]
        lines.append(f"      {each.name}: {{type: {kind}, default: {_default(each.default)}}}")
    # MLflow quotes the values, and quotes around them would undo it; cmd /c takes one line.
    lines += ["    command: >-", f"      python -m projects.{name}"]
    lines += [f"      {each.option} {{{each.name}}}" for each in declared]
    return "\n".join(lines) + "\n"


def _default(value: object) -> str:
    """As YAML has it: a text in quotes only if it would be something else without."""
    if isinstance(value, str):
        plain = value[:1].isalpha() and not set(value) & set(":#{}[],&*'\"")
        return value if plain else json.dumps(value)
    return json.dumps(value)


if __name__ == "__main__":
    (ROOT / "MLproject").write_text(text())

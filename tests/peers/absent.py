"""Stand-ins for packages that a file of tests imports and that are not installed.

Keras' tests of its trainer import JAX at their head, for two of them. With a stand-in the file can
be read; whoever calls anything of one is skipped. They are there while the file is imported only:
Keras itself goes on to find the package missing.
"""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class _StandIn(type):
    """A class that has any attribute, may be a base, and skips the test that calls it."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _stand_in(f"{cls.__name__}.{name}")

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        pytest.skip(f"{cls.__name__.partition('.')[0]} is not installed")


def _stand_in(name: str) -> Any:
    return _StandIn(name, (), {})


@contextmanager
def standing_in(file: Path) -> Iterator[None]:
    """Has what the file imports at its head importable while the block runs."""
    made = {name: _stand_in(name) for name in _imported(file) if _is_absent(name)}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            sys.modules.pop(name, None)


def _imported(file: Path) -> Iterator[str]:
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _is_absent(name: str) -> bool:
    top = name.partition(".")[0]
    return top not in sys.modules and importlib.util.find_spec(top) is None

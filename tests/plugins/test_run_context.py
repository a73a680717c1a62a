"""The tags of new runs: what they say, and what they leave alone."""

import hashlib
import subprocess
import sys
import types
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from mlflow_keras_adv.plugins import run_context
from mlflow_keras_adv.plugins.run_context import KerasRunContext

Git = Callable[..., None]


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Git:
    """Runs git in a folder of its own, in which the running script seems to be."""
    script = tmp_path / "train.py"
    script.write_text("print(1)\n")
    monkeypatch.setattr(sys, "argv", [str(script)])

    def run(*arguments: str) -> None:
        me = ("-c", "user.name=Me", "-c", "user.email=me@example.org")
        subprocess.run(["git", *me, *arguments], cwd=tmp_path, check=True, capture_output=True)

    return run


@pytest.fixture
def repository(git: Git) -> Git:
    git("init")
    git("add", "train.py")
    git("commit", "-m", "First")
    return git


def digest() -> str | None:
    return KerasRunContext().tags().get("git_diff_sha256")


def test_versions_are_there_without_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorflow", "keras"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    context = KerasRunContext()
    tags = context.tags()
    assert context.in_context()
    assert tags["tensorflow"] == version("tensorflow")
    assert tags["keras"] == version("keras")
    assert tags["mlflow_keras_adv"] == version("mlflow-keras-adv")
    assert not {"dtype_policy", "devices"} & tags.keys()
    assert not {"tensorflow", "keras"} & set(sys.modules)


def test_what_is_imported_only_in_part_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorflow", "keras"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    assert not {"dtype_policy", "devices"} & KerasRunContext().tags().keys()


def test_changes_of_tracked_files_are_told_apart(repository: Git, tmp_path: Path) -> None:
    assert digest() == "clean"
    (tmp_path / "untracked.txt").write_text("not in it")
    assert digest() == "clean"
    (tmp_path / "train.py").write_text("print(2)\n")
    changed = digest()
    assert changed is not None
    assert len(changed) == len(hashlib.sha256().hexdigest())
    repository("config", "diff.noprefix", "true")
    repository("config", "color.ui", "always")
    assert digest() == changed  # how git shows it to the user does not matter
    repository("add", "train.py")
    assert digest() == changed  # nor whether it is staged
    (tmp_path / "train.py").write_text("print(3)\n")
    assert digest() not in (changed, "clean", None)


def test_the_changes_are_read_once(repository: Git, tmp_path: Path) -> None:
    context = KerasRunContext()
    first = context.tags()
    (tmp_path / "train.py").write_text("print(2)\n")
    assert context.tags() == first  # as MLflow's commit, which they belong to


@pytest.mark.quick
def test_without_a_commit_there_is_no_hash(
    git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert digest() is None  # no repository
    git("init")
    assert digest() is None  # no commit
    monkeypatch.setattr(sys, "argv", [""])
    assert digest() is None  # no script: a console


def test_git_that_is_slow_or_missing_does_not_hold_up_a_run(
    repository: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_context, "_GIT_SECONDS", 0.0)
    assert digest() is None
    monkeypatch.setattr(run_context, "_GIT_SECONDS", 2.0)
    assert digest() == "clean"
    monkeypatch.setenv("PATH", "/nowhere")
    assert digest() is None

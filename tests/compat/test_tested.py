"""A release that nobody has tried is said once, and refused never."""

import logging
import re
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from mlflow_keras_adv.compat import tested

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def a_new_process() -> None:
    tested.warn_of_untried.cache_clear()


def test_what_is_installed_here_was_tried(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tested.warn_of_untried()
    assert not caplog.records


def test_a_newer_release_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def version(name: str) -> str:
        if name == "tensorflow":  # it is tensorflow-cpu that is installed
            raise PackageNotFoundError(name)
        return {"mlflow": "3.99.0rc1", "keras": "3.9.2"}[name]

    monkeypatch.setattr(tested, "version", version)
    with caplog.at_level(logging.WARNING):
        tested.warn_of_untried()
        tested.warn_of_untried()
    (warning,) = caplog.messages
    assert re.search(r"not been tried with mlflow 3\.99\.0rc1 \(tried: before 3\.18\)\.", warning)


def test_every_bound_is_within_the_requirements() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["dependencies"] + project["optional-dependencies"]["tensorflow"]
    allowed = {each.name: each.specifier for each in map(Requirement, declared)}
    for name, bound in tested.UNTRIED.items():
        last_tried = Version(f"{bound[0]}.{bound[1] - 1}.5")
        assert last_tried in allowed[name], name

"""Keras' own tests as the judge: run plain and with every `fit` observed, nothing differs.

They come with Keras' wheel (`keras/src/**/*_test.py`). Each file is run in processes of its own,
one for each way of observing; `-k` chooses among the files.
"""

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import keras
import pytest

from tests.mlflow_run import new_shell
from tests.peers.fits_on_record import WAYS
from tests.peers.page import Row, rows_of

ROOT = Path(__file__).parent.parent.parent
TESTS = Path(keras.__file__).parent / "src"
SUITES = ("trainers", "callbacks", "optimizers", "models", "saving")
FILES = [
    path.relative_to(TESTS).as_posix()
    for suite in SUITES
    for path in sorted((TESTS / suite).rglob("*_test.py"))
]
TEST_SECONDS = 600
FILE_SECONDS = 3000

Outcomes = dict[str, dict[str, Any]]

pytestmark = [pytest.mark.soak, pytest.mark.timeout(4 * 3600)]


def run(path: str, way: str, folder: Path) -> Outcomes:
    """Runs one file of Keras' tests, with each `fit` observed in this way."""
    folder.mkdir()
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    ignored = [each for each in options["filterwarnings"] if each.startswith("ignore")]
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings =\n  " + "\n  ".join(ignored))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-c", folder / "pytest.ini", "--rootdir", TESTS, f"--timeout={TEST_SECONDS}"]
    command += ["-p", "tests.peers.fits_on_record", f"--observed={way}"]
    command += [f"--outcomes={folder / 'outcomes.json'}", TESTS / path]
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=folder,
        start_new_session=True,
        env=new_shell(
            KERAS_BACKEND="tensorflow",
            MLFLOW_KERAS_ADV_HOME=str(folder / "home"),
            MLFLOW_TRACKING_URI=f"sqlite:///{folder / 'mlflow.db'}",
            PYTHONDONTWRITEBYTECODE="1",  # the tests lie where Keras is installed
            PYTHONPATH=os.pathsep.join(map(str, (ROOT, TESTS.parent.parent))),
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        printed, _ = process.communicate(timeout=FILE_SECONDS)
        hung = False
    except subprocess.TimeoutExpired:
        # A pool of Python's own processes may wait for itself when the interpreter ends.
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        hung = True
    (folder / "printed.txt").write_text(printed)
    assert (folder / "outcomes.json").is_file(), printed[-4000:]
    outcomes: Outcomes = json.loads((folder / "outcomes.json").read_text())
    if hung:
        outcomes["the end of the process"] = {
            "outcome": "failed",
            "reason": "it hung",
            "warnings": [],
            "fits": [],
        }
    return outcomes


def differing(plain: Outcomes, observed: Outcomes) -> dict[str, list[str]]:
    """By test what differs, a line for each place."""
    lines: dict[str, list[str]] = {}
    for test in dict.fromkeys([*plain, *observed]):
        if test not in plain or test not in observed:
            lines[test] = [f"run {'observed' if test in observed else 'plain'} only"]
        elif found := _of_test(plain[test], observed[test]):
            lines[test] = found
    return lines


def _of_test(plain: dict[str, Any], observed: dict[str, Any]) -> list[str]:
    lines = [
        f"{what}: plain {plain[what]}, observed {observed[what]}"
        for what in ("outcome", "reason", "warnings")
        if plain[what] != observed[what]
    ]
    if len(plain["fits"]) != len(observed["fits"]):
        lines.append(f"plain {len(plain['fits'])} fits, observed {len(observed['fits'])}")
    for index, (one, other) in enumerate(zip(plain["fits"], observed["fits"], strict=False)):
        # Of a `fit` that raised, the model is not looked at at once in each way.
        broken_off = any("raised" in each for each in observed["fits"][:index])
        told = any(what.startswith("model/") for what in other)
        for what in dict.fromkeys([*one, *other]):
            values = one.get(what), other.get(what)
            # A first `fit` may leave it as it was; Keras makes it when it is needed. After one that
            # raised, what the next one finds may be the observer's, and is put back by it.
            unmade = what.endswith("function") and (
                values[1] in ("as found", "None") or (broken_off and values[0] == "as found")
            )
            skipped = what.startswith("model/") and not told
            if values[0] != values[1] and not unmade and not skipped:
                lines.append(f"fit {index}, {what}: plain {values[0]}, observed {values[1]}")
    return lines


@pytest.mark.parametrize("path", FILES)
def test_keras_own_tests_end_as_they_do_unobserved(
    path: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    plain = run(path, WAYS[0], tmp_path / WAYS[0])
    apart = {way: differing(plain, run(path, way, tmp_path / way)) for way in WAYS[1:]}
    unsteady: dict[str, list[str]] = {}
    if any(apart.values()):  # once more: what differs by chance does so once
        again = run(path, WAYS[0], tmp_path / "plain again")
        unsteady = differing(plain, again)
        for way in [way for way in apart if apart[way]]:
            once_more = differing(again, run(path, way, tmp_path / f"{way} again"))
            apart[way] = {test: each for test, each in apart[way].items() if test in once_more}
    rows_of(request.config).append(
        Row(
            suite=f"Keras' own tests: {path.partition('/')[0]}",
            name=path,
            passed=sum(each["outcome"] == "passed" for each in plain.values()),
            other=sum(each["outcome"] != "passed" for each in plain.values()),
            fits=sum(len(each["fits"]) for each in plain.values()),
            same={way: len(plain.keys() - lines.keys()) for way, lines in apart.items()},
        )
    )
    text = [
        f"{way}: {test}{' (differs from run to run)' if test in unsteady else ''}\n  "
        + "\n  ".join(lines)
        for way, by_test in apart.items()
        for test, lines in by_test.items()
    ]
    assert all(not by_test.keys() - unsteady.keys() for by_test in apart.values()), "\n".join(text)


def test_the_wheel_holds_the_tests() -> None:
    assert {path.partition("/")[0] for path in FILES} == set(SUITES)

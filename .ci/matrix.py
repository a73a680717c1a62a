"""Tests the package with the releases that its requirements allow, and prints what passed.

    python .ci/matrix.py                       every environment, all tests (hours)
    python .ci/matrix.py oldest --slice        what CI runs of the oldest (minutes)
    python .ci/matrix.py servers               this environment's client against older servers
    python .ci/matrix.py --table docs/versions.md

Needs `uv`. Environments are kept in --environments and made anew when their requirements change;
each takes about 3 GB. The tests of one environment have two processes with a limit of memory each.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
MEMORY_BYTES = 24 * 2**30  # of addresses: TensorFlow reserves several times what it uses

# SQLAlchemy 2.1 breaks MLflow before 3.15.
NEW = ["mypy>=1.15", "pytest>=8.3", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "uv>=0.5", "pip"]
OLD = ["sqlalchemy<2.1", *NEW]
ENVIRONMENTS = {
    "newest": ["mlflow[auth]", "tensorflow", "keras", "keras-tuner", *NEW],
    "middle": ["mlflow[auth]==3.14.*", "tensorflow==2.20.*", "keras==3.12.*", *OLD],
    "oldest": [
        "mlflow[auth]==3.6.*",
        "tensorflow==2.18.*",
        "keras==3.8.*",
        "keras-tuner==1.4.7",
        *OLD,
    ],
}

# What meets other packages most, and is quick.
SLICE = [
    *(f"tests/compat/test_{name}.py" for name in ("keras", "mlflow", "system", "tested")),
    "tests/callbacks/test_mlflow_logger.py",
    "tests/compression/test_quantization.py",
    "tests/registry/test_command.py",
    "tests/tracking/test_copy_runs.py",
    "tests/tracking/test_delivery.py",
    "tests/tracking/test_run.py",
]
# What is asked of a server.
SERVED = [
    "tests/comparison/test_compare.py",
    "tests/faults/test_network.py",
    "tests/tracking/test_copy_runs.py",
    "tests/tracking/test_offline.py",
    "tests/tracking/test_run.py",
]
MEASURED = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"


@dataclass(frozen=True)
class Result:
    """What became of the tests of one folder.

    Attributes:
        passed: How many passed.
        failed: Those that failed, by name.
        skipped: Those that were skipped, with the reason.
    """

    passed: int
    failed: tuple[str, ...]
    skipped: tuple[str, ...]


def environment(name: str, home: Path) -> Path:
    """The interpreter of an environment, which is made if it is not there as it should be."""
    folder = home / name
    wanted = "\n".join([sys.version, *ENVIRONMENTS[name], (ROOT / "pyproject.toml").read_text()])
    stamp = folder / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        version = ".".join(map(str, sys.version_info[:2]))
        subprocess.run(["uv", "venv", "--quiet", "--python", version, str(folder)], check=True)
        install = ["uv", "pip", "install", "--quiet", "--python", str(folder / "bin/python")]
        project = f"{ROOT}[{','.join(extras())}]"
        subprocess.run([*install, "-e", project, *ENVIRONMENTS[name]], check=True)
        stamp.write_text(wanted)
    return folder / "bin/python"


def extras() -> list[str]:
    """The extras that tests of the package need; those for tools of a developer are left out."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return [each for each in known if each not in ("test", "docs", "benchmark")]


def versions(python: Path) -> str:
    """The releases that are installed there."""
    names = ("mlflow", "tensorflow", "keras", "keras-tuner")
    program = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
    found = subprocess.run(
        [python, "-c", program, *names], check=True, capture_output=True, text=True
    )
    return " · ".join(map(" ".join, zip(names, found.stdout.split(), strict=True)))


def run_tests(python: Path, places: list[str], server: Path | None) -> dict[str, Result]:
    """Runs tests, and counts them by their folder; a warning of an old release is none of ours."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [python, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "--tb=short"]
        command += ["-o", "filterwarnings=default", "-m", "not soak and not browser"]
        command += [f"--junitxml={report}", *places]
        known = dict(os.environ, MLFLOW_DISABLE_TELEMETRY="true", PYTHONPATH=str(ROOT))
        known["PATH"] = f"{python.parent}{os.pathsep}{known['PATH']}"
        if server is not None:
            known["MLFLOW_SERVER_PYTHON"] = str(server)
        limit = (MEMORY_BYTES, MEMORY_BYTES)
        subprocess.run(
            command,
            cwd=ROOT,
            env=known,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, limit),
        )
        return counted(ElementTree.parse(report).getroot())


def counted(report: ElementTree.Element) -> dict[str, Result]:
    """The results of pytest's report, by folder; a file that stands alone by its name."""
    passed: Counter[str] = Counter()
    failed, skipped = defaultdict(list), defaultdict(list)
    for case in report.iter("testcase"):
        names = case.get("classname", "").split(".") or [case.get("name", "")]
        folder = "/".join(names[1:2]) or "tests"
        name = f"{'/'.join(names)}::{case.get('name')}"
        reason = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed[folder].append(name)
        elif reason is not None:
            skipped[folder].append(f"{name}: {reason.get('message')}")
        else:
            passed[folder] += 1
    return {
        folder: Result(passed[folder], tuple(failed[folder]), tuple(skipped[folder]))
        for folder in sorted({*passed, *failed, *skipped})
    }


def rows(name: str, found: dict[str, Result]) -> list[str]:
    """Lines of the table."""
    return [
        f"| {name} | {folder} | {each.passed} | {len(each.failed)} | {len(each.skipped)} |"
        for folder, each in found.items()
    ]


def write(table: Path, lines: dict[str, list[str]]) -> None:
    """Puts lines into the table of a page; those of other environments and folders stay."""
    text = table.read_text()
    start, end = text.index(MEASURED[0]) + len(MEASURED[0]), text.index(MEASURED[1])
    head, *old = text[start:end].splitlines() or [""]
    if not head.startswith("| environment"):
        head, old = "| environment | tests | passed | failed | skipped |", []
    rule, old = "|---|---|---:|---:|---:|", [line for line in old if not line.startswith("|--")]
    new = [line for each in lines.values() for line in each]
    measured = {tuple(line.split("|")[1:3]) for line in new}
    kept = [line for line in old if tuple(line.split("|")[1:3]) not in measured]
    body = sorted([*kept, *new])
    table.write_text(text[:start] + "\n".join([head, rule, *body]) + "\n" + text[end:])


def main() -> int:
    """The command line; the exit code says whether all passed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*ENVIRONMENTS, "servers"], metavar="name")
    parser.add_argument("--slice", action="store_true", help="the few tests that CI runs")
    parser.add_argument("--tests", nargs="+", default=["tests"], help="files and folders")
    parser.add_argument("--table", type=Path, help="a page to write the counts to")
    parser.add_argument(
        "--environments",
        type=Path,
        default=Path.home() / ".cache" / "mlflow_keras_adv" / "environments",
    )
    given = parser.parse_args()
    failed, lines = [], {}
    for name in given.names or [*ENVIRONMENTS, "servers"]:
        if name == "servers":
            tried = [
                (
                    f"client of {versions(Path(sys.executable))}; server {old}",
                    Path(sys.executable),
                    SERVED,
                    environment(old, given.environments),
                )
                for old in ("middle", "oldest")
            ]
        else:
            python = environment(name, given.environments)
            places = SLICE if given.slice else given.tests
            tried = [(f"{name}: {versions(python)}", python, places, None)]
        for title, python, places, server in tried:
            found = run_tests(python, places, server)
            lines[title] = rows(title, found)
            print(title, *lines[title], sep="\n")
            for each in found.values():
                failed += each.failed
                print(*(f"SKIPPED {reason}" for reason in each.skipped), sep="\n", end="")
    print(*(f"FAILED {name}" for name in failed), sep="\n")
    if given.table:
        write(given.table, lines)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

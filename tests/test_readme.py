"""What README says is true: its commands are CI's, its tables are complete.

That its example runs is in test_docs.
"""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block_after(marker: str) -> list[str]:
    """The lines of the fenced block that follows an HTML comment."""
    found = re.search(rf"^<!-- {marker} -->\n```bash\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert found, f"README has no block marked {marker}"
    return found[1].splitlines()


def test_the_commands_are_those_of_ci() -> None:
    assert block_after("run") == [
        "python3 -m venv .venv && . .venv/bin/activate",
        'pip install -e ".[compression,rl]"',
        "mlflow run . -e distill --env-manager local",
    ]
    assert block_after("test") == ['pip install -e ".[test]"', "pytest -n 2 --dist worksteal"]
    script = (ROOT / ".ci" / "run").read_text()
    assert script.index('"$folder/run.sh"') < script.index(".ci/entry_points.py")
    assert script.index(".ci/entry_points.py") < script.index('"$folder/test.sh"')


def test_every_entry_point_is_named() -> None:
    entry_points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    rows = re.findall(r"^\| [\w ]+ \| (`.*`) \|$", README.partition("## Entry points")[2], re.M)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(entry_points)


def test_every_page_is_linked() -> None:
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert pages - set(re.findall(r"\]\(([^)#]+)\)", README)) <= {"docs/index.md"}


def test_its_costs_are_those_of_the_page() -> None:
    """The numbers for fit, in the order of the three models."""
    page = (ROOT / "docs" / "benchmark.md").read_text()
    said = README.partition("## What it costs")[2]
    for logger in ("`MlflowLogger`, each step", "`mlflow.keras.MlflowCallback`, each step"):
        (row,) = re.findall(rf"^\| {re.escape(logger)} \|(.*)\|$", page, re.MULTILINE)
        for cell in row.split("|"):
            assert cell.split()[0] in said


def test_links_and_pictures_exist() -> None:
    links = re.findall(r"\]\(((?!https?:)[^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []

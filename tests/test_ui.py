"""What a person sees: `mlflow ui` after `mlflow run . -e distill`, in headless Chromium.

README's pictures are made here too, from a run with the default parameters:

    pytest tests/test_ui.py -k "chart_page or readme" --screenshots docs/images
"""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from tests import chromium
from tests.mlflow_run import ROOT, Recorded, copy_project, mlflow_run, new_shell
from tests.mlflow_server import free_port, wait_until_healthy

VARIANTS = ("teacher", "scratch", "distilled")
SECTIONS = ("batch", "final", "gradient", "optimizer", "train", "val")

pytestmark = chromium.MARKS


@pytest.fixture(scope="module")
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    if request.config.getoption("--screenshots") is None:
        return request.getfixturevalue("distill_store")
    folder = copy_project(tmp_path_factory.mktemp("picture"))
    return Recorded(folder, mlflow_run(folder))


@pytest.fixture(scope="module")
def runs(recorded: Recorded) -> dict[str, Run]:
    """By name; the run of `mlflow run` is `parent`."""
    assert recorded.run.returncode == 0, recorded.run.stderr
    found = MlflowClient(recorded.uri).search_runs(["0"])
    return {
        run.info.run_name if "mlflow.parentRunId" in run.data.tags else "parent": run
        for run in found
    }


@pytest.fixture(scope="module")
def address(recorded: Recorded) -> Iterator[str]:
    """Of `mlflow ui` in the folder of the run."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "ui", "--port", str(port), "--workers", "1"]
    environment = new_shell(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")  # seven processes fewer
    with (recorded.folder / "ui.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=recorded.folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # its own session: it starts a server
            process.wait(timeout=30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.launched() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1100, "height": 1800}, device_scale_factor=1.4)
    page.set_default_timeout(60_000)
    yield page
    page.close()


def open_page(page: Page, address: str, path: str) -> None:
    """Opens a page of experiment 0, without the panels at its sides."""
    page.goto(f"{address}/#/experiments/0/{path}")
    page.get_by_role("button", name="Close", exact=True).click()  # the assistant
    page.get_by_role("button", name="Toggle sidebar").click()


def section(page: Page, name: str) -> Locator:
    headers = page.get_by_test_id("experiment-view-compare-runs-section-header")
    return headers.filter(has_text=re.compile(rf"^{name}\("))


def scrolled_to(page: Page, key: str) -> Locator:
    """The chart of a metric; one that is out of view is not rendered."""
    section(page, key.partition("/")[0]).scroll_into_view_if_needed()
    cards = page.get_by_test_id("experiment-view-compare-runs-card")
    card = cards.filter(has=page.get_by_text(key, exact=True))
    card.scroll_into_view_if_needed()
    return card


def expect_curves(card: Locator) -> None:
    """Waits until each nested run has its curve, through several points."""
    curves = card.locator(".scatterlayer .js-line")
    for number in range(len(VARIANTS)):
        expect(curves.nth(number)).to_have_attribute("d", re.compile(r"^M[\d.,]+[LHV]"))


def test_the_chart_page_lines_the_nested_runs_up_by_section(
    page: Page,
    address: str,
    runs: dict[str, Run],
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    open_page(page, address, "runs?workflowType=machine_learning&compareRunsMode=CHART")
    parent = page.get_by_role("row").filter(has_text=runs["parent"].info.run_name)
    parent.get_by_role("button").click()  # expands it

    for name in VARIANTS:
        expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()
    keys = {key for run in runs.values() for key in run.data.metrics}
    charts = Counter(key.rpartition("/")[0] for key in keys)
    for name in SECTIONS:
        expect(section(page, name)).to_have_text(re.compile(rf"^{name}\({charts[name]}\)"))

    for key in ("batch/loss", "gradient/norm", "optimizer/learning_rate", "val/accuracy"):
        card = scrolled_to(page, key)
        for name in VARIANTS:
            expect(card.get_by_text(f"{name} ({key})")).to_be_visible()
        expect_curves(card)
    bars = scrolled_to(page, "final/accuracy").locator(".barlayer .point")
    expect(bars).to_have_count(1 + len(VARIANTS))
    expect_curves(scrolled_to(page, "batch/loss"))

    page.screenshot(path=tmp_path / "runs.png")
    if folder := pytestconfig.getoption("--screenshots"):
        take_picture(page, folder / "runs.png")


def test_the_lines_of_readme_lead_to_the_curves(
    page: Page,
    address: str,
    runs: dict[str, Run],
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    (written,) = re.findall(
        r"<http://127\.0\.0\.1:5000(/#/\S+)>", (ROOT / "docs" / "index.md").read_text()
    )
    page.set_viewport_size({"width": 1400, "height": 930})
    link = page.get_by_role("link", name=runs["parent"].info.run_name, exact=True)
    parent = page.get_by_role("row").filter(has=link)

    page.goto(address)  # by hand, from where `mlflow ui` opens
    page.get_by_role("button", name="Model training", exact=True).click()
    page.get_by_role("link", name="Experiments", exact=True).first.click()
    page.get_by_role("link", name="Default", exact=True).first.click()
    expect(parent).to_be_visible()
    page.locator("label").filter(has=page.locator("input[value=CHART]")).click()
    expect(section(page, "final")).to_be_visible()
    by_hand = page.url

    page.evaluate("localStorage.clear()")  # the switch is remembered
    page.goto("about:blank")
    page.goto(address + written)
    expect(parent).to_be_visible()
    expect(section(page, "final")).to_be_visible()
    where, _, wanted = written.partition("?")
    for reached in (by_hand, page.url):
        assert reached.startswith(f"{address}{where}?")
        assert set(wanted.split("&")) <= set(reached.partition("?")[2].split("&"))
    page.get_by_role("button", name="Close", exact=True).click()  # the assistant
    parent.get_by_role("button").click()  # the +
    for name in VARIANTS:
        expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()
    expect_curves(scrolled_to(page, "batch/loss"))

    page.mouse.move(300, 700)  # where nothing shows that it is pointed at
    file = (pytestconfig.getoption("--screenshots") or tmp_path) / "window.png"
    page.screenshot(path=file, animations="disabled")
    Image.open(file).convert("RGB").quantize(128).save(file, optimize=True)


def take_picture(page: Page, path: Path) -> None:
    """The charts that say most, those of steps as wide as the page, in a file of few colors."""
    search = page.get_by_placeholder("Search metric charts")
    search.fill("batch|gradient|final/(accuracy|agreement|latency_ms_p50)|val/(accuracy|loss)")
    expect(section(page, "train")).to_be_hidden()
    for key, right in (("batch/loss", 999), ("gradient/norm", 999), ("val/accuracy", 100)):
        resize(page, scrolled_to(page, key), right, -60)
    resize(page, scrolled_to(page, "final/accuracy"), 0, -60)
    page.mouse.wheel(0, -9999)
    page.mouse.move(150, 900)  # where nothing shows that it is pointed at
    for key in ("batch/loss", "gradient/norm", "val/accuracy", "val/loss"):
        expect_curves(scrolled_to(page, key))
    bottom = scrolled_to(page, "val/loss").bounding_box()
    clip = {"x": 48, "y": 0, "width": 1052, "height": bottom["y"] + bottom["height"] + 12}
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path, clip=clip, animations="disabled")
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


def resize(page: Page, card: Locator, right: float, down: float) -> None:
    """Drags the lower right corner of a chart by pixels."""
    handle = card.locator("..").get_by_test_id("draggable-card-resize-handle")
    handle.scroll_into_view_if_needed()
    before = card.bounding_box()
    handle.hover()
    box = handle.bounding_box()
    page.mouse.down()
    page.mouse.move(box["x"] + right, box["y"] + down, steps=10)
    page.mouse.up()
    assert card.bounding_box() != before


def test_the_page_of_the_parent_begins_with_the_result(
    page: Page, address: str, runs: dict[str, Run]
) -> None:
    parent = runs["parent"]
    open_page(page, address, f"runs/{parent.info.run_id}")

    result = parent.data.tags["mlflow.note.content"].splitlines()[0]
    expect(page.get_by_text(result, exact=True)).to_be_visible()
    for name in VARIANTS:
        expect(page.get_by_role("link", name=name)).to_be_visible()
    for key, value in parent.data.metrics.items():
        if key.startswith("final/"):
            row = page.get_by_role("row").filter(has=page.get_by_role("link", name=key, exact=True))
            row.scroll_into_view_if_needed()
            expect(row).to_contain_text(f"{value:.6g}"[:6])


def test_the_models_tab_lists_the_three_with_their_accuracy_on_the_dataset(
    page: Page, address: str, runs: dict[str, Run]
) -> None:
    page.set_viewport_size({"width": 2000, "height": 800})  # a column out of view is not rendered
    open_page(page, address, "models?workflowType=machine_learning")

    for name in VARIANTS:
        accuracy = f"{runs[name].data.metrics['final/accuracy']:.6f}"
        expect(page.get_by_role("link", name=name, exact=True).first).to_be_visible()
        expect(page.get_by_text(re.compile(f"^{re.escape(accuracy[:-1])}")).first).to_be_visible()
    expect(page.get_by_text(re.compile(r"digits \(#")).first).to_be_visible()

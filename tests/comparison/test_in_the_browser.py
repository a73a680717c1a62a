"""What a person sees of a comparison, in headless Chromium: MLflow's pages, and the page on disk.

README's and the docs' pictures are made here too:

    pytest tests/comparison/test_in_the_browser.py --screenshots docs/images
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from PIL import Image
from playwright.sync_api import Browser, Page, expect

import mlflow_keras_adv as mka
from mlflow_keras_adv.comparison.groups import group_by_seed
from mlflow_keras_adv.comparison.histories import read_curves
from mlflow_keras_adv.comparison.page import Contents, render
from mlflow_keras_adv.comparison.table import deciding_metric, sort_groups
from mlflow_keras_adv.comparison.view import view_address
from tests import chromium
from tests.comparison import made_runs
from tests.comparison.test_page import EVIL

NAMES = list(made_runs.TECHNIQUES)
Keep = Callable[..., None]

pytestmark = chromium.MARKS


@dataclass(frozen=True)
class Compared:
    """What is on the server."""

    server: str
    experiment: str
    parent: str
    runs: dict[str, str]
    address: str


@pytest.fixture(scope="module")
def compared(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compared]:
    """A parent with six nested runs, two versions of a model with aliases, and a prepared view."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server)
        client = MlflowClient()
        experiment = client.create_experiment("digits")
        parent = client.create_run(experiment, run_name="compress").info.run_id
        runs = {
            name: made_runs.log_technique(client, experiment, name, 0, parent) for name in NAMES
        }
        client.set_terminated(parent)
        for number, run_id in enumerate(runs.values()):
            file = tmp_path_factory.mktemp("figure") / "layers.png"
            heat_map(number).savefig(file)
            client.log_artifact(run_id, file, "gradients")
        client.create_registered_model("digits")
        for name, alias in (("teacher", "previous_champion"), ("int8", "champion")):
            version = client.create_model_version("digits", f"runs:/{runs[name]}/model", runs[name])
            client.set_registered_model_alias("digits", alias, version.version)
        address = view_address(
            [client.get_run(run_id) for run_id in runs.values()],
            name="compress: six techniques",
            score="final/accuracy",
            directions={},
            parent_run_id=parent,
        )
        assert address is not None
        yield Compared(server, experiment, parent, runs, address)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.launched() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    opened = []

    def new(address: str, width: int = 1300, height: int = 1000, **options: Any) -> Page:
        page = browser.new_page(viewport={"width": width, "height": height}, **options)
        opened.append(page)
        page.set_default_timeout(60_000)
        page.goto(address)
        return page

    yield new
    for page in opened:
        page.close()


@pytest.fixture
def keep(request: pytest.FixtureRequest, tmp_path: Path) -> Keep:
    """Keeps a screenshot, in a small file."""
    folder = request.config.getoption("--screenshots") or tmp_path

    def screenshot(page: Page, name: str, **options: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.png"
        page.screenshot(path=path, animations="disabled", **options)
        Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)

    return screenshot


def heat_map(number: int) -> Figure:
    figure = Figure(figsize=(4, 3), layout="constrained")
    rows = [[(number + 3) ** 0.3 / (1 + row + step / 9) for step in range(40)] for row in range(6)]
    axes = figure.subplots()
    axes.imshow(rows, aspect="auto", vmin=0, vmax=1.8)
    axes.set(title="gradient norm", xlabel="step", ylabel="layer")
    return figure


def without_panels(page: Page) -> None:
    page.get_by_role("button", name="Close", exact=True).click()  # the assistant
    page.get_by_role("button", name="Toggle sidebar").click()


def test_nested_runs_are_expanded_in_the_list(
    compared: Compared, open_page: Callable[..., Page], keep: Keep
) -> None:
    where = f"{compared.server}/#/experiments/{compared.experiment}/runs"
    page = open_page(f"{where}?workflowType=machine_learning&compareRunsMode=TABLE")
    without_panels(page)
    parent = page.get_by_role("row").filter(has_text="compress")
    parent.get_by_role("button").first.click()
    for name in NAMES:
        expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()
    keep(page, "run_list")


def test_the_prepared_view_shows_the_nested_runs_and_the_right_charts(
    compared: Compared, open_page: Callable[..., Page], keep: Keep
) -> None:
    page = open_page(compared.address, height=1500)
    without_panels(page)
    for name in NAMES:  # nobody has expanded anything
        expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()
    headers = page.get_by_test_id("experiment-view-compare-runs-section-header")
    for place, name in enumerate(("Result", "Result over cost", "Curves", "Steps and gradients")):
        expect(headers.nth(place)).to_have_text(re.compile(rf"^{name}\W*(\(\d+\))?\W*Add chart"))
    cards = page.get_by_test_id("experiment-view-compare-runs-card")
    accuracy = cards.filter(has=page.get_by_text("final/accuracy", exact=True)).first
    expect(accuracy.locator(".barlayer .point")).to_have_count(len(NAMES))
    size = cards.filter(has_text="final/gzip_bytes vs. final/accuracy").first
    size.scroll_into_view_if_needed()
    expect(size.locator(".scatterlayer .point")).to_have_count(len(NAMES))
    curves = cards.filter(has=page.get_by_text("val/accuracy", exact=True)).first
    curves.scroll_into_view_if_needed()
    lines = curves.locator(".scatterlayer .js-line")
    expect(lines.nth(len(NAMES) - 1)).to_have_attribute("d", re.compile(r"^M[\d.,]+[LHV]"))
    page.mouse.move(150, 1400)  # where nothing shows that it is pointed at
    page.mouse.wheel(0, -9999)
    expect(accuracy.locator(".barlayer .point").first).to_be_visible()
    keep(page, "prepared_view")


def test_several_runs_are_compared_with_parallel_coordinates(
    compared: Compared, open_page: Callable[..., Page], keep: Keep
) -> None:
    ids = json.dumps(list(compared.runs.values()))
    page = open_page(
        f'{compared.server}/#/compare-runs?runs={ids}&experiments=["{compared.experiment}"]'
    )
    without_panels(page)
    expect(page.get_by_role("tab", name="Parallel Coordinates Plot")).to_be_visible()
    for name in NAMES:
        expect(page.get_by_role("cell", name=name, exact=True).first).to_be_attached()
    for axis in ("lr", "width", "final/accuracy"):
        title = page.locator("svg text").filter(has_text=re.compile(f"^{axis}$"))
        expect(title.first).to_be_visible()
    page.wait_for_timeout(1000)  # the lines are drawn a little later
    keep(page, "compare_runs")


def test_the_page_of_a_model_shows_its_aliases(
    compared: Compared, open_page: Callable[..., Page], keep: Keep
) -> None:
    page = open_page(f"{compared.server}/#/models/digits", height=700)
    without_panels(page)
    for version, alias in ((1, "previous_champion"), (2, "champion")):
        row = page.get_by_role("row").filter(has_text=f"Version {version}")
        expect(row.get_by_text(alias).first).to_be_visible()
    keep(page, "model_aliases")


@pytest.fixture(scope="module")
def page_file(compared: Compared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the runs on the server, with seeds, as `compare` makes it."""
    client = MlflowClient()
    ids = [
        made_runs.log_technique(client, compared.experiment, name, seed)
        for name in NAMES
        for seed in (1, 2)
    ]
    path = tmp_path_factory.mktemp("page") / "page.html"
    mka.compare([*compared.runs.values(), *ids], output=path, log=False)
    return path


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [("compare", 1200, "light"), ("compare_dark", 1200, "dark"), ("compare_phone", 390, "light")],
)
def test_the_page_opens_from_disk(
    name: str,
    width: int,
    scheme: str,
    page_file: Path,
    open_page: Callable[..., Page],
    keep: Keep,
) -> None:
    page = open_page("about:blank", width, 900, color_scheme=scheme)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    assert asked[0] == page_file.as_uri()
    assert all(url.startswith("data:image/webp;base64,") for url in asked[1:])

    rows = page.locator("#results tbody tr")
    expect(rows).to_have_count(len(NAMES))
    expect(rows.first.locator("th")).to_have_text("teacher")
    expect(rows.first.locator("td").first).to_have_text("3")
    expect(page.locator("#curves .band").first).to_be_attached()
    expect(page.locator("#pictures img")).to_have_count(len(NAMES))
    assert page.locator("#pictures img").first.evaluate("image => image.naturalWidth") > 100
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", paper)[:3])) > 384
    assert light is (scheme == "light")
    # Nothing sticks out at the side: tables scroll in their own box.
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for text in page.locator("svg text").all()[:8]:
        box = text.bounding_box()
        assert box is not None
        assert box["height"] >= 9  # px: can be read on a phone too
    keep(page, name, full_page=name != "compare_phone")


def test_the_page_is_printed_on_white_and_in_full(
    page_file: Path, open_page: Callable[..., Page]
) -> None:
    page = open_page(page_file.as_uri(), color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    boxes = page.locator(".scroll")
    assert boxes.count()
    for box in boxes.all():
        assert box.evaluate("box => getComputedStyle(box).overflow") == "visible"
    expect(page.locator("nav")).to_be_hidden()


def test_500_runs_and_what_strangers_wrote_can_be_read(
    open_page: Callable[..., Page], tmp_path: Path, keep: Keep
) -> None:
    selection = made_runs.many(500)
    for run, text in zip(selection.runs, EVIL.values(), strict=False):
        run.info._run_name = text
        run.data._params["lr"] = text
    groups = group_by_seed(selection)
    score = deciding_metric(groups, {})
    contents = Contents("500 runs", "today", sort_groups(groups, score, {}), score, {})
    path = tmp_path / "page.html"
    path.write_text(render(contents))

    page = open_page("about:blank", 1200, 900, color_scheme="dark")
    said = []
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.goto(path.as_uri())
    expect(page.locator("#results tbody tr")).to_have_count(500)
    assert said == []
    assert page.locator("script, img, iframe").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 1200
    box = page.locator("#results .scroll").bounding_box()
    assert box is not None
    assert box["height"] < 900  # it scrolls in its box
    keep(page, "compare_500")


def test_a_server_is_asked_once_for_a_hundred_curves(
    compared: Compared, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow_keras_adv.comparison import histories

    asked = []
    http_request = histories.http_request

    def counted(*arguments: Any, **options: Any) -> Any:
        asked.append(options["params"]["run_ids"])
        return http_request(*arguments, **options)

    monkeypatch.setattr(histories, "http_request", counted)
    ids = list(compared.runs.values())
    curves = read_curves(ids, ["val/loss"])["val/loss"]
    assert set(curves) == set(ids)
    for run_id, series in curves.items():
        assert series.equals(mka.curve("val/loss", run=run_id).rename(None))
    read_curves(ids * 20, ["val/loss"])
    assert [len(each) for each in asked] == [6, 100, 20]

"""What a person sees of a search: its trials nested in it, side by side, in headless Chromium.

README's picture is made here too:

    pytest tests/test_tuner_ui.py --screenshots docs/images
"""

import re
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

import mlflow_keras_adv as mka
from tests import chromium
from tests.tuner.searches import formula_search

TRIALS = 9  # with the search itself the ten runs that the page draws unasked

pytestmark = [
    *chromium.MARKS,
    pytest.mark.filterwarnings(
        "ignore:currentThread:DeprecationWarning", "ignore:getName:DeprecationWarning"
    ),
]


@pytest.fixture
def page() -> Iterator[Page]:
    with chromium.launched() as browser:
        page = browser.new_page(viewport={"width": 1300, "height": 1000}, device_scale_factor=1.2)
        page.set_default_timeout(60_000)
        yield page


def choose(page: Page, field: Locator, *names: str) -> None:
    """Chooses from a list of which only the part in view is rendered; names in its order."""
    field.click()
    shown = page.locator(".du-bois-light-select-dropdown:visible")
    for name in names:
        entry = shown.locator(f".du-bois-light-select-item-option[title='{name}']")
        shown.hover()
        for _ in range(100):
            if entry.count():
                break
            page.mouse.wheel(0, 60)
            page.wait_for_timeout(50)
        entry.click()
    page.keyboard.press("Escape")
    expect(shown).to_be_hidden()


def test_the_trials_are_nested_in_their_search_and_can_be_compared(
    server: str,
    page: Page,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pytestconfig: pytest.Config,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    experiment_id = mlflow.MlflowClient().create_experiment("search in the UI")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment_id)
    tuner = formula_search(tmp_path, max_trials=TRIALS)
    mka.track_search(tuner, name="search").search(verbose=0)

    where = f"experiments/{experiment_id}/runs"
    page.goto(f"{server}/#/{where}?workflowType=machine_learning&compareRunsMode=CHART")
    page.get_by_role("button", name="Close", exact=True).click()  # the assistant
    page.get_by_role("button", name="Toggle sidebar").click()
    parent = page.get_by_role("row").filter(has_text="search")
    parent.get_by_role("button").first.click()  # expands it
    for number in range(TRIALS):
        name = f"trial-{number:03d}"
        expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()

    page.get_by_role("button", name="Add chart").first.click()
    page.get_by_role("menuitem", name="Parallel coordinates").click()
    dialog = page.get_by_role("dialog")
    fields = dialog.get_by_role("combobox")
    choose(page, fields.nth(1), "kind", "x")
    choose(page, fields.nth(2), "trial/score")
    dialog.get_by_role("button", name="Add chart").click()
    expect(dialog).to_be_hidden()
    card = page.get_by_test_id("experiment-view-compare-runs-card").filter(
        has_text=re.compile("Parallel", re.IGNORECASE)
    )
    card.scroll_into_view_if_needed()
    for axis in ("kind", "x", "trial/score"):
        expect(card.get_by_text(axis, exact=True).first).to_be_visible()

    page.mouse.move(150, 990)  # where nothing shows that it is pointed at
    page.wait_for_timeout(1000)  # the chart's lines fade in
    path = (pytestconfig.getoption("--screenshots") or tmp_path) / "search.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path, animations="disabled")
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)

    page.goto(f"{server}/#/{where.removesuffix('/runs')}/runs/{run_id_of('search', experiment_id)}")
    note = re.compile(r"^Best default_objective .* by trial-00\d \(lower is better\)")
    expect(page.get_by_text(note).first).to_be_visible()


def run_id_of(name: str, experiment_id: str) -> str:
    query = f"attributes.run_name = '{name}'"
    (run,) = mlflow.MlflowClient().search_runs([experiment_id], query)
    return run.info.run_id

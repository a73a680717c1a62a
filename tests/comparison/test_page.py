"""The page: what it shows, and that nothing in it can run, load or pretend."""

import math
import re
from html.parser import HTMLParser
from typing import Any

import pandas as pd
import pytest

from mlflow_keras_adv.comparison.charts import cost_chart, curves_chart
from mlflow_keras_adv.comparison.groups import Group, group_by_seed
from mlflow_keras_adv.comparison.logged_tables import LoggedTable, TableSeries
from mlflow_keras_adv.comparison.page import MAX_COLOURS, Contents, render
from mlflow_keras_adv.comparison.pictures import Picture
from mlflow_keras_adv.comparison.selection import Selection
from mlflow_keras_adv.comparison.table import deciding_metric, sort_groups
from tests.comparison import made_runs

EVIL = {
    "tag": "<script>alert(1)</script>",
    "attribute": '" onload="alert(1)" x=\'',
    "picture": "<img src=x onerror=alert(1)>",
    "style": "</style><b>b</b>",
    "svg": "</title></svg><svg onload=alert(1)>",
    "template": "{{ 7 * 7 }}{% for x in y %}",
    "path": "../../../etc/passwd",
    "lines": "first\nsecond\r\nthird\x00",
    "link": "javascript:alert(1)",
    "long": "<" * 8000,
    "direction": "safe\u202egnp.exe",
}


class Reader(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_data(self, data: str) -> None:
        self.text.append(" ".join(data.split()))


def sorted_groups(selection: Selection) -> tuple[list[Group], str | None]:
    groups = group_by_seed(selection)
    score = deciding_metric(groups, {})
    return sort_groups(groups, score, {}), score


def page_of(selection: Selection, curves: Any = None, **more: Any) -> str:
    groups, score = sorted_groups(selection)
    contents = {"experiments": selection.experiments, **more}
    return render(Contents("title", "today", groups, score, curves or {}, **contents))


@pytest.mark.quick
def test_the_page_shows_results_costs_curves_gradients_params_and_runs() -> None:
    selection, curves = made_runs.in_memory()
    pictures = [Picture("x.png", {0: "data:image/webp;base64,"})]
    tables = [TableSeries("layers.json", {0: LoggedTable(["layer"], [["dense_7"]], (9, 1))})]
    page = Reader(page_of(selection, curves, pictures=pictures, tables=tables))

    for name in made_runs.TECHNIQUES:
        assert page.text.count(name) >= 6  # results, legends, its gradients, params, its runs
    sections = {"results", "cost", "curves", "gradients", "params", "pictures", "tables", "runs"}
    assert sections <= {value for _, name, value in page.attributes if name == "id"}
    assert {"dense_7", "cut; in all rows: 9, columns: 1"} <= set(page.text)
    assert {"lr", "width"} <= set(page.text)
    assert "epochs" not in page.text  # the same everywhere
    # 2 costs, FLOPs, parameters; 3 curves; 6 variants; batch/loss and the rate
    assert page.tags.count("svg") == 4 + 3 + len(made_runs.TECHNIQUES) + 2
    assert page.text.count("FINISHED") == len(selection.runs)


def test_nothing_that_strangers_wrote_becomes_a_part_of_the_page() -> None:
    runs = []
    for number, (kind, text) in enumerate(EVIL.items()):
        metrics = {
            "final/accuracy": number / 100,
            "final/gzip_bytes": 10.0 + number,
            text[:100]: 1.0,
        }
        run = made_runs.entity(text, text, metrics, {kind: text, text: text, "seed": text})
        run.info._status = text
        runs.append(run)
    selection = Selection(runs, experiments={"1": EVIL["tag"], "2": EVIL["attribute"]})
    curve = {run.info.run_id: pd.Series({1: 0.1, 2: 0.2}) for run in runs}
    texts = list(EVIL.values())
    tables = [TableSeries(text, {0: LoggedTable(texts, [texts], (1, 1))}) for text in texts]
    more = {"notes": texts, "tables": tables, "address": EVIL["link"]}
    kept = page_of(selection, {"val/loss": curve}, **more)
    harmless = Selection(
        [made_runs.entity("0" * 32, "a", {"final/accuracy": n / 9}) for n in range(2)]
    )

    page, other = Reader(kept), Reader(page_of(harmless))
    assert EVIL["tag"] in page.text  # as text
    assert set(page.tags) - set(other.tags) <= {"svg", "path", "circle", "line", "figure", "h3"} | {
        *("figcaption", "ul", "li", "text", "title", "b", "i", "a", "section", "p", "div", "small"),
        *("strong", "span", "td", "th", "code", "tr"),
    }
    assert not {"script", "img", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name, value)
        assert name not in ("src", "srcset", "xlink:href")
        if name == "href":
            assert value.startswith("#")  # the address is not one of the web
        if name == "style":
            assert value.removeprefix("--share:").removesuffix("%").isdigit()
    assert page.tags.count("style") == 1
    assert not {"\u202e", "\x00"} & set(kept)
    assert len(kept) < 300_000  # of 8000 characters 80 are shown


def test_the_policy_of_the_page_lets_nothing_load_or_run() -> None:
    selection, curves = made_runs.in_memory()
    html = page_of(selection, curves, address="http://127.0.0.1:5000/#/experiments/1/runs")
    page = Reader(html)
    (policy,) = [v for t, n, v in page.attributes if t == "meta" and "default-src" in v]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert "script" not in page.tags
    links = [value for _, name, value in page.attributes if name == "href"]
    assert [each for each in links if not each.startswith("#")] == [
        "http://127.0.0.1:5000/#/experiments/1/runs"
    ]
    assert not re.search(r"url\(|@import", html)


def test_500_runs_are_all_in_the_tables_and_what_is_left_out_is_said() -> None:
    html = page_of(made_runs.many(500))
    page = Reader(html)
    rows = page.tags.count("tr")
    assert rows == 3 * (500 + 1)  # results, params, runs
    dots = [v for t, n, v in page.attributes if t == "circle" and n == "class"]
    assert len(dots) == 2 * 500
    assert sum(each.endswith("fx") for each in dots) == 2 * (500 - MAX_COLOURS)
    assert any("500 variants the 10 best" in text for text in page.text)
    assert len(html) < 1_000_000  # 4.5e5 measured
    details = [(n, v) for t, n, v in page.attributes if t == "details"]
    assert ("open", "") not in details


def test_more_metrics_and_params_than_a_page_can_show_are_said() -> None:
    runs = [
        made_runs.entity(
            f"{number:032x}",
            f"run{number}",
            {f"final/m{each}": float(number) for each in range(60)},
            {f"p{each}": str(number) for each in range(60)},
        )
        for number in range(3)
    ]
    page = Reader(page_of(Selection(runs)))
    assert any("Of 60 metrics the page shows 24" in text for text in page.text)
    assert any("Of 60 params the page shows 24" in text for text in page.text)


def test_a_value_that_some_runs_lack_or_is_no_number_is_seen() -> None:
    runs = [
        made_runs.entity("0" * 32, "a", {"final/accuracy": 0.5}, {"seed": "0"}),
        made_runs.entity("1" * 32, "a", {}, {"seed": "1"}),
        made_runs.entity("2" * 32, "b", {"final/accuracy": math.nan}),
        made_runs.entity("3" * 32, "c", {"final/accuracy": 1.79e308}),
    ]
    page = Reader(page_of(Selection(runs)))
    assert "(1 of 2)" in page.text
    assert {"NaN", "∞"} <= set(page.text)


def test_a_curve_over_seeds_is_a_mean_in_a_band_and_breaks_where_there_is_no_number() -> None:
    selection, _ = made_runs.in_memory()
    group = group_by_seed(selection)[0]
    ids = [run.info.run_id for run in group.runs]
    histories = {
        ids[0]: pd.Series({0: 0.0, 10: 1.0}),
        ids[1]: pd.Series({0: 2.0, 10: 3.0}),
    }
    chart = curves_chart("train/loss", [group], histories)
    assert chart is not None
    band, line = chart.marks
    assert (band.kind, line.kind) == ("band", "line")
    middle = (chart.y_axis.place(1.0), chart.y_axis.place(2.0))
    assert line.path == f"M52.0 {middle[0]}L348.0 {middle[1]}"
    broken = pd.Series({0: 1.0, 1: 2.0, 2: math.nan, 3: 1.0, 4: 1.79e308})
    chart = curves_chart("train/loss", [group], {ids[0]: broken})
    assert chart is not None
    assert chart.marks[0].path.count("M") == 2
    assert "nan" not in chart.marks[0].path
    assert curves_chart("train/loss", [group], {}) is None


@pytest.mark.parametrize(
    ("score", "sign", "front"),
    [("final/accuracy", 1, ["b", "c"]), ("final/loss", -1, ["b", "a"])],
)
def test_the_dashed_line_goes_through_those_that_none_beats(
    score: str, sign: int, front: list[str]
) -> None:
    sizes = {"a": 30.0, "b": 10.0, "c": 40.0, "d": 50.0}
    scores = {"a": 0.2, "b": 0.5, "c": 0.9, "d": 0.6}
    runs = [
        made_runs.entity(f"{n:032x}", name, {score: scores[name], "final/gzip_bytes": sizes[name]})
        for n, name in enumerate(sizes)
    ]
    chart = cost_chart(score, "final/gzip_bytes", group_by_seed(Selection(runs)), 2, sign)
    assert chart is not None
    line, *dots = chart.marks
    (x, y), *steps = [
        (chart.x_axis.place(sizes[name]), chart.y_axis.place(scores[name])) for name in front
    ]
    assert line.path == f"M{x} {y}" + "".join(f"H{x}V{y}" for x, y in steps)
    assert sorted(dot.colour for dot in dots) == [-1, -1, 0, 1]

"""What others have named is shown as text, whatever it is."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest

from mlflow_keras_adv.registry.evidence import Evidence, one_line
from mlflow_keras_adv.registry.gates import Judged
from mlflow_keras_adv.registry.samples import Measurements, Samples

HOSTILE = [
    "<script>alert(1)</script>",
    "\" onmouseover='alert(1)'",
    "line\nbreak\r\n\x1b[2J`code`",
    "../../../etc/passwd",
    "x" * 8000,
    "</td></table><img src=x onerror=alert(1)>",
    "{title} {0} %s",
]


def evidence(text: str) -> Evidence:
    measured = Measurements({text: float("nan"), "size": float("inf")}, problem=text)
    return Evidence(
        name=text,
        candidate=text,
        version=text,
        champion=text,
        samples=Samples(np.zeros(3), None, text, text),
        measured={"candidate": measured, "champion": Measurements()},
        facts={"candidate": {"run": text}},
        verdicts=[Judged(text, False, text)],
        reason=text,
        who=text,
        when=text,
    )


class Reader(HTMLParser):
    """Which tags a browser would see, and which attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {key for key, _ in attrs}


@pytest.mark.parametrize("text", HOSTILE)
def test_the_page_holds_nothing_but_its_own_markup(text: str) -> None:
    plain, hostile = Reader(evidence("plain").page()), Reader(evidence(text).page())
    assert hostile.seen == plain.seen
    assert hostile.attributes == plain.attributes
    assert "script" not in plain.seen | {"img", "link"}
    assert len(evidence(text).page()) < 20_000


@pytest.mark.parametrize("text", HOSTILE)
def test_a_line_is_a_line(text: str) -> None:
    for line in evidence(text).lines():
        assert line.isprintable()
        assert len(line) <= 500
    (row,) = evidence(text).markdown().splitlines()
    assert row.count("`") == 2


@pytest.mark.parametrize("text", HOSTILE)
def test_the_json_file_holds_it_whole(text: str) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    read = json.loads(json.dumps(evidence(text).plain()), parse_constant=refuse)
    assert read["reason"] == text
    assert read["models"]["candidate"]["metrics"] == {text: "nan", "size": "inf"}


def test_one_line_keeps_what_can_be_shown() -> None:
    assert one_line("größer als 3 µs") == "größer als 3 µs"
    assert one_line("a\nb") == "a b"

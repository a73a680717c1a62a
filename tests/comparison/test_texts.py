"""Numbers that can be read, and texts that can do no harm."""

import math

import pytest

from mlflow_keras_adv.comparison.axes import axis
from mlflow_keras_adv.comparison.texts import number, safe, short_number, with_spread


@pytest.mark.parametrize(
    ("value", "key", "text"),
    [
        (0.98765, "final/accuracy", "0.9877"),
        (412_345, "final/gzip_bytes", "412 kB"),
        (999_900, "final/size_bytes", "1 MB"),
        (37_898, "final/parameters", "37,898"),
        (1234.5678, "", "1235"),
        (12_345.6, "", "12,346"),
        (1.79e308, "", "∞"),
        (-1.79e308, "", "-∞"),
        (math.nan, "", "NaN"),
        (2e12, "", "2e+12"),
    ],
)
def test_numbers(value: float, key: str, text: str) -> None:
    assert number(value, key) == text


@pytest.mark.parametrize(
    ("mean", "std", "texts"),
    [
        (0.98348, 0.0051, ("0.983", "0.005")),
        (0.98348, 0.00123, ("0.9835", "0.0012")),
        (37.4, 12.0, ("37", "12")),
        (0.5, math.nan, ("0.5", "NaN")),
        (0.5, 0.0, ("0.5", "0")),
        (1.79e308, math.inf, ("∞", "∞")),
    ],
)
def test_a_mean_has_no_more_digits_than_its_spread(
    mean: float, std: float, texts: tuple[str, str]
) -> None:
    assert with_spread(mean, std) == texts


def test_ticks_of_large_and_small_numbers() -> None:
    assert [short_number(v) for v in (0, 0.25, 1e-5, 4000, 2.5e7)] == [
        *("0", "0.25", "1e-5", "4,000", "2.5e7"),
    ]
    assert short_number(20_000, "final/gzip_bytes") == "20 kB"


def test_a_text_is_one_line_of_printable_characters() -> None:
    assert safe("a\n\tb\x00\x1b[31mred\u202eevil\u2066x") == "a b [31mred evil x"
    long = safe("x" * 8000 + "end")
    assert len(long) == 80
    assert long.startswith("x" * 52)
    assert long.endswith("end")
    assert "…" in long


def test_an_axis_holds_all_values_that_have_a_place() -> None:
    found = axis([1.0, 3.0, math.nan, 1.79e308], 0, 100, margin=0.0)
    assert found is not None
    assert (found.place(1), found.place(2), found.place(3)) == (0, 50, 100)
    assert [text for _, text in found.ticks()] == ["1", "1.5", "2", "2.5", "3"]
    assert axis([math.nan], 0, 1) is None
    logarithmic = axis([1e-4, 1.0], 0, 100, margin=0.0)
    assert logarithmic is not None
    assert logarithmic.log
    assert logarithmic.place(1e-2) == 50
    assert {"0.0001", "0.01", "1"} <= {text for _, text in logarithmic.ticks()}
    same = axis([0.25, 0.25], 0, 100)
    assert same is not None
    assert same.place(0.25) == 50

import string

import numpy as np
import pytest
from mlflow.utils.validation import _validate_metric, _validate_param, _validate_tag

from mlflow_keras_adv.tracking.names import flatten, metric_key, same_param


@pytest.mark.parametrize(
    "name",
    [
        "batch/loss",
        "gradient/layer/dense_1/kernel",
        "val/top 5.accuracy-macro",
        "kernel:0",
        "αβ/größe",
        "..." + "x",
        "k" * 250,
    ],
)
def test_a_key_that_mlflow_accepts_is_unchanged_unless_it_starts_with_dots(name: str) -> None:
    assert metric_key(name) == (name if not name.startswith("..") else "_.x")


@pytest.mark.parametrize(
    "name",
    [
        "top_k(5)",
        "acc@5 [%]",
        "a//b",
        "/a/b",
        "//a",
        "///",
        "./a",
        "../a",
        "../../a",
        "a/../b",
        "a/../../b",
        "a/",
        "..",
        ".",
        "",
        "/",
        "line\nbreak\n",
        "tab\t,=+",
        string.printable,
        "k" * 251,
        "🙂" * 1000,
        "..." * 100,
    ],
)
def test_any_name_becomes_a_key_that_mlflow_accepts(name: str) -> None:
    key = metric_key(name)

    _validate_metric(key, 1.0, 0, 0)
    _validate_param(key, "value")
    _validate_tag(key, "value")
    assert metric_key(key) == key
    assert "\n" not in key


def test_long_names_that_differ_at_the_end_stay_apart() -> None:
    assert metric_key("k" * 300 + "a") != metric_key("k" * 300 + "b")


def test_a_nested_configuration_becomes_dotted_keys_with_plain_values() -> None:
    configuration = {
        "optimizer": {"name": "adam", "schedule": {"rate": np.float64(0.5), "steps": np.int64(3)}},
        "layers": [64, np.int32(32)],
        "shape": (28, 28),
        "classes": {"b", "a"},
        "table": np.array([[1, 2]]),
        "jit": True,
        "seed": None,
        "empty": {},
        "kind": object,
    }

    assert flatten(configuration) == {
        "optimizer.name": "adam",
        "optimizer.schedule.rate": 0.5,
        "optimizer.schedule.steps": 3,
        "layers": "[64, 32]",
        "shape": "[28, 28]",
        "classes": '["a", "b"]',
        "table": "[[1, 2]]",
        "jit": True,
        "seed": None,
        "empty": "{}",
        "kind": "<class 'object'>",
    }
    assert type(flatten(configuration)["optimizer.schedule.rate"]) is float


@pytest.mark.parametrize(
    ("stored", "value"),
    [
        ("0.001", 0.001),
        ("1e-3", 0.001),
        ("'1e-3'", 0.001),
        ("1e-05", 0.00001),
        ("3", 3.0),
        ("''", ""),
        ("", ""),
        ("True", True),
        ("true", True),
        ("'false'", False),
        ("None", None),
        ("nan", float("nan")),
        ("NaN", float("nan")),
        ("-inf", float("-inf")),
        ("digits", "digits"),
        ("'two words'", "two words"),
        ("two words", "two words"),
        ("""'it'"'"'s'""", "it's"),
        ("it's", "it's"),
        ("'[64,32]'", "[64, 32]"),
        ('{"a": 1}', '{"a":1}'),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_equal_spellings_of_a_param_are_the_same(stored: str, value: object) -> None:
    assert same_param(stored, value)


@pytest.mark.parametrize(
    ("stored", "value"),
    [
        ("0.001", 0.002),
        ("0.1", float(np.float32(0.1))),
        ("true", False),
        ("None", ""),
        ("''", None),
        ("digits", "mnist"),
        ("nan", 0.0),
        ("[64, 32]", "[32, 64]"),
        ("[64", "[65"),
        ("9007199254740993", 9007199254740992),
    ],
)
def test_different_params_are_not_the_same(stored: str, value: object) -> None:
    assert not same_param(stored, value)

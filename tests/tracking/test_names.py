import json
import string
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from mlflow.utils.validation import (
    MAX_TAG_VAL_LENGTH,
    _validate_metric,
    _validate_param,
    _validate_tag,
)

from mlflow_keras_adv.tracking.names import (
    KeyTable,
    flatten,
    metric_key,
    same_param,
)


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


def test_names_that_would_become_one_key_stay_apart_and_keep_theirs() -> None:
    table = KeyTable("metrics")

    first = table.of(["hit@5", "loss"])
    assert first.keys == {"hit@5": "hit_5", "loss": "loss"}
    assert (first.collided, first.pages) == ([], {"names.metrics": '{"hit_5": "hit@5"}'})
    second = table.of(["hit#5", "hit@5", "hit%5", "hit_5"])
    assert second.keys == {
        "hit_5": "hit_5.2",
        "hit#5": "hit_5.3",
        "hit@5": "hit_5",
        "hit%5": "hit_5.4",
    }
    assert [name for name, *_ in second.collided] == ["hit_5", "hit#5", "hit%5"]
    again = table.of(["hit_5", "hit#5", "hit@5"])
    assert again.keys == {"hit_5": "hit_5.2", "hit#5": "hit_5.3", "hit@5": "hit_5"}
    assert (again.collided, again.pages) == ([], {})


def test_in_one_call_a_name_that_is_fine_keeps_itself_as_key() -> None:
    assert KeyTable("metrics").of(["a//b", "a/b", "a/./b"]).keys == {
        "a//b": "a/b.2",
        "a/b": "a/b",
        "a/./b": "a/b.3",
    }


def test_a_key_that_was_given_out_is_not_given_to_a_name_that_looks_like_it() -> None:
    table = KeyTable("metrics")
    table.of(["a@", "a#"])
    assert table.of(["a_.2"]).keys == {"a_.2": "a_.2.2"}


@pytest.mark.parametrize("fill", ["k", "@"])
def test_long_names_that_collide_get_keys_that_mlflow_accepts(fill: str) -> None:
    table = KeyTable("metrics")
    names = [fill * length + end for length in (249, 300) for end in "@#%"]
    keys = table.of(names).keys
    assert len(set(keys.values())) == len(names)
    for key in keys.values():
        _validate_metric(key, 1.0, 0, 0)


def test_a_run_that_is_taken_up_again_gives_each_name_the_key_that_it_had() -> None:
    names = ["hit@5", "hit#5", "a/b", "a//b", "loss", "ü" * 300 + "@"]
    names += [f"{number}{end}" for number in range(300) for end in "@#"]
    before, tags = KeyTable("metrics"), {}
    keys = {}
    for name in names:
        keyed = before.of([name])
        keys |= keyed.keys
        tags |= keyed.pages
    assert set(tags) == {"names.metrics", "names.metrics.2", "names.metrics.3"}
    assert all(len(page) <= MAX_TAG_VAL_LENGTH for page in tags.values())

    for order in (names, names[::-1]):
        assert KeyTable("metrics", keys.values(), tags).of(order).keys == keys
    again = KeyTable("metrics", keys.values(), tags).of(["hit%5"])
    assert again.keys == {"hit%5": "hit_5.3"}
    assert tags | again.pages != tags
    assert "1@" in json.loads((tags | again.pages)["names.metrics"]).values()


def test_a_page_of_names_that_cannot_be_read_is_no_page() -> None:
    for page in ('{"hit_5": "hi', "7", "[1, 2]"):
        table = KeyTable("metrics", ["loss"], {"names.metrics": page})
        assert table.of(["loss", "hit@5"]).keys == {"loss": "loss", "hit@5": "hit_5"}


def test_many_threads_agree_on_the_keys() -> None:
    table = KeyTable("metrics")
    names = [f"{number}{end}" for number in range(50) for end in "@#%$"]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: table.of([name]).keys[name], names * 4))
    assert found[: len(names)] * 4 == found
    assert len(set(found)) == len(names)

"""Every public callable says what it takes, what it returns and what it raises."""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

import mlflow_keras_adv as mka
from mlflow_keras_adv.training import steps

Callable_ = tuple[str, Any]


def own_methods(cls: type) -> Iterator[Callable_]:
    """Methods that are of the class itself: what overrides one of Keras' is documented there."""
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", value)
        overrides = any(hasattr(base, name) for base in cls.__mro__[1:])
        if inspect.isfunction(function) and not name.startswith("_") and not overrides:
            yield f"{cls.__name__}.{name}", function


def public() -> Iterator[Callable_]:
    own = [name for name, each in vars(steps).items() if inspect.getmodule(each) is steps]
    of_steps = [name for name in own if not name.startswith("_")]
    litert = ["save_model", "log_model", "load_model"]
    for package, names in (
        (mka, mka.__all__),
        (mka.compression, mka.compression.__all__),
        (mka.registry, mka.registry.__all__),
        (mka.litert, litert),
        (steps, of_steps),
    ):
        for name in names:
            value = getattr(package, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                yield name, value
            if inspect.isclass(value):
                yield from own_methods(value)


# Made by a function of ours alone, so that nobody gives these arguments.
MADE = {"Run", "Technique"}


def sections(docstring: str) -> dict[str, str]:
    """What stands under each heading of a Google docstring, in lines that are not indented."""
    found = re.findall(r"^(\w+):\n((?:(?: {4}.*)?\n?)+)", inspect.cleandoc(docstring), re.M)
    return {heading: inspect.cleandoc(f"\n{text}") for heading, text in found}


def missing_in(name: str, value: Any) -> list[str]:
    described = sections(value.__doc__ or "")
    makes = vars(value).get("__init__") if inspect.isclass(value) else value
    if not inspect.isfunction(makes) or getattr(value, "_is_protocol", False):
        return []
    signature = inspect.signature(makes)
    told = described.get("Args", "") + "\n" + described.get("Attributes", "")
    entries = set(re.findall(r"^\*{0,2}(\w+)(?: \([^)]*\))?:", told, re.M))
    takes = [] if name in MADE else [each for each in signature.parameters if each != "self"]
    found = [f"the parameter {each}" for each in takes if each not in entries]
    gives = signature.return_annotation not in (None, "None", inspect.Signature.empty)
    if gives and not described.keys() & {"Returns", "Yields"}:
        found.append("what it returns")
    generated = dataclasses.is_dataclass(value)
    lines = [] if generated else inspect.getsource(inspect.unwrap(makes)).splitlines()
    raised = {each[1] for line in lines if (each := re.match(r" {4,12}raise (\w+Error)\b", line))}
    if any(re.match(r" {4,12}expect\(", line) for line in lines):
        raised.add("TypeError")
    nested = "MissingNumberError"  # of a gate, when it is asked
    return found + [
        f"that it raises {each}"
        for each in sorted(raised - {"AttributeError", nested})
        if each not in described.get("Raises", "")
    ]


@pytest.mark.parametrize(("name", "value"), [pytest.param(*each, id=each[0]) for each in public()])
def test_a_public_docstring_is_whole(name: str, value: Any) -> None:
    assert value.__doc__, name
    assert missing_in(name, value) == []


def test_the_check_sees_what_is_missing() -> None:
    def bad(first: int, second: int) -> int:
        """Adds.

        Args:
            first: One.
        """
        if first < 0:
            raise ValueError
        return first + second

    assert missing_in("bad", bad) == [
        "the parameter second",
        "what it returns",
        "that it raises ValueError",
    ]


def code_of(value: Any) -> str:
    (block,) = re.findall(r"```python\n(.*?) *```", inspect.cleandoc(value.__doc__), re.DOTALL)
    return textwrap.dedent(block)


def test_the_examples_of_a_measure_of_ones_own_run(
    experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
    y = x.sum(axis=1)
    given: dict[str, Any] = {"mka": mka, "keras": keras, "dataclasses": dataclasses}
    given |= {"registry": mka.registry, "x": x, "y": y, "x_test": x, "y_test": y}
    given["model"] = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    exec(code_of(mka.log_finished_model), given)
    run = mlflow.last_active_run().info.run_id
    assert mka.curve("final/within_10", run=run)[0] == 1.0
    for key in ("final/loss", "final/mse"):
        own = mka.curve(key, run=run)[0]
        evaluated = given["model"].evaluate(x, y, verbose=0, return_dict=True)
        assert own == pytest.approx(evaluated[key.removeprefix("final/")], rel=1e-4)
    assert len(mka.curve("final/root_mean_squared_error", run=run)) == 1
    with mka.track("candidate", log_system_metrics=False):
        given["info"] = mka.log_model(given["model"], name="prices", input_example=x[:2])
    exec(code_of(mka.registry.promote), given)
    (entry,) = mka.registry.history("prices")
    assert entry.what == "promoted", entry
    kept = MlflowClient().get_run(entry.run_id).data.metrics
    assert kept["final/within_10"] == 1.0

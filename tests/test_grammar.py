"""One grammar for every public call: what is logged comes first, the rest has a name."""

import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

import pytest

import mlflow_keras_adv as mka

# The run is what these are about, so it may come first.
OF_A_RUN = {"load_best", "logged_claims"}
# They say which run there is; everything else is given one.
OPEN_RUNS = {"track", "attach_run"}


def public() -> dict[str, inspect.Signature]:
    found: dict[str, Any] = {name: getattr(mka, name) for name in mka.__all__}
    for home in ("litert", "registry", "compression"):
        module = found.pop(home)
        own = {name: getattr(module, name) for name in getattr(module, "__all__", dir(module))}
        imported = {"id_of", "run_of", "log_saved", "fetched"}  # litert is a module of functions
        found |= {f"{home}.{name}": each for name, each in own.items() if name not in imported}
    for owner in (mka.Technique, mka.TradeOff, mka.Loop):
        found |= {f"{owner.__name__}.{name}": each for name, each in vars(owner).items()}
    return {
        name: inspect.signature(each)
        for name, each in found.items()
        if callable(each)
        and "._" not in name
        and "mlflow_keras_adv" in str(each.__module__)
        and not (isinstance(each, type) and (issubclass(each, Exception) or is_dataclass(each)))
    }


def test_a_run_is_given_by_name_as_a_run_or_its_id_and_is_the_current_one_else() -> None:
    taking = {name: each.parameters for name, each in public().items()}
    assert {name for name, each in taking.items() if "run_id" in each} == OPEN_RUNS
    runs = {name: each["run"] for name, each in taking.items() if "run" in each}
    del runs["Technique"]  # made by technique(), which opens its run
    assert {"log_model", "litert.log_model", "log_claims", "MlflowLogger", "curve"} < set(runs)
    assert {str(each.default) for each in runs.values()} == {"None"}
    for name, each in runs.items():
        callback = isinstance(getattr(mka, name, None), type)
        assert each.kind is each.KEYWORD_ONLY or callback or name in OF_A_RUN, name


def test_what_decides_is_a_monitor_with_a_mode() -> None:
    taking = {name: each.parameters for name, each in public().items()}
    asked = {"compare", "log_comparison", "TradeOff", "registry.promote", "Checkpoints"}
    assert asked < {name for name, each in taking.items() if "monitor" in each}
    for name, each in taking.items():
        assert not {"score", "select_by"} & set(each), name
        if "mode" in each:
            assert each["mode"].default == "auto", name


CALLS: dict[str, Callable[..., Any]] = {
    "log_claims": lambda **run: mka.log_claims(mka.Claim("a", "b", 1.0, at_least=0), **run),
    "logged_claims": lambda **run: mka.logged_claims(**run),
    "curve": lambda **run: mka.curve("final/claim/a", **run),
    "load_best": lambda **run: mka.load_best(**run),
    "log_comparison": lambda **run: mka.log_comparison({}, **run),
    "log_finished_model": lambda **run: mka.log_finished_model(None, None, name="m", **run),
}


@pytest.mark.parametrize("name", CALLS)
def test_without_a_run_it_is_said_what_to_do(name: str, experiment: str) -> None:
    with pytest.raises(mka.UserError, match=rf"^{name}\(\) needs a run, .* or pass run=, a Run or"):
        CALLS[name]()
    with pytest.raises(TypeError, match=r"Received 3 as run; expected a Run or its id"):
        CALLS[name](run=3)


def test_a_run_is_the_current_one_or_is_given_itself_or_by_its_id(experiment: str) -> None:
    with mka.track("outer", log_system_metrics=False) as outer:
        CALLS["log_claims"]()
        with outer.child("first") as first, outer.child("second") as second:
            CALLS["log_claims"](run=first)
            CALLS["log_claims"](run=second.run_id)
    for run in (outer, first, second):
        assert [claim.name for claim in mka.logged_claims(run.run_id)] == ["a"]
        assert list(mka.curve("final/claim/a", run=run)) == [1.0]


def test_the_old_order_is_answered_with_the_new_one(experiment: str) -> None:
    claim = mka.Claim("a", "b", 1.0, at_least=0)
    with mka.track("run", log_system_metrics=False) as run:
        calls: dict[str, Callable[[], Any]] = {
            r"log_finished_model\(model, x, y, name=…, run=run\)": lambda: mka.log_finished_model(
                run, None, name="m"
            ),
            r"log_finished_file\(content, x, y, name=…, run=run\)": lambda: mka.log_finished_file(
                run, b"", name="m"
            ),
            r"log_model\(model, name=…, run=run\)": lambda: mka.log_model(run, name="m"),
            r"log_claims\(claim, …, run=run\)": lambda: mka.log_claims(run, claim),
            r"log_comparison\(\{'a': run_a, …\}, run=run\)": lambda: mka.log_comparison(run),
            r"takes variants so, and by name: run=": lambda: mka.log_comparison(run, {}),
            r"takes model, x, y so, and by name: name=, run=": lambda: mka.log_finished_model(
                run, None, [], [], name="m"
            ),
        }
        for says, call in calls.items():
            with pytest.raises(TypeError, match=says):
                call()

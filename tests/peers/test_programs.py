"""Programs of others' kind, run plain and observed from the same seeds: nothing may differ."""

import inspect
from types import ModuleType

import mlflow
import pytest

from tests.differential import Autologged, Logged, Looped, Program, Watch, difference, plain_outcome
from tests.peers.page import Row, rows_of
from tests.peers.programs import guides, hostile, loops


def programs_of(module: ModuleType) -> list[Program]:
    """The functions of a module that take a watch, and nothing else."""
    own = [
        each for each in vars(module).values() if getattr(each, "__module__", "") == module.__name__
    ]
    return [
        each
        for each in own
        if inspect.isfunction(each)
        and not each.__name__.startswith("_")
        and [*inspect.signature(each).parameters] == ["watch"]
    ]


LOOPS = "loops of their own"
SUITES = {
    "after guides, by `fit`": (programs_of(guides), (Autologged(), Logged())),
    "that reach into what is observed, by `fit`": (programs_of(hostile), (Autologged(), Logged())),
    LOOPS: (programs_of(loops), (Autologged(), Looped())),
}
# In CI each program is watched in one way, in turn; in all with `-m "soak or not soak"`.
CASES = [
    pytest.param(
        suite,
        program,
        watch,
        id=f"{program.__name__}-{watch.name}",
        marks=[pytest.mark.soak] if (number + way) % len(watches) else [],
    )
    for suite, (programs, watches) in SUITES.items()
    for number, program in enumerate(programs)
    for way, watch in enumerate(watches)
]


@pytest.mark.parametrize(("suite", "program", "watch"), CASES)
def test_a_program_trains_as_it_does_unobserved(
    suite: str, program: Program, watch: Watch, experiment: str, request: pytest.FixtureRequest
) -> None:
    lines = difference(program, watch)
    same = {watch.name: int(not lines)}
    rows_of(request.config).append(Row(suite, program.__name__, passed=1, same=same))
    assert not lines, "\n".join(lines)
    if suite != LOOPS or isinstance(watch, Looped):
        if program is hostile.callback_list_of_its_own and isinstance(watch, Autologged):
            return  # such a list is taken for a part of a training that is on record already
        if isinstance(plain_outcome(program).get(""), str):
            return  # Keras refused it before its first step
        runs = mlflow.MlflowClient().search_runs([experiment])
        assert any("train/epoch" in run.data.metrics for run in runs), "nothing is on record"


def test_there_are_two_dozen_at_least() -> None:
    assert sum(len(programs) for programs, _ in SUITES.values()) >= 24

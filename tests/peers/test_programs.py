"""Programs of others' kind, run plain and observed from the same seeds: nothing may differ."""

import inspect
from types import ModuleType

import mlflow
import pytest

from tests.differential import Autologged, Logged, Looped, Program, Watch, difference
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


FITS = [*programs_of(guides), *programs_of(hostile)]
LOOPS = programs_of(loops)
CASES = [
    *((program, watch) for program in FITS for watch in (Autologged(), Logged())),
    *((program, watch) for program in LOOPS for watch in (Autologged(), Looped())),
]


@pytest.mark.parametrize(
    ("program", "watch"), CASES, ids=[f"{p.__name__}-{w.name}" for p, w in CASES]
)
def test_a_program_trains_as_it_does_unobserved(
    program: Program, watch: Watch, experiment: str
) -> None:
    lines = difference(program, watch)
    assert not lines, "\n".join(lines)
    if program in FITS or isinstance(watch, Looped):
        runs = mlflow.MlflowClient().search_runs([experiment])
        assert any("train/epoch" in run.data.metrics for run in runs), "nothing is on record"


def test_there_are_as_many_as_the_page_says() -> None:
    assert len(FITS) + len(LOOPS) >= 60

"""A training run plain and run observed, from the same seeds: what of it differs, to the last bit.

A program is a function that trains something and returns what is to be compared. It is given a
`Watch`, which says how it is observed; `difference` runs it twice and lists all that is not equal:
weights, the optimizers' variables, histories, warnings, exceptions, the attributes that model and
optimizer are left with, and the random numbers that come next.
"""

import functools
import gc
import itertools
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import mlflow_keras_adv as mka

SEED = 20
RUNS = 5  # of either kind at most
Leaves = dict[str, Any]


class Watch:
    """How a program is observed: this one not at all.

    Attributes:
        name: Of this way.
        given: Attributes that it may give a model which has none of the name.
    """

    name = "plain"
    given: frozenset[str] = frozenset()

    @property
    def callbacks(self) -> list[Any]:
        """What a program adds to the callbacks of its `fit`."""
        return []

    def loop(self, model: Any, optimizers: Any) -> Any:
        """What a program drives a loop of its own with."""
        return PlainLoop()

    def observing(self) -> AbstractContextManager[Any]:
        """Is around the whole program."""
        return nullcontext()

    def aside(self) -> AbstractContextManager[Any]:
        """Is around a `fit` that is not to be observed."""
        return nullcontext()


class Autologged(Watch):
    """Every `fit` by `autolog()`; each opens a run of its own."""

    name = "autolog"

    @contextmanager
    def observing(self) -> Iterator[None]:
        mka.autolog()
        try:
            yield
        finally:
            mka.autolog(disable=True)

    @contextmanager
    def aside(self) -> Iterator[None]:
        mka.autolog(disable=True)
        try:
            yield
        finally:
            mka.autolog()


class Logged(Watch):
    """Every `fit` by an `MlflowLogger` behind its callbacks, in one run."""

    name = "MlflowLogger"

    @property
    def callbacks(self) -> list[Any]:
        return [mka.MlflowLogger()]

    def observing(self) -> AbstractContextManager[Any]:
        return mka.track("observed")


class Looped(Logged):
    """The program's own loops by `Loop`."""

    name = "Loop"
    given = frozenset({"history", "stop_training"})  # as Keras does in `fit`, for its callbacks

    def loop(self, model: Any, optimizers: Any) -> Any:
        return mka.Loop(model, optimizers=optimizers, callbacks=self.callbacks, verbose=0)


class PlainLoop:
    """The words of a `Loop`, doing what plain Python does."""

    def epochs(self, epochs: int) -> Iterator[int]:
        yield from range(epochs)

    def batches(self, data: Iterable[Any]) -> Iterator[Any]:
        yield from data

    def run(self, step: Callable[..., Any], data: Any, *, steps_per_call: int = 8) -> None:
        @tf.function
        def many_steps(iterator: Any, steps: Any) -> None:
            for _ in tf.range(steps):
                step(*next(iterator))

        iterator, left = iter(data), int(data.cardinality())
        while left:
            many_steps(iterator, tf.constant(min(left, steps_per_call)))
            left -= min(left, steps_per_call)

    def record(self, **values: Any) -> None:
        pass

    def log(self, **values: Any) -> None:
        pass


Program = Callable[[Watch], Any]


def difference(program: Program, watch: Watch) -> list[str]:
    """What differs between a program run plain and run observed; a line for each.

    Where nothing is apart but in the last digits, both are run again: XLA does not compile a step
    to the same operations each time, so that one plain run may differ from another so far. What no
    plain run has in common with any observed one is told.
    """
    plain, observed = [plain_outcome(program)], []
    while True:
        try:
            observed.append(outcome(program, watch))
        except Exception as error:
            return [f"raised, observed only: {type(error).__name__}: {error}"]
        found = [differing(*pair, given=watch.given) for pair in itertools.product(plain, observed)]
        lines = {
            path: line for path, line in found[-1].items() if all(path in each for each in found)
        }
        close = all(_close(plain[-1].get(path), observed[-1].get(path)) for path in lines)
        if not lines or not close or len(observed) == RUNS:
            break
        plain.append(outcome(program, Watch()))
    gc.collect()  # models are full of circles, and graphs are large
    return list(lines.values())


@functools.cache
def plain_outcome(program: Program) -> Leaves:
    """What a program leaves unobserved; it is run once however often it is compared with."""
    return outcome(program, Watch())


def outcome(program: Program, watch: Watch) -> Leaves:
    """Runs a program, and takes all that is to be compared out of what it leaves."""
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(SEED)
    with warnings.catch_warnings(record=True) as caught, watch.observing():
        warnings.simplefilter("always")
        result = program(watch)
        after = random_numbers()
    # As a set: how often one comes depends on how often a step is traced.
    said = sorted({f"{each.category.__name__}: {each.message}" for each in caught})
    return {"warnings": said, **leaves(after, "random"), **leaves(result, "")}


def random_numbers() -> dict[str, Any]:
    """The next number of each generator that a program may draw from unasked."""
    return {
        "python": random.random(),
        "numpy": np.random.random(),
        "tensorflow": tf.random.uniform([]),
        "keras": keras.random.uniform([]),
    }


def leaves(value: Any, path: str) -> Leaves:
    """All that can be compared in a value, by its path.

    Args:
        value: A model, an optimizer, a History, an array, a number, and any nesting of these.
        path: Where it stands.
    """
    match value:
        case keras.Layer():  # a model, or what trains as one
            parts = {
                "variables": [*value.variables, *getattr(value, "metrics_variables", [])],
                "optimizer": getattr(value, "optimizer", None),
                "attributes": attributes(value),
            }
        case keras.optimizers.Optimizer():
            inner = [each for each in vars(value).values() if _is_optimizer(each)]
            inner += getattr(value, "optimizers", [])
            parts = {
                "variables": value.variables,
                "attributes": attributes(value),
                "inner": inner,
            }
        case keras.callbacks.History():
            parts = {"history": value.history, "epochs": value.epoch}
        case Mapping():
            parts = dict(value)
        case list() | tuple():
            parts = {str(index): each for index, each in enumerate(value)}
        case None | str() | bool():
            return {path: value}
        case _:
            return {path: np.asarray(value)}
    found: Leaves = {} if path.endswith("/attributes") else {f"{path}/#": len(parts)}
    for name, part in parts.items():
        found |= leaves(part, f"{path}/{name}")
    return found


def attributes(owner: Any) -> dict[str, str]:
    """What an instance holds under its own names: plain values, else of which kind each is."""
    return {name: _kind(value) for name, value in vars(owner).items()}


def differing(
    plain: Leaves, observed: Leaves, *, given: frozenset[str] = frozenset()
) -> dict[str, str]:
    """Where two outcomes differ; a line for each place, by its path.

    Args:
        plain: One of them.
        observed: The other one.
        given: Attributes that may be observed only.
    """
    lines = {}
    for path in dict.fromkeys([*plain, *observed]):
        owner, _, name = path.rpartition("/")
        if owner.endswith("/attributes") and name in given and path not in plain:
            continue
        if path not in plain or path not in observed:
            which = "observed" if path in observed else "plain"
            lines[path] = f"{path}: only {which}, {(observed | plain)[path]}"
        elif not _equal(path, plain[path], observed[path]):
            lines[path] = f"{path}: {_apart(plain[path], observed[path])}"
    return lines


def _equal(path: str, plain: Any, observed: Any) -> bool:
    if isinstance(plain, np.ndarray) and isinstance(observed, np.ndarray):
        return (plain.dtype, plain.shape, plain.tobytes()) == (
            observed.dtype,
            observed.shape,
            observed.tobytes(),
        )
    # A first `fit` may leave it as it was found; Keras makes it when it is needed.
    unmade = path.endswith("/attributes/train_function") and observed == "None"
    return unmade or (type(plain) is type(observed) and plain == observed)


def _close(plain: Any, observed: Any) -> bool:
    arrays = isinstance(plain, np.ndarray) and isinstance(observed, np.ndarray)
    return (
        arrays
        and plain.dtype.kind == observed.dtype.kind == "f"
        and plain.shape == observed.shape
        and np.allclose(plain, observed, rtol=1e-3, atol=1e-4, equal_nan=True)
    )


def _apart(plain: Any, observed: Any) -> str:
    arrays = isinstance(plain, np.ndarray) and isinstance(observed, np.ndarray)
    if arrays and plain.shape == observed.shape and plain.dtype.kind == "f":
        most = np.max(np.abs(plain.astype(float) - observed.astype(float)), initial=0.0)
        if plain.size > 1:
            return f"{most:.3g} apart at most"
    return f"plain {plain!r}, observed {observed!r}"


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, keras.optimizers.Optimizer)


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, list | tuple | set | Mapping):
        return f"{kind} of {len(value)}"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return kind
